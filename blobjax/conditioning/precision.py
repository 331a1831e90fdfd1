"""Precision policies: which number format each part of the model computes in.

Parameters stay in float32 but where a policy says otherwise: an update of relative size 1e-3 is below bfloat16's
resolution of 2^-8 and would round to nothing (Micikevicius et al. 2018, section 3.1), unless it is rounded with care
(rounding.py). Optimizer state, the gradients it is shown, and what reduces over many values (norm statistics, softmax,
the loss), is float32 whatever the policy. float16 has three bits more than bfloat16 but a far smaller range: see
loss_scaling.py.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.typing import DTypeLike

from blobjax.conditioning.formats import FORMATS, Format
from blobjax.config.schema import Conditioning
from blobjax.config.schema.conditioning import NumberFormat

# Values that share a scale where blocks are of our choosing: as in DeepSeek-V3 (2024, section 3.3.2).
_BLOCK = 128


@dataclass(frozen=True)
class Matmul:
    """Number formats of the operands of products with weights."""

    forward: NumberFormat
    """Activations and weights, in the forward product and in both backward products."""
    gradient: NumberFormat
    """Gradients with respect to a product, in both backward products."""


@dataclass(frozen=True)
class Precision:
    """Dtypes of one policy."""

    params: DTypeLike
    """Parameters as stored and updated."""
    compute: DTypeLike
    """Operands of matmuls, and activations between layers."""
    output: DTypeLike = jnp.float32
    """Logits, and every reduction: norm statistics, softmax, loss."""
    gradient: DTypeLike = jnp.float32
    """Gradients of parameters, as they are summed, clipped and shown to the optimizer."""
    optimizer: DTypeLike = jnp.float32
    """The optimizer's state."""
    matmul: Matmul | None = None
    """What products with weights round their operands to; None: nothing but `compute`."""


_MATMULS = {
    "int8": Matmul("int8", "int8"),
    # Gradients need range more than digits (Micikevicius et al. 2022).
    "fp8": Matmul("fp8_e4m3", "fp8_e5m2"),
    # With a scale for each 32 values gradients need no more range than the rest (Mishra et al. 2025).
    "mxfp8": Matmul("mxfp8", "mxfp8"),
    "mxfp6": Matmul("mxfp6_e2m3", "mxfp6_e3m2"),
    "mxfp4": Matmul("mxfp4", "mxfp4"),
    "nvfp4": Matmul("nvfp4", "nvfp4"),
}

POLICIES = {
    "float32": Precision(params=jnp.float32, compute=jnp.float32),
    "bfloat16": Precision(params=jnp.float32, compute=jnp.bfloat16),
    "float16": Precision(params=jnp.float32, compute=jnp.float16),
    "bfloat16_params": Precision(params=jnp.bfloat16, compute=jnp.bfloat16),
    **{name: Precision(params=jnp.float32, compute=jnp.bfloat16, matmul=matmul) for name, matmul in _MATMULS.items()},
}


def policy(conditioning: Conditioning, path: str = "") -> Precision:
    """The policy that `conditioning.precision` names, or that of the product with weights at a path."""
    return POLICIES[conditioning.precision_of(path) if path else conditioning.precision]


def operand_format(name: NumberFormat, conditioning: Conditioning) -> Format:
    """A number format as a config has it: the scales of mx formats rounded as it says, others with
    `conditioning.matmul_scaling: blocks` of blocks of 128."""
    found = replace(FORMATS[name], scale_rounding=conditioning.scale_rounding)
    return replace(found, scale="blocks", block=_BLOCK) if conditioning.matmul_scaling == "blocks" else found
