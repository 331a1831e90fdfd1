"""The schema of a whole run: the one place that declares each key, with its type, default, unit and meaning.

A config is frozen and closed: an unknown key is an error. A `0` where a count is expected means "derive it"; the
derived value stands in the resolved config, so that a run directory says what really ran.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blobjax.config import checks
from blobjax.config.durations import Duration

# Sizes and counts end up as 32-bit integers on devices; more is a slip of the finger.
_LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
AxisSize = Annotated[int, Field(ge=-1, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Nonnegative = Annotated[float, Field(ge=0)]
# YAML has lists, the frozen config tuples: the only conversion allowed.
FromList = Field(strict=False)
Names = Annotated[tuple[str, ...], FromList]
ShardingRule = Annotated[tuple[str, str | Names | None], FromList]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # `n_layers: true` is not 1, and '12' is text
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def _derive(self, **values: object) -> None:
        """Fills derived fields while the section is still being validated; frozen to everybody else."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


class RopeScaling(Section):
    """Llama 3's frequency scaling of rotary embeddings (Grattafiori et al. 2024; published with Llama 3.1)."""

    factor: Annotated[float, Field(ge=1)] = 8.0
    """How much longer than originally trained the slow frequencies are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """Wavelengths beyond original_max_seq_len / this are stretched by the whole factor."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """Wavelengths below original_max_seq_len / this are left alone; between the two, interpolated."""
    original_max_seq_len: Positive = 8192
    """Tokens; the length the unscaled frequencies were trained for."""


class Rope(Section):
    """Rotary position embeddings (Su et al. 2021)."""

    theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the geometric series of wavelengths."""
    scaling: RopeScaling | None = None
    """Llama 3 frequency scaling; none by default."""


class Model(Section):
    """The transformer's shape."""

    vocab_size: Positive = 256
    """Rows of the embedding table; at least the tokenizer's vocabulary. The byte tokenizer has 256."""
    n_layers: Positive = 4
    """Transformer blocks."""
    d_model: Positive = 256
    """Width of the residual stream."""
    n_heads: Positive = 4
    """Query heads."""
    n_kv_heads: Count = 0
    """Key and value heads (grouped-query attention, Ainslie et al. 2023); 0: as many as n_heads."""
    d_head: Count = 0
    """Width of one head; 0: d_model / n_heads."""
    d_ff: Count = 0
    """Hidden width of the MLP; 0: 4 d_model, or 8/3 d_model rounded up to a multiple of 64 for gated activations."""
    activation: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"
    """The MLP's non-linearity; swiglu and geglu are gated (Shazeer 2020), relu2 is squared ReLU (So et al. 2021)."""
    tie_embeddings: bool = True
    """Use the embedding table as the output projection."""
    max_seq_len: Positive = 2048
    """Tokens; the longest sequence the rotary embeddings are set for."""
    rope: Rope = Rope()
    """Rotary position embeddings."""
    sliding_window: Count = 0
    """Tokens each position may look back to, itself included; 0: all of them."""

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: down(f(gate x) ⊙ up x)."""
        return self.activation in ("swiglu", "geglu")

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        divides = self.d_model % self.n_heads == 0
        self._derive(
            n_kv_heads=self.n_kv_heads or self.n_heads,
            d_head=self.d_head or (self.d_model // self.n_heads if divides else 0),
            d_ff=self.d_ff or (-(-self.d_model * 8 // 3 // 64) * 64 if self.gated else 4 * self.d_model),
        )
        return self


class Mesh(Section):
    """Sizes of the device mesh's axes. -1 takes the devices that are left; at most one axis may (data gives way)."""

    replica: AxisSize = 1
    """Data parallelism across slices (slow network): parameters are replicated, gradients all-reduced."""
    data: AxisSize = -1
    """Data parallelism within a slice: parameters are replicated, gradients all-reduced."""
    fsdp: AxisSize = 1
    """Data parallelism with parameters, gradients and optimizer state sharded (Rajbhandari et al. 2020)."""
    tensor: AxisSize = 1
    """Heads, MLP hidden width and vocabulary split across devices (Shoeybi et al. 2019)."""
    context: AxisSize = 1
    """The sequence split across devices."""

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        # `fsdp: -1` alone is clear enough: data's own -1 is only a default.
        if "data" not in self.model_fields_set and -1 in (self.replica, self.fsdp, self.tensor, self.context):
            self._derive(data=1)
        return self


class Compute(Section):
    """RAW COMPUTE: on which devices, how split, and what is recomputed."""

    mesh: Mesh = Mesh()
    """The device mesh."""
    sharding_rules: Annotated[tuple[ShardingRule, ...], FromList] = ()
    """Ordered (logical axis, mesh axis or axes) pairs put before the built-in rules; the first usable match wins."""
    remat: Literal["none", "full", "dots", "attention", "offload"] = "none"
    """What the backward pass recomputes instead of keeping: nothing; all of a layer but its input; all but matmul
    outputs; the attention weights only; or all of a layer but its input, which waits in host memory."""
    scan_layers: Literal["auto"] | bool = "auto"
    """Compile one layer and loop over it (compile time flat in depth), or unroll. auto: unroll shallow models on
    CPU."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention implementation. auto: cudnn on NVIDIA GPUs and splash on TPUs where their limits allow, xla
    elsewhere."""
    loss_chunk_tokens: Count = 0
    """Compute the output logits and their cross-entropy this many tokens at a time, so that the full logits never
    live in memory; 0: all at once."""
    gradient_accumulation: Positive = 1
    """Parts the global batch is computed in, one after the other; the update is that of the whole batch."""
    virtual_cpu_devices: Count = 0
    """Run on the CPU and make it appear as this many devices; 0: not. JAX_NUM_CPU_DEVICES in the environment wins."""
    xla_flags: Literal["auto"] | Names = "auto"
    """Names of XLA flag bundles (blobjax/compute/xla_flags.py). auto: those measured to pay on this platform."""
    compilation_cache: str = ""
    """Directory in which compiled programs are kept between runs; empty: not kept."""


class Source(Section):
    """Where one domain's documents come from."""

    kind: Literal["embedded", "text", "jsonl", "parquet", "array_record", "huggingface"] = "text"
    """embedded: the corpus in the package; the others are files, or a Hugging Face dataset name."""
    path: str = ""
    """A file or glob (text, jsonl, parquet, array_record), or a dataset name; relative to the working directory."""
    field: str = "text"
    """The record field that holds the text (jsonl, parquet, huggingface; array_record: records are JSON)."""
    split: str = "train"
    """The dataset split (huggingface)."""


class Data(Section):
    """QUANTITY AND BREADTH OF DATA."""

    mixture: dict[str, Nonnegative] = {"shakespeare": 1.0}
    """Domain to weight; weights need not sum to one, a weight of 0 leaves a domain out of training but evaluates it."""
    sources: dict[str, Source] = {}
    """Domain to source; the embedded domains need no entry."""
    tokenizer: str = "bytes"
    """`bytes`, or the path of a Hugging Face tokenizers JSON file."""
    seq_len: Positive = 256
    """Tokens in one training sequence."""
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of each domain's documents kept for evaluation, chosen by the hash of their content."""
    mask_documents: bool = True
    """Packed documents do not attend to each other."""
    prepared_dir: str = ""
    """Where token shards are kept; empty: the user's cache directory, ~/.cache/blobjax."""
    prefetch: Positive = 4
    """Batches made ready ahead of the step."""


class Training(Section):
    """TRAINING LENGTH. Durations: `300 steps`, `20M tokens`, `2e15 flops`, `20 tokens/param`, `3 epochs`."""

    length: Duration = Duration(300, "steps")
    """How long to train."""
    global_batch_size: Positive = 12
    """Sequences in one optimizer step, over all devices."""
    warmup: Duration = Duration(2, "%")
    """Linear warm-up of the learning rate; may also be a percentage of the length."""
    wall_clock_limit: Duration | None = None
    """Save and stop, resumable, after this much time in one process (`2 hours`)."""


class Objective(Section):
    """THE OBJECTIVE."""

    kind: Literal["next_token"] = "next_token"
    """What is optimised."""


class Guard(Section):
    """Refuses steps whose numbers went bad (after the skip-step optimizer of OLMo-core, Ai2)."""

    sigmas: Nonnegative = 6.0
    """A loss or gradient norm this many standard deviations above its window's mean is a spike; 0: only numbers that
    are not finite are refused."""
    window: Annotated[int, Field(ge=2, le=_LARGEST)] = 128
    """Accepted steps in that window; no step is a spike before it is full."""
    patience: Count = 10
    """Refused steps in a row that are put up with; one more stops the run. 0: halt at the first."""


# Where a block and the model around it are normalised: the input of each sublayer, its output before it is added, the
# residual stream after the sum; the embeddings, and what goes to the output projection.
_NORMED = {
    "pre": {"input", "final"},
    "post": {"stream"},
    "sandwich": {"input", "output", "final"},
    "peri": {"embedding", "input", "output", "final"},
    "none": set(),
}


class ZClip(Section):
    """Clipping of outlying gradient norms (Kumar et al. 2025)."""

    z_score: Annotated[float, Field(gt=0)] = 2.5
    """Standard deviations above its running mean from which a global norm is an outlier."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.97
    """Of the running mean and variance, a step."""
    warmup: Annotated[int, Field(ge=2, le=_LARGEST)] = 25
    """Steps that only measure."""


class AdaGC(Section):
    """Clipping of each tensor by its own history (Wang et al. 2025)."""

    ratio: Annotated[float, Field(gt=1)] = 1.05
    """Largest norm of a tensor's gradient, relative to its running mean."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Of the running mean, a step."""
    warmup: Positive = 100
    """Steps clipped by conditioning.clip_norm, during which each tensor's smallest norm is found."""


class Conditioning(Section):
    """NORMALISATION, CONDITIONING AND NUMERICAL STABILITY."""

    precision: Literal["float32", "bfloat16", "bfloat16_params"] = "float32"
    """Number format of matmuls and activations, and with bfloat16_params of parameters too; norm statistics, softmax,
    loss and optimizer state stay in float32."""
    parameter_rounding: Literal["nearest", "stochastic", "kahan"] = "nearest"
    """How bfloat16_params rounds an updated parameter: to the nearest; up or down at random, right on average (Gupta et
    al. 2015); or to the nearest, and the error added to the next update (Zamirai et al. 2020)."""
    norm: Literal["rmsnorm", "layernorm", "dyt"] = "rmsnorm"
    """How the residual stream is normalised: rmsnorm (Zhang & Sennrich 2019), layernorm (Ba et al. 2016), or dyt, a
    tanh with a learnt slope in place of statistics (Zhu et al. 2025)."""
    norm_placement: Literal["pre", "post", "sandwich", "peri", "none"] = "pre"
    """Where. pre: the input of each attention and MLP, and the final output (Xiong et al. 2020); post: the stream after
    each sum (Vaswani et al. 2017); sandwich: as pre, and each output before it is added (Ding et al. 2021); peri: as
    sandwich, and the embeddings (Kim et al. 2025); none: nowhere."""
    embedding_norm: bool = False
    """Normalise the embeddings before the first block (Le Scao et al. 2022, section 3.3), whatever the placement."""
    norm_epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square or variance (rmsnorm, layernorm)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head (Dehghani et al. 2023)."""
    attention_soft_cap: Nonnegative = 0.0
    """Attention logits are squashed to ± this by tanh (Gemma 2, 2024); 0: not."""
    final_soft_cap: Nonnegative = 0.0
    """Output logits likewise."""
    float32_head: bool = False
    """Multiply with the output projection in float32 whatever the precision; its sum is float32 either way."""
    z_loss: Nonnegative = 0.0
    """Coefficient of the z-loss (Chowdhery et al. 2022, section 5); 1e-4 when on."""
    clip: Literal["global_norm", "zclip", "adagc"] = "global_norm"
    """How gradients are bounded: their norm by clip_norm, outliers of that norm, or each tensor by its own history."""
    clip_norm: Nonnegative = 1.0
    """Largest global gradient norm (global_norm always, adagc during its warm-up); 0: not clipped."""
    zclip: ZClip = ZClip()
    """Settings of `clip: zclip`."""
    adagc: AdaGC = AdaGC()
    """Settings of `clip: adagc`."""
    guard: Guard | None = None
    """Skip steps whose loss or gradients are not finite or spike; none by default."""

    @property
    def normed(self) -> frozenset[str]:
        """The places that are normalised: of `embedding`, `input`, `output`, `stream` and `final`."""
        return frozenset(_NORMED[self.norm_placement] | ({"embedding"} if self.embedding_norm else set()))


class Optimizer(Section):
    """The optimizer and its schedule."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), lion (Chen et al. 2023), muon (Jordan et al. 2024, with a momentum of 0.95;
    AdamW with the keys below for what is no hidden matrix)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up; wsd: warm-up, stable, decay (Hu et al. 2024)."""
    final_learning_rate_fraction: Fraction = 0.1
    """Where cosine, linear and wsd end, relative to the peak."""
    decay: Duration = Duration(20, "%")
    """Length of wsd's decay."""
    weight_decay: Nonnegative = 0.1
    """Decay of matrices; vectors (norm gains) are never decayed."""
    weight_decay_mode: Literal["coupled", "independent"] = "coupled"
    """coupled: a step shrinks weights by learning_rate · weight_decay (PyTorch's AdamW); independent: by weight_decay ·
    schedule, whatever the peak learning rate (Wortsman et al. 2023, section 3.2.2)."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment (adamw), or of the momentum (lion)."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    update_clipping: bool = False
    """StableAdamW (Wortsman et al. 2023b, algorithm 2): a tensor's step shrinks while its second moment lags behind its
    gradients. For whatever AdamW updates: everything (adamw), or what is no hidden matrix (muon)."""


class Checkpoint(Section):
    """How often the whole state is saved, and which saves are kept."""

    every: Duration = Duration(100, "steps")
    """Progress or time between saves (`100 steps`, `10 minutes`, `5%`); the last step is always saved."""
    keep: Positive = 3
    """The newest saves kept."""
    keep_every: Count = 0
    """Saves at multiples of this many steps are kept for ever; 0: none."""


class Evaluation(Section):
    """Held-out loss of every domain in the mixture."""

    every: Duration = Duration(100, "steps")
    """Between evaluations; the last step is always evaluated."""
    sequences: Positive = 48
    """Held-out sequences per domain (fewer where a domain has fewer)."""
    sample_prompt: str = ""
    """Prompt of the passage sampled at the end of training; empty: no passage."""
    sample_tokens: Positive = 256
    """Length of that passage."""


class WandB(Section):
    """Weights & Biases; needs the extra `wandb`."""

    project: str
    """Project name."""
    entity: str | None = None
    """Team or user."""
    mode: Literal["online", "offline"] = "online"
    """offline writes into the run directory only."""


class Logging(Section):
    """Where the run writes, and how much."""

    run_dir: str = ""
    """The run's directory; empty: runs/NAME."""
    every: Duration = Duration(10, "steps")
    """Between lines of metrics.jsonl."""
    profile_steps: Annotated[tuple[Count, Count], FromList] | None = None
    """First and last step of a jax.profiler trace, written to RUN/profile."""
    wandb: WandB | None = None
    """Also log to Weights & Biases."""


class Config(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run and its directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides initial weights and data order."""
    model: Model = Model()
    compute: Compute = Compute()
    data: Data = Data()
    duration: Training = Training()
    objective: Objective = Objective()
    conditioning: Conditioning = Conditioning()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        if found := checks.problems(self):
            raise ValueError("\n".join(found))
        if not self.logging.run_dir:
            self._derive(logging=self.logging.model_copy(update={"run_dir": f"runs/{self.name}"}))
        return self
