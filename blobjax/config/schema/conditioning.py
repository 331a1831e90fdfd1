"""NORMALISATION, CONDITIONING AND NUMERICAL STABILITY: its keys."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from blobjax.config.schema.section import AtLeastTwo, Count, Nonnegative, Positive, Section

NumberFormat = Literal[
    "bfloat16",
    "float16",
    "int8",
    "fp8_e4m3",
    "fp8_e5m2",
    "mxfp8",
    "mxfp6_e2m3",
    "mxfp6_e3m2",
    "mxfp4",
    "nvfp4",
]
# What an override may name: parameters are of one format throughout.
Products = Literal["float32", "bfloat16", "int8", "fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4"]
MATMUL_FORMATS = ("int8", "fp8", "mxfp8", "mxfp6", "mxfp4", "nvfp4")
"""Precisions in which products with weights have a number format of their own."""


class Sustained(Section):
    """A slow blow-up, which a guard that only looks for spikes lets pass: the loss stays above what it has been."""

    sigmas: Annotated[float, Field(gt=0)] = 4.0
    """Standard deviations of the best window's losses above their mean from which a loss is too high. The best window
    of accepted steps (conditioning.guard.window long) is the one with the lowest mean so far."""
    steps: Positive = 20
    """Steps in a row, refused or too high, that make trouble of it."""


class Rollback(Section):
    """Goes back to a good state and passes over the data since (Chowdhery et al. 2022, section 5.1: restarted about 100
    steps before a spike, and 200 to 500 batches passed over)."""

    snapshots: Count = 2
    """States kept in host memory; beyond them a rollback takes the newest good checkpoint, or the initial state. Any of
    them leads to the same run; an older one only computes more of it again."""
    snapshot_every: Positive = 50
    """Steps between snapshots. Those kept reach back (snapshots - 1) · snapshot_every steps or more, which should be no
    less than patience + margin, and sustained.steps + margin."""
    margin: Count = 20
    """Steps before the first bad one that count as bad too: what shows in the loss may have begun before."""
    skip: Count = 200
    """Batches passed over beyond those seen since the trouble began, in steps."""
    at_most: Positive = 3
    """Rollbacks in one run, restarts included; trouble after that halts it."""
    sustained: Sustained | None = Sustained()
    """Which slow blow-ups are trouble too; null: only refused steps are."""


class Guard(Section):
    """Refuses steps whose numbers went bad (after the skip-step optimizer of OLMo-core, Ai2)."""

    sigmas: Nonnegative = 6.0
    """A loss or gradient norm this many standard deviations above its window's mean is a spike; 0: only numbers that
    are not finite are refused."""
    window: AtLeastTwo = 128
    """Accepted steps in that window; no step is a spike before it is full."""
    patience: Count = 10
    """Refused steps in a row that are put up with; one more is trouble. 0: the first is."""
    rollback: Rollback | None = None
    """What is done about trouble: go back to a good state and pass over the data; null: the run halts."""


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
    warmup: AtLeastTwo = 25
    """Steps that only measure."""


class AdaGC(Section):
    """Clipping of each tensor by its own history (Wang et al. 2025)."""

    ratio: Annotated[float, Field(gt=1)] = 1.05
    """Largest norm of a tensor's gradient, relative to its running mean."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.98
    """Of the running mean, a step."""
    warmup: Positive = 100
    """Steps clipped by conditioning.clip_norm, during which each tensor's smallest norm is found."""


class LossScaling(Section):
    """Keeps float16's gradients in its range (Micikevicius et al. 2018, section 3.2)."""

    kind: Literal["none", "static", "dynamic"] = "none"
    """static: one scale; dynamic: it doubles after growth_every steps without overflow and halves at each overflow.
    Either skips a step that overflows."""
    initial: Annotated[float, Field(gt=0, le=2.0**126)] = 65536.0
    """The loss is multiplied by this before it is differentiated, at first or always; a power of two rounds nothing."""
    growth_every: Positive = 2000
    """Steps in a row without overflow after which a dynamic scale doubles."""
    floor: Annotated[float, Field(gt=0)] = 1.0
    """Smallest dynamic scale."""


class AGC(Section):
    """Clipping of each output unit's gradient by the norm of its weights (Brock et al. 2021)."""

    ratio: Annotated[float, Field(gt=0)] = 0.01
    """Largest norm of a unit's gradient, relative to the norm of its weights (the paper's λ, at batches of 4096; larger
    for smaller batches)."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-3
    """Weights of a smaller norm count as of this one, so that what starts at zero can grow (the paper's ε)."""


class Parametrisation(Section):
    """How initial variance, learning rate, Adam's epsilon and multipliers follow width and depth."""

    kind: Literal["standard", "mup", "completep"] = "standard"
    """standard: they do not, but for variances of 1 / fan-in. mup: optimizer.learning_rate is quoted at base_width and
    holds at any width (Yang et al. 2022). completep: quoted at base_width and base_depth, and holds at any depth too
    (Dey et al. 2025)."""
    base_width: Count = 0
    """model.d_model of the model that the learning rate was found on; must be given (mup, completep)."""
    base_depth: Count = 0
    """model.n_layers of that model; must be given (completep)."""
    base_d_head: Count = 0
    """model.d_head of that model, where heads grow with the width; 0: the same, the width grows by more of them."""
    base_d_ff: Count = 0
    """model.d_ff of that model; 0: in proportion to the widths."""
    depth_scaled_init: bool = True
    """Divide the initial deviation of matrices that write to the residual stream by sqrt(2 n_layers) (GPT-2, Radford et
    al. 2019, section 2.3); completep: by sqrt(2 base_depth)."""


class Conditioning(Section):
    """NORMALISATION, CONDITIONING AND NUMERICAL STABILITY."""

    precision: Literal[Products, "bfloat16_params", "float16"] = "float32"
    """Number format of matmuls and activations, and with bfloat16_params of parameters too; norm statistics, softmax,
    loss and optimizer state stay in float32. int8 to nvfp4: of products with weights, forward and backward, the rest
    being as bfloat16 has it (fp8: Micikevicius et al. 2022; mx: OCP Microscaling Formats 1.0, 2023)."""
    simulate: bool = False
    """Round the operands of such products to their format and multiply in float32: the same numbers on any device."""
    matmul_scaling: Literal["current", "blocks"] = "current"
    """Scales of int8 and fp8. current: one for each tensor, from its own largest magnitude; blocks: one for each 128
    values that are summed over."""
    scale_rounding: Literal["up", "floor"] = "up"
    """How the power of two that a block of an mx format shares follows from its largest magnitude. up: the smallest
    that brings it into the format's range (Mishra et al. 2025, who found floor to diverge with mxfp8); floor: the
    exponents of both meet, and values of up to twice the largest saturate (OCP Microscaling Formats 1.0, 2023); it
    measured better for mxfp4 (docs/studies.md)."""
    precision_overrides: dict[str, Products] = {}
    """Pattern of paths (`blocks/mlp/*`, `blocks/attention/query`, `output`) to the precision of these products with
    weights; the first that matches counts."""
    parameter_rounding: Literal["nearest", "stochastic", "kahan"] = "nearest"
    """How bfloat16_params rounds an updated parameter: to the nearest; up or down at random, right on average (Gupta et
    al. 2015); or to the nearest, and the error added to the next update (Zamirai et al. 2020)."""
    loss_scaling: LossScaling = LossScaling()
    """For precision float16."""
    loss_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """The loss is multiplied by this before it is differentiated, for studies: a small model's gradients are brought to
    where a large one's are. Unlike a loss scale it is never divided out: grad_norm, clip_norm and the guard are about
    the multiplied gradients, and Adam weighs its epsilon against them. The reported losses are not multiplied."""
    parametrisation: Parametrisation = Parametrisation()
    """How the numbers that training starts from and steps by follow the model's size."""
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
    qk_clip: Nonnegative = 0.0
    """Where a head's largest attention logit exceeded this, its query and key weights are scaled back after the update
    (Kimi Team 2025, section 2.1; 100 there); 0: not. At the steps of probe_every, which measures the logits."""
    attention_soft_cap: Nonnegative = 0.0
    """Attention logits are squashed to ± this by tanh (Gemma 2, 2024); 0: not."""
    final_soft_cap: Nonnegative = 0.0
    """Output logits likewise."""
    float32_head: bool = False
    """Multiply with the output projection in float32 whatever the precision; its sum is float32 either way."""
    z_loss: Nonnegative = 0.0
    """Coefficient of the z-loss (Chowdhery et al. 2022, section 5); 1e-4 when on."""
    clip: Literal["global_norm", "zclip", "adagc", "agc"] = "global_norm"
    """How gradients are bounded: their norm by clip_norm, outliers of that norm, each tensor by its own history, each
    output unit by its weights."""
    clip_norm: Nonnegative = 1.0
    """Largest global gradient norm (global_norm always, adagc during its warm-up); 0: not clipped."""
    zclip: ZClip = ZClip()
    """Settings of `clip: zclip`."""
    adagc: AdaGC = AdaGC()
    """Settings of `clip: adagc`."""
    agc: AGC = AGC()
    """Settings of `clip: agc`."""
    probe_every: Count = 0
    """Steps between flow probes, a few numbers of every block under `flow/`; 0: never."""
    probe_format: Literal["compute"] | NumberFormat = "compute"
    """The number format that probes ask about: what gradients would be lost in it, and how exactly it holds weights.
    compute: that of the products with weights (conditioning.precision, precision_overrides), the narrowest of those of
    all blocks or of the output; float32 is not asked about."""
    noise_scale_every: Count = 0
    """Steps between estimates of the gradient noise scale (McCandlish et al. 2018), each a gradient's work; 0: off."""
    curvature_every: Count = 0
    """Steps between estimates of the Hessian's largest eigenvalue, as it is and preconditioned (adamw); 0: never. Each
    product with the Hessian costs two or three gradients."""
    curvature_iterations: AtLeastTwo = 10
    """Hessian-vector products in each of those."""
    guard: Guard | None = None
    """Skip steps whose loss or gradients are not finite or spike; none by default."""

    @property
    def normed(self) -> frozenset[str]:
        """The places that are normalised: of `embedding`, `input`, `output`, `stream` and `final`."""
        return frozenset(_NORMED[self.norm_placement] | ({"embedding"} if self.embedding_norm else set()))

    @property
    def surveyed(self) -> bool:
        """Whether gradient noise or curvature is measured between steps."""
        return bool(self.noise_scale_every or self.curvature_every)

    @property
    def probes(self) -> bool:
        """Whether anything is written under `flow/`."""
        return bool(self.probe_every) or self.surveyed

    def precision_of(self, path: str) -> str:
        """The precision of the product with weights at a path (`Model.products`)."""
        if path == "output" and self.float32_head:
            return "float32"
        named = (name for pattern, name in self.precision_overrides.items() if fnmatchcase(path, pattern))
        return next(named, self.precision)
