"""TRAINING LENGTH, and keeping the run alive: the keys of duration, objective, optimizer, checkpoints and records."""

from typing import Annotated, Literal

from pydantic import Field

from blobjax.config.durations import Duration, Durations
from blobjax.config.origin import Origin
from blobjax.config.schema.section import Count, Fraction, FromList, Nonnegative, Positive, Section


class Training(Section):
    """TRAINING LENGTH. Durations: `300 steps`, `20M tokens`, `2e15 flops`, `20 tokens/param`, `3 epochs`."""

    length: Duration = Duration(300, "steps")
    """How long to train."""
    global_batch_size: Positive = 12
    """Sequences in one optimizer step, over all devices."""
    batch_warmup: Duration = Duration(0, "steps")
    """Batch size warm-up (Brown et al. 2020, appendix B; Merrill et al. 2025): for this long steps are smaller, of
    batch_start sequences at first and then doubling, as many steps of each size. 0: not."""
    batch_start: Positive = 1
    """Sequences in the first steps of that warm-up: global_batch_size halved some times."""
    warmup: Duration = Duration(2, "%")
    """Linear warm-up of the learning rate; may also be a percentage of the length."""
    seq_len_warmup: Duration = Duration(0, "steps")
    """Sequence length warm-up (Li et al. 2022): for this long sequences are cut into pieces, within which attention
    stays and which grow linearly from seq_len_start to data.seq_len; may also be a percentage. 0: not."""
    seq_len_start: Positive = 64
    """Tokens; the length of the pieces at the first step of that warm-up."""
    start_from: Origin | None = None
    """`RUN@POINT`: begin with another run's parameters, optimizer state, step and place in the data, as in its newest
    checkpoint that is not after that point of this run (`trunk@80%`, `runs/trunk@400 steps`). RUN is the name of a run
    directory beside this one's, or a path. Length and schedule are reckoned from its start. null: from nothing."""
    wall_clock_limit: Duration | None = None
    """Save and stop, resumable, after this much time in one process (`2 hours`)."""

    @property
    def smaller_batches(self) -> tuple[int, ...]:
        """Sequences in the steps of each stage of the batch warm-up, in the order they come; none without one."""
        sizes, size = [], self.batch_start
        while self.batch_warmup.amount and size < self.global_batch_size:
            sizes.append(size)
            size *= 2
        return tuple(sizes)


class Objective(Section):
    """THE OBJECTIVE."""

    kind: Literal["next_token", "supervised"] = "next_token"
    """What is optimised. next_token: the likelihood of every token of a text; supervised: that of the answers alone,
    given their prompts (data.sources of the kind examples)."""


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
    muon_bias_correction: bool = True
    """muon: divide the momentum and the newest gradient by 1 - 0.95^t, as optax does and Adam its moments. false: not,
    as Jordan et al. 2024 and PyTorch have it; the first steps then follow the gradients before them more."""
    update_clipping: bool = False
    """StableAdamW (Wortsman et al. 2023b, algorithm 2): a tensor's step shrinks while its second moment lags behind its
    gradients. For whatever AdamW updates: everything (adamw), or what is no hidden matrix (muon)."""


class KeepBest(Section):
    """Saves that are kept because a held-out metric was best."""

    metric: str
    """Such as `eval/shakespeare/bits_per_byte`; a save has that of the newest evaluation at or before it."""
    count: Positive = 1
    """How many are kept."""
    mode: Literal["min", "max"] = "min"
    """Whether the smallest or the largest is best."""


class Checkpoint(Section):
    """How often the whole state is saved, and which saves are kept: all that any of the rules keeps."""

    every: Durations = Durations((Duration(100, "steps"),))
    """Progress or time between saves (`100 steps`, `10 minutes`, `5%`), or a list: whichever comes first. The last step
    is always saved."""
    keep: Positive = 3
    """The newest saves kept."""
    keep_every: Count = 0
    """Saves at multiples of this many steps are kept for ever; 0: none."""
    keep_best: KeepBest | None = None
    """Keep the best by a held-out metric too."""
    stall_limit: Duration = Duration(30, "seconds")
    """How long training stands still where a save falls due and the one before it is still being written; the new one
    is left out then."""
    write_limit: Duration = Duration(30, "minutes")
    """A save that is not written after this long ends the run, its older saves whole."""


class Evaluation(Section):
    """Held-out loss of every domain in the mixture."""

    every: Duration = Duration(100, "steps")
    """Between evaluations; the last step is always evaluated."""
    sequences: Positive = 48
    """Held-out sequences per domain (fewer where a domain has fewer)."""
    by_position: bool = False
    """Also evaluate the loss by place in the context, in ranges of powers of two: how much is learned within it. Costs
    a forward pass for each range."""
    sample_prompt: str = ""
    """Prompt of the passage sampled at the end of training; empty: no passage."""
    sample_tokens: Positive = 256
    """Length of that passage."""


SequenceRange = Annotated[tuple[Count, Count], FromList]


class Faults(Section):
    """Faults put in on purpose, to see what the guard does. They stand in the data, at sequences of the training stream
    (numbered from 0; the last is excluded), so that passing over the data passes over them."""

    nan: SequenceRange | None = None
    """First and last sequence whose loss and gradients are not a number."""
    poison: SequenceRange | None = None
    """First and last sequence whose tokens are noise: uniform over the vocabulary, by seed and sequence."""


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
