"""FLOPs that a traced step computes, recomputation included: what the matrix units do, whatever XLA makes of the rest.

Counted from the jaxpr, where loops know their length and kernels their name. `compute/flops.py` counts what the model
needs; the difference between the two is what remat repeats, and what attention computes of the masked half.
"""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params

from blobjax.compute.flops import mean_visible_keys
from blobjax.config import Config

# Products of the size of q·kᵀ over the keys that are seen, in kernels that jaxprs show from outside only: two in the
# forward pass; backward, flash attention computes the scores again (Dao et al. 2022, algorithm 4), and splash twice.
_ATTENTION = {
    "_dkv": 4,
    "_dq": 3,
    "dot_product_attention_bwd": 5,
    "dot_product_attention_fwd": 2,
    "_fwd": 2,
    "splash": 2,
}


def hardware_flops(jaxpr: Any, config: Config) -> float:
    """FLOPs of all matrix products of a jaxpr, on all devices together."""
    return sum(_equation(equation, config) for equation in jaxpr.eqns)


def _equation(equation: Any, config: Config) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        shared = math.prod(equation.invars[0].aval.shape[dim] for dim in contracted)
        return 2.0 * shared * equation.outvars[0].aval.size
    if name == "pallas_call" or name.startswith("dot_product_attention"):
        return _attention(equation, config)
    inner = [hardware_flops(getattr(each, "jaxpr", each), config) for each in jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner, default=0.0)
    if name == "shard_map":
        # Inside, shapes are those of one device.
        return params["mesh"].size * sum(inner)
    return sum(inner)


def _attention(equation: Any, config: Config) -> float:
    label = (
        f"{equation.primitive.name} {equation.params.get('name', '')} {equation.params.get('name_and_src_info', '')}"
    )
    products = next((count for part, count in _ATTENTION.items() if part in label), 0)
    heads = [
        variable.aval.size
        for variable in equation.invars
        if getattr(variable.aval, "ndim", 0) >= 3 and variable.aval.shape[-1] == config.model.d_head
    ]
    keys = mean_visible_keys(config.data.seq_len, config.model.sliding_window)
    return 2.0 * products * max(heads, default=0) * keys
