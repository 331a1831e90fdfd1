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


class Guard(Section):
    """Refuses steps whose numbers went bad (after the skip-step optimizer of OLMo-core, Ai2)."""

    sigmas: Nonnegative = 6.0
    """A loss or gradient norm this many standard deviations above its window's mean is a spike; 0: only numbers that
    are not finite are refused."""
    window: AtLeastTwo = 128
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


class Conditioning(Section):
    """NORMALISATION, CONDITIONING AND NUMERICAL STABILITY."""

    precision: Literal[Products, "bfloat16_params"] = "float32"
    """Number format of matmuls and activations, and with bfloat16_params of parameters too; norm statistics, softmax,
    loss and optimizer state stay in float32. int8 to nvfp4: of products with weights, forward and backward, the rest
    being as bfloat16 has it (fp8: Micikevicius et al. 2022; mx: OCP Microscaling Formats 1.0, 2023)."""
    simulate: bool = False
    """Round the operands of such products to their format and multiply in bfloat16: the same numbers on any device."""
    matmul_scaling: Literal["current", "delayed", "blocks"] = "current"
    """Where int8 and fp8 have their scales from. current: one for each tensor, from its own largest magnitude; delayed:
    the same from those of the last 1,024 steps (fp8); blocks: one for each 128 values that are summed over."""
    precision_overrides: dict[str, Products] = {}
    """Pattern of paths (`blocks/mlp/*`, `blocks/attention/query`, `output`) to the precision of these products with
    weights; the first that matches counts."""
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
    probe_every: Count = 0
    """Steps between flow probes, a few numbers of every block under `flow/`; 0: never."""
    probe_format: Literal["compute"] | NumberFormat = "compute"
    """The number format that probes ask about: what gradients would be lost in it, and how exactly it holds weights.
    compute: that of conditioning.precision; float32 is not asked about."""
    guard: Guard | None = None
    """Skip steps whose loss or gradients are not finite or spike; none by default."""

    @property
    def normed(self) -> frozenset[str]:
        """The places that are normalised: of `embedding`, `input`, `output`, `stream` and `final`."""
        return frozenset(_NORMED[self.norm_placement] | ({"embedding"} if self.embedding_norm else set()))

    def precision_of(self, path: str) -> str:
        """The precision of the product with weights at a path (`Model.products`)."""
        if path == "output" and self.float32_head:
            return "float32"
        named = (name for pattern, name in self.precision_overrides.items() if fnmatchcase(path, pattern))
        return next(named, self.precision)
