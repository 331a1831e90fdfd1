"""Precision policies: which number format each part of the model computes in.

Parameters stay in float32 but where a policy says otherwise: an update of relative size 1e-3 is below bfloat16's
resolution of 2^-8 and would round to nothing (Micikevicius et al. 2018, section 3.1), unless it is rounded with care
(rounding.py). Optimizer state, and what reduces over many values (norm statistics, softmax, the loss), is float32
whatever the policy. float16 has three bits more than bfloat16 but a far smaller range: see loss_scaling.py.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from blobjax.config.schema import Conditioning


@dataclass(frozen=True)
class Precision:
    """Dtypes of one policy."""

    params: DTypeLike
    """Parameters as stored and updated."""
    compute: DTypeLike
    """Operands of matmuls, and activations between layers."""
    output: DTypeLike
    """Logits, and every reduction: norm statistics, softmax, loss."""


POLICIES = {
    "float32": Precision(params=jnp.float32, compute=jnp.float32, output=jnp.float32),
    "bfloat16": Precision(params=jnp.float32, compute=jnp.bfloat16, output=jnp.float32),
    "float16": Precision(params=jnp.float32, compute=jnp.float16, output=jnp.float32),
    "bfloat16_params": Precision(params=jnp.bfloat16, compute=jnp.bfloat16, output=jnp.float32),
}


def policy(conditioning: Conditioning) -> Precision:
    """The policy that `conditioning.precision` names."""
    return POLICIES[conditioning.precision]
