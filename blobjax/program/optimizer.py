"""The optimizer: a direction from optax, decoupled decay of the matrices, a schedule. One shape for all three choices.

A step is  p <- p - s(t) * lr * (c * direction + decay * p),  with s(t) the schedule between 0 and 1, and c 1 unless a
parametrisation says otherwise (conditioning/parametrisation.py):

* `weight_decay_mode: coupled` takes decay = weight_decay, so that doubling the learning rate doubles the shrinkage (as
  PyTorch's AdamW and optax do; Loshchilov & Hutter 2019 call it decoupled because it bypasses Adam's normaliser).
* `independent` takes decay = weight_decay / lr, so that a step shrinks by s(t) * weight_decay at any learning rate
  (Wortsman et al. 2023, section 3.2.2), which is what keeps learning-rate sweeps readable.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blobjax.conditioning.clipping import adagc, agc, fan_in, scale_by_stable_adam, zclip
from blobjax.conditioning.guards import guarded
from blobjax.conditioning.loss_scaling import loss_scaled
from blobjax.conditioning.parametrisation import epsilons, is_hidden, is_matrix, learning_rates
from blobjax.conditioning.precision import policy
from blobjax.conditioning.qk_clip import qk_clip
from blobjax.conditioning.rounding import in_float32, kahan_summation, stochastic_rounding
from blobjax.config.schema import Conditioning, Config, Optimizer

# Momentum and update scale as in Liu et al. 2025 (Muon is Scalable for LLM Training, section 2.2): 0.2 matches the RMS
# of AdamW's updates, so that one learning rate serves both groups of parameters.
_MUON_MOMENTUM = 0.95
_MUON_RMS = 0.2
# After this many steps 0.95^t is zero.
_LONG_SINCE = 1 << 20


def schedule(optimizer: Optimizer, length: int, warmup: int, decay: int) -> optax.Schedule:
    """Learning rate as a function of the step, counted from 0.

    Args:
      length: steps of the whole run; the last one is at the final learning rate.
      warmup: steps of linear warm-up; step 0 takes peak / warmup, not 0, so that no step is wasted.
      decay: steps of the decay at the end (wsd only).
    """
    peak = optimizer.learning_rate
    final = peak * optimizer.final_learning_rate_fraction
    warmup = min(warmup, length)
    # The decay ends on the last step rather than one after it.
    rest = max(length - warmup - 1, 1)
    match optimizer.schedule:
        case "constant":
            tail: optax.Schedule = optax.constant_schedule(peak)
        case "linear":
            tail = optax.linear_schedule(peak, final, rest)
        case "cosine":
            tail = optax.cosine_decay_schedule(peak, rest, optimizer.final_learning_rate_fraction)
        case "wsd":
            decay = min(max(decay, 1), rest)
            # To the last bit the constant schedule until it falls, so that a run of either can be the other's trunk.
            first = peak - (peak - final) / decay
            fall = optax.linear_schedule(first, final, decay - 1)
            tail = optax.join_schedules([optax.constant_schedule(peak), fall], [rest - decay + 1])
    if warmup == 0:
        return tail
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, tail], [warmup])


def _muon_dims(axes: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dims of a hidden matrix are its input and output; None for what AdamW takes (vectors, embedding, head)."""
    if not is_hidden(axes):
        return None
    inputs = fan_in(axes)
    outputs = tuple(dim for dim, axis in enumerate(axes) if axis != "layers" and dim not in inputs)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def _muon(config: Optimizer, axes: Any) -> optax.GradientTransformation:
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    dims = jax.tree.map(_muon_dims, axes, is_leaf=is_axes)
    labels = jax.tree.map(lambda a: "adam" if _muon_dims(a) is None else "muon", axes, is_leaf=is_axes)

    # optax.partition hands each group the whole tree with MaskedNode in the other group's places.
    masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    adam_axes = jax.tree.map(lambda a, d: a if d is None else optax.MaskedNode(), axes, dims, is_leaf=is_axes)

    def masked_dims(params: Any) -> Any:
        return jax.tree.map(lambda p, d: p if masked(p) else d, params, dims, is_leaf=masked)

    def scale(update: jax.Array, d: optax.contrib.MuonDimensionNumbers) -> jax.Array:
        fan_in, fan_out = (math.prod(update.shape[dim] for dim in side) for side in (d.reduction_axis, d.output_axis))
        return update * _MUON_RMS * math.sqrt(max(fan_in, fan_out))

    direction = optax.contrib.scale_by_muon(beta=_MUON_MOMENTUM, weight_dimension_numbers=masked_dims)
    if not config.muon_bias_correction:
        direction = _uncorrected(direction)
    muon = optax.chain(
        direction,
        optax.stateless(lambda updates, _: jax.tree.map(scale, updates, masked_dims(updates))),
    )
    return optax.partition({"muon": muon, "adam": _adam(config, adam_axes)}, labels)


def _uncorrected(muon: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon with the momentum of Jordan et al. 2024 (and of PyTorch): m <- β m + (1 - β) g, and β m + (1 - β) g is what
    is orthogonalised. optax divides both terms by 1 - β^t, which is one where it counts from a late step on."""

    def init(params: Any) -> optax.contrib.MuonState:
        state = muon.init(params)
        return state._replace(count=jnp.full_like(state.count, _LONG_SINCE))

    return optax.GradientTransformation(init, muon.update)


def _adam(config: Optimizer, axes: Any) -> optax.GradientTransformation:
    if config.update_clipping:
        return scale_by_stable_adam(config.beta1, config.beta2, config.epsilon, axes)
    return optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)


def _parametrised(config: Config, direction: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """The direction, each parameter's at a learning rate and an epsilon of its own."""
    # Adam's step m / (sqrt(v) + c ε) from gradients g is m / (sqrt(v) + ε) from gradients g / c. The steps of Lion and
    # Muon depend on no gradient's size.
    sizes = jax.tree.map(lambda c: 1 / c, epsilons(config, axes))
    rates = learning_rates(config, axes)

    def times(updates: Any, factors: Any) -> Any:
        return jax.tree.map(lambda u, factor: u if factor == 1 else factor * u, updates, factors)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = direction.update(times(grads, sizes), state, params)
        return times(updates, rates), state

    return optax.GradientTransformation(direction.init, update)


def _clip(conditioning: Conditioning, axes: Any) -> optax.GradientTransformation:
    match conditioning.clip:
        case "zclip":
            return zclip(conditioning.zclip)
        case "adagc":
            return adagc(conditioning.adagc, conditioning.clip_norm, axes)
        case "agc":
            return agc(conditioning.agc, axes)
        case "global_norm":
            return optax.clip_by_global_norm(conditioning.clip_norm) if conditioning.clip_norm else optax.identity()


def _rounding(config: Config) -> optax.GradientTransformation:
    match config.conditioning.parameter_rounding:
        case "stochastic":
            return stochastic_rounding(config.seed)
        case "kahan":
            return kahan_summation()
        case "nearest":
            return optax.identity()


def make_optimizer(config: Config, rate: optax.Schedule, axes: Any) -> optax.GradientTransformationExtraArgs:
    """Clip, direction, decay, learning rate, QK-clip; around it all, if asked for, a guard and then loss scaling.

    Args:
      rate: learning rate by step.
      axes: tree of logical axis names, one tuple for each parameter.

    Returns:
      An optimizer whose update also takes `loss`, the step's loss, and with QK-clip `logits_LH`. With loss scaling its
      state has the `scale` that the step multiplies by before it differentiates, and the gradients are divided by it
      already.
    """
    optimizer = config.optimizer
    match optimizer.name:
        case "adamw":
            direction = _adam(optimizer, axes)
        case "lion":
            direction = optax.scale_by_lion(optimizer.beta1, optimizer.beta2)
        case "muon":
            direction = _muon(optimizer, axes)
    decay = optimizer.weight_decay
    if optimizer.weight_decay_mode == "independent":
        decay /= optimizer.learning_rate
    matrices = jax.tree.map(is_matrix, axes, is_leaf=lambda node: isinstance(node, tuple))
    whole = optax.chain(
        _clip(config.conditioning, axes),
        # Ahead of the decay, which so shrinks a matrix by the same at any width.
        _parametrised(config, direction, axes),
        optax.add_decayed_weights(decay, matrices),
        optax.scale_by_learning_rate(rate),
    )
    if config.conditioning.qk_clip:
        whole = optax.chain(whole, qk_clip(config.conditioning.qk_clip))
    precision = policy(config.conditioning)
    if precision.params != precision.optimizer:
        whole = optax.chain(in_float32(whole), _rounding(config))
    guard, scaling = config.conditioning.guard, config.conditioning.loss_scaling
    if guard:
        whole = guarded(whole, guard)
    if scaling.kind != "none":
        whole = loss_scaled(whole, scaling, guarded=guard is not None)
    return optax.with_extra_args_support(whole)
