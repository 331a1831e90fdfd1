"""Clipping of gradients that adapts to what gradients of this run are like, and of Adam's steps.

Each is an optax transformation whose few scalars are part of the optimizer state, and so of a checkpoint. Norms are of
whole arrays, however they are split over devices, so that every device decides the same. A norm that is not finite
passes through and enters no statistic: there is nothing to learn from it, and 0 · NaN would still be NaN.

A parameter with a leading "layers" dim is as many tensors as it has layers.

Sources: ZClip, Kumar et al. 2025; AdaGC, Wang et al. 2025; AGC, Brock et al. 2021; StableAdamW, Wortsman et al. 2023b
(Stable and low-precision training for large-scale vision-language models).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from blobjax.config import schema


class ZClipState(NamedTuple):
    """What is known of the global norms so far."""

    seen: jax.Array
    """int32, norms seen."""
    mean: jax.Array
    variance: jax.Array
    """float32; their mean and variance, plain during the warm-up, exponentially weighted after it."""


def zclip(settings: schema.ZClip) -> optax.GradientTransformation:
    """A norm z > z_score standard deviations above the mean becomes mean + z_score² / z · deviation.

    So the further out a norm is, the closer to the mean it is brought ("reciprocal clipping"). What enters the
    statistics is the norm after clipping.
    """

    def init(params: Any) -> ZClipState:
        return ZClipState(jnp.zeros((), jnp.int32), jnp.float32(0), jnp.float32(0))

    def update(grads: Any, state: ZClipState, params: Any = None) -> tuple[Any, ZClipState]:
        norm = optax.tree.norm(grads)
        deviation = jnp.sqrt(state.variance)
        z = (norm - state.mean) / (deviation + 1e-6)
        outlier = jnp.isfinite(norm) & (state.seen >= settings.warmup) & (z > settings.z_score)
        clipped = jnp.where(outlier, state.mean + settings.z_score**2 / z * deviation, norm)
        scale = jnp.where(outlier, clipped / norm, 1.0)

        # Plain mean and variance of n norms are a weighted average of n - 1 and the newest (Welford 1962).
        keep = jnp.where(state.seen < settings.warmup, state.seen / (state.seen + 1), settings.decay)
        mean = keep * state.mean + (1 - keep) * clipped
        plain = keep * (state.variance + (1 - keep) * jnp.square(clipped - state.mean))
        weighted = keep * state.variance + (1 - keep) * jnp.square(clipped - mean)
        variance = jnp.where(state.seen < settings.warmup, plain, weighted)
        known = ZClipState(state.seen + 1, mean, variance)
        state = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(norm), new, old), known, state)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), state

    return optax.GradientTransformation(init, update)


class AdaGCState(NamedTuple):
    """What is known of each tensor's norms so far."""

    seen: jax.Array
    """int32, steps seen."""
    norms: Any
    """float32, one a tensor: its smallest norm during the warm-up, then a running mean; infinite before the first."""


def adagc(settings: schema.AdaGC, clip_norm: float, axes: Any) -> optax.GradientTransformation:
    """Bounds each tensor's norm by `ratio` times its running mean; by the global norm during the warm-up.

    Args:
      clip_norm: largest global norm during the warm-up; 0: any.
      axes: logical axis names of each parameter, a tree of tuples.
    """

    def init(params: Any) -> AdaGCState:
        norms = jax.tree.map(lambda p, a: jnp.full(_tensors(p, a), jnp.inf, jnp.float32), params, axes)
        return AdaGCState(jnp.zeros((), jnp.int32), norms)

    def update(grads: Any, state: AdaGCState, params: Any = None) -> tuple[Any, AdaGCState]:
        warming = state.seen < settings.warmup
        total = optax.tree.norm(grads)
        globally = jnp.minimum(1.0, clip_norm / total) if clip_norm else jnp.float32(1)

        def one(g: jax.Array, axes: tuple[str | None, ...], known: jax.Array) -> tuple[jax.Array, jax.Array]:
            norm = jnp.sqrt(_over_tensor(jnp.square(g.astype(jnp.float32)), axes, jnp.sum))
            # A tensor whose gradients were all 0 so far has no history to be measured against.
            own = jnp.where((norm > 0) & (known > 0), jnp.minimum(1.0, settings.ratio * known / norm), 1.0)
            scale = jnp.where(warming, globally, own)
            clipped = norm * scale
            seen = jnp.where(
                warming, jnp.minimum(known, clipped), settings.decay * known + (1 - settings.decay) * clipped
            )
            seen = jnp.where(jnp.isfinite(total), seen, known)
            return (g * _spread(scale, g)).astype(g.dtype), seen

        pairs = jax.tree.map(one, grads, axes, state.norms)
        clipped, norms = jax.tree.transpose(jax.tree.structure(grads), None, pairs)
        return clipped, AdaGCState(state.seen + jnp.isfinite(total), norms)

    return optax.GradientTransformation(init, update)


def agc(settings: schema.AGC, axes: Any) -> optax.GradientTransformation:
    """Bounds each output unit's gradient by `ratio` times the norm of that unit's weights (section 4).

    A unit is one output of a matrix, its norm that of the weights that feed it; a vector is one unit, as in the paper's
    code. Tables of the vocabulary are left alone: the paper spares the final linear layer, which is the embedding too
    where the two are tied.

    Args:
      axes: logical axis names of each parameter, a tree of tuples.
    """

    def one(g: jax.Array, p: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        if "vocab" in axes:
            return g
        clip = optax.adaptive_grad_clip(settings.ratio, settings.epsilon, fan_in(axes))
        return clip.update(g, optax.EmptyState(), p)[0]

    return optax.stateless(lambda grads, params: jax.tree.map(one, grads, params, axes))


def fan_in(axes: tuple[str | None, ...]) -> tuple[int, ...]:
    """The dims that one output of a parameter sums over: a matrix's input dims, all dims of a layer's vector."""
    dims = [dim for dim, axis in enumerate(axes) if axis != "layers"]
    if len(dims) < 2:
        return tuple(dims)
    # Projections out of the residual stream have "embed" first; those back into it, last.
    return tuple(dims[:1] if axes[dims[0]] == "embed" else dims[:-1])


def scale_by_stable_adam(beta1: float, beta2: float, epsilon: float, axes: Any) -> optax.GradientTransformation:
    """Adam's direction, divided by max(1, sqrt(mean(g² / max(v, ε²)))) for each tensor (algorithm 2).

    v is the bias-corrected second moment. Where it has fallen behind, as after a stretch of small gradients, the ratio
    is large and the step small; otherwise it is Adam's.

    Args:
      axes: logical axis names of each parameter, a tree of tuples.
    """
    adam = optax.scale_by_adam(beta1, beta2, epsilon)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = adam.update(grads, state, params)
        correction = 1 - beta2 ** state.count.astype(jnp.float32)

        def one(u: jax.Array, g: jax.Array, v: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
            ratio = jnp.square(g.astype(jnp.float32)) / jnp.maximum(v / correction, epsilon**2)
            rms = jnp.sqrt(_over_tensor(ratio, axes, jnp.mean))
            return u / _spread(jnp.maximum(1.0, rms), u)

        return jax.tree.map(one, updates, grads, state.nu, axes), state

    return optax.GradientTransformation(adam.init, update)


def _tensors(p: jax.Array, axes: tuple[str | None, ...]) -> tuple[int, ...]:
    """The shape of one number for each tensor in a parameter."""
    return p.shape[:1] if axes[:1] == ("layers",) else ()


def _over_tensor(x: jax.Array, axes: tuple[str | None, ...], reduce: Any) -> jax.Array:
    """A sum or mean over all dims of each tensor in a parameter."""
    return reduce(x, axis=tuple(range(len(_tensors(x, axes)), x.ndim)))


def _spread(scale: jax.Array, like: jax.Array) -> jax.Array:
    """One number for each tensor, made to multiply the parameter."""
    return scale.reshape(scale.shape + (1,) * (like.ndim - scale.ndim))
