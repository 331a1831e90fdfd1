"""Parametrisations: how initial variance, learning rate, Adam's epsilon and multipliers follow width and depth.

A parametrisation is a choice of exponents under which a model of another width or depth trains as the base did, so that
hyperparameters found on a small model serve a large one. With m the width over the base's (of a hidden matrix: its
fan-in over the base's), d the depth over the base's, and everything relative to `standard`, which it is at the base:

  kind of parameter               initial deviation   learning rate   epsilon     weight decay
  input    embedding              1                   1               1 / m       1
  hidden   matrices of a block    1 (a)               1 / m (b)       1 / (m d)   m (c)
  output   untied unembedding     sqrt(m) (d)         1               1 / m       1
  vector   gains in a block       1                   1               1 / (m d)   0
           the other gains        1                   1               1 / m       0

  forward                         what it is multiplied by
  output logits                   1 / m, tied or not
  attention logits                sqrt(base d_head) / d_head, where standard has 1 / sqrt(d_head)
  what a sublayer adds            1 / d

`mup` has d = 1 throughout, `completep` all of it. (a) The variance is 1 / fan-in under any kind; completep takes the
1 / sqrt(2 n_layers) of matrices that write to the stream at the base's depth, since its multiplier does the rest.
(b) AdamW and Lion, whose steps have entries of one size. Muon's is below. (c) So that a step shrinks a matrix by
learning rate · weight decay at any width: decay is not multiplied at all, the direction alone is. (d) That is the
variance of the base, 1 / base_width.

Sources: Yang et al. 2022 (Tensor Programs V), table 8 for the exponents of width under Adam, section 4 for attention,
and for the decay their package mup, whose MuAdamW multiplies it by m. Dey et al. 2025 (CompleteP), table 1 with α = 1
for those of depth, for both of epsilon, and again for decay. That decay · learning rate is what must stay: Wang &
Aitchison 2024. Muon under µP: Yang, Simon & Bernstein 2023 (A spectral condition for feature learning); that its rate
needs no factor of depth beside the multiplier 1 / d: Zheng et al. 2026 (Spectral condition for µP under width-depth
scaling; branches of two matrices or more).
"""

import math
from typing import Any

import jax

from blobjax.config.schema import Config

Axes = tuple[str | None, ...]


def is_matrix(axes: Axes) -> bool:
    """Whether a parameter with these logical axes maps vectors to vectors: a stacked norm gain is a vector."""
    return len(_own(axes)) >= 2


def is_hidden(axes: Axes) -> bool:
    """Whether it is a matrix of a block, both of whose sides grow with the model."""
    return is_matrix(axes) and "vocab" not in axes


def into_stream(config: Config) -> float:
    """What the initial deviation of a matrix that writes to the residual stream is multiplied by.

    1 / sqrt(2 n_layers), because the stream sums 2 n_layers of them (GPT-2, Radford et al. 2019, section 2.3).
    """
    p = config.conditioning.parametrisation
    depth = p.base_depth if p.kind == "completep" else config.model.n_layers
    return (2 * depth) ** -0.5 if p.depth_scaled_init else 1.0


def output_deviation(config: Config) -> float:
    """What the initial deviation of an untied output projection is multiplied by."""
    return math.sqrt(_width(config))


def readout(config: Config) -> float:
    """What output logits are multiplied by.

    Untied, this and the larger variance are table 8; tied, the table is an input matrix in its variance and learning
    rate, and this alone makes an output of it (MuSharedReadout in the authors' package).
    """
    return 1 / _width(config)


def attention_scale(config: Config) -> float:
    """What q · k is multiplied by.

    Queries and keys learn to align, and then q · k grows as d_head, not as its root (Yang et al. 2022, section 4).
    Where width grows by more heads of one size, nothing changes.
    """
    d_head, p = config.model.d_head, config.conditioning.parametrisation
    base = d_head if p.kind == "standard" else p.base_d_head or d_head
    return d_head**-0.5 * (base / d_head) ** 0.5


def residual(config: Config) -> float:
    """What a sublayer's output is multiplied by before it is added to the stream."""
    return 1 / _depth(config)


def learning_rates(config: Config, axes: Any) -> Any:
    """What each parameter's step is multiplied by, before weight decay is added: a tree of floats.

    Args:
      axes: tree of logical axis names, one tuple for each parameter.
    """
    muon = config.optimizer.name == "muon"

    def one(axes: Axes) -> float:
        if not is_hidden(axes):
            return 1.0
        (fan_in, fan_out), (base_in, base_out) = _fans(config, axes)
        if muon:
            return _spectral(fan_in, fan_out) / _spectral(base_in, base_out)
        return base_in / fan_in

    return _map(one, axes)


def epsilons(config: Config, axes: Any) -> Any:
    """What Adam's epsilon is multiplied by for each parameter: a tree of floats.

    As its gradient is: the loss is spread over d_model features, and a block's share of the stream falls with depth.
    """
    everywhere, in_blocks = 1 / _width(config), 1 / (_width(config) * _depth(config))
    return _map(lambda axes: in_blocks if "layers" in axes else everywhere, axes)


def _width(config: Config) -> float:
    p = config.conditioning.parametrisation
    return 1.0 if p.kind == "standard" else config.model.d_model / p.base_width


def _depth(config: Config) -> float:
    p = config.conditioning.parametrisation
    return config.model.n_layers / p.base_depth if p.kind == "completep" else 1.0


def _spectral(fan_in: float, fan_out: float) -> float:
    """The learning rate at which Muon moves the features of a layer by their own size.

    A step must have a spectral norm of sqrt(fan_out / fan_in), and Muon's, all of whose singular values are one, comes
    with a factor of sqrt(max(fan_in, fan_out)) (program/optimizer.py). With all widths at m times the base's, that is
    1 / sqrt(m): where Adam's step is nearly of rank one, Muon's is of full rank, and so smaller at the same entry size.
    """
    return math.sqrt(fan_out / fan_in / max(fan_in, fan_out))


def _fans(config: Config, axes: Axes) -> tuple[tuple[float, float], tuple[float, float]]:
    """Inputs and outputs of a hidden matrix, here and in the base; heads and their features are one dim."""
    m, p = config.model, config.conditioning.parametrisation
    width = _width(config)
    sizes = {
        "embed": (m.d_model, m.d_model / width),
        "mlp": (m.d_ff, p.base_d_ff or m.d_ff / width),
        "heads": (m.n_heads * m.d_head, m.n_heads * m.d_head / width),
        "kv_heads": (m.n_kv_heads * m.d_head, m.n_kv_heads * m.d_head / width),
    }
    into, out_of = (sizes[axis] for axis in _own(axes) if axis in sizes)
    return (into[0], out_of[0]), (into[1], out_of[1])


def _own(axes: Axes) -> list[str | None]:
    """The axes of one layer's tensor."""
    return [axis for axis in axes if axis != "layers"]


def _map(one: Any, axes: Any) -> Any:
    return jax.tree.map(one, axes, is_leaf=lambda node: isinstance(node, tuple))
