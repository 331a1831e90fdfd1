"""Flow probes: a few scalars of every block that show where compute flows and where it explodes, collapses or drifts.

They are measured inside the step, behind a condition that the device decides, so one compiled program serves the steps
that probe and those that do not; and they are outside of differentiation, so that they change no gradient.

Sources: attention logits and the output's log Z as early signs of divergence, Wortsman et al. 2023 (Small-scale proxies
for large-scale Transformer training instabilities, sections 3.1, 3.4); attention entropy, Zhai et al. 2023.
Dims: B batch, T time of queries, S time of keys, H query heads, G key/value heads, R = H/G, K d_head, F d_ff, L layers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from blobjax.compute import target
from blobjax.compute.sharding import current_layout
from blobjax.conditioning.formats import FORMATS, Format, quantise, saturated
from blobjax.conditioning.precision import operand_format, policy
from blobjax.config.schema import Conditioning

Flow = dict[str, jax.Array]
"""Name of a probe to its value: a scalar or one for each head, and with a leading dim as many for each layer."""

# How a probe of the whole batch comes from those of its parts; a mean where nothing is said.
_OVER_PARTS: dict[str, Callable[..., jax.Array]] = {
    "attention_logit_max": jnp.max,
    "log_z_mean": jnp.sum,
}

# Queries whose scores against all keys are in memory at once.
_QUERY_BLOCK = 128


def measure(probing: jax.Array | None, statistics: Callable[..., Any], *arrays: Any) -> Any:
    """statistics(*arrays) where `probing` is true, zeros where it is false, and nothing at all where it is None.

    (On a mesh of virtual CPU devices they are measured where it is false as well.)

    Args:
      probing: bool scalar, the same on every device; None in a program that never probes.
      statistics: returns a dict of float32 arrays; pays its price on probing steps only.
      arrays: pytrees of arrays, taken as constants by differentiation.
    """
    if probing is None:
        return {}
    arrays = jax.lax.stop_gradient(arrays)
    layout = current_layout()
    if layout is not None and layout.mesh.size > 1 and target.platform() == "cpu":
        # Measured at every step. XLA's CPU backend does not order collectives inside a condition with those outside, so
        # that the threads of several devices waited in two all-reduces for each other, for ever (jaxlib 0.10.2).
        return statistics(*arrays)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(statistics, *arrays))
    return jax.lax.cond(probing, statistics, lambda *_: zeros, *arrays)


# Groups of parameters, by the model's names, and what the paths of their products with weights begin with; an
# embedding is looked up, not multiplied.
_GROUPS = {
    "embedding": (("embedding", "embedding_norm"), None),
    "blocks": (("blocks",), "blocks/"),
    "output": (("final_norm", "unembedding"), "output"),
}


def products_of(group: str, products: Sequence[str]) -> list[str]:
    """Paths of the products with weights of the `embedding`, the `blocks` or the `output`, of those of a model.

    The embedding has none: its path is "", which stands for what `conditioning.precision` says.
    """
    start = _GROUPS[group][1]
    return [""] if start is None else [path for path in products if path.startswith(start)]


def probe_format(conditioning: Conditioning, paths: Sequence[str] = ("",)) -> Format | None:
    """The number format that probes ask about; None where everything is float32.

    Args:
      paths: of the products that it is asked of (`products_of`). Where they differ it is the narrowest of theirs.
    """
    if conditioning.probe_format != "compute":
        return replace(FORMATS[conditioning.probe_format], scale_rounding=conditioning.scale_rounding)
    formats = [_computes_in(conditioning, path) for path in paths]
    narrow = lambda to: (to.mantissa_bits, -to.min_exponent)  # noqa: E731
    return min((to for to in formats if to is not None), key=narrow, default=None)


def _computes_in(conditioning: Conditioning, path: str) -> Format | None:
    precision = policy(conditioning, path)
    if precision.matmul is not None:
        return operand_format(precision.matmul.forward, conditioning)
    return FORMATS.get(jnp.dtype(precision.compute).name)  # type: ignore[call-overload]


def flushes_gradients(conditioning: Conditioning, paths: Sequence[str] = ("",)) -> bool:
    """Whether the backward pass of these products may round to zero what is not zero: in formats narrower in range than
    float32, which bfloat16 is not.

    Args:
      paths: of the products (`products_of`).
    """
    # Gradients between layers are of the model's own format, whatever the products are.
    between = jnp.dtype(policy(conditioning).compute) == jnp.float16
    return between or any(policy(conditioning, path).matmul is not None for path in paths)


def over_parts(flow: Flow) -> Flow:
    """Probes of a batch from those of its parts, which are stacked along a leading dim."""
    return {name: _OVER_PARTS.get(name, jnp.mean)(parts, axis=0) for name, parts in flow.items()}


def rms(x: jax.Array, axis: tuple[int, ...] | None = None) -> jax.Array:
    """Root mean square, float32."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axis))


def attention_statistics(
    q_BTHK: jax.Array, k_BSGK: jax.Array, segments_BT: jax.Array, scale: float, window: int = 0
) -> Flow:
    """`attention_logit_max`, [H], the largest absolute logit of each query head over all pairs that see each other; and
    `attention_entropy`, nats, the mean over heads and queries.

    Both are of the plain logits: without a soft cap, and whatever kernel attention itself runs in.

    Args:
      q_BTHK, k_BSGK: as they enter attention: normalised and rotated; T = S.
      segments_BT: int32 document numbers.
      scale: what q · k is multiplied by.
      window: tokens a position may look back to, itself included; 0: all.
    """

    def both(scores_BGRQS: jax.Array, seen_BQS: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen_B11QS = seen_BQS[:, None, None]
        log_p = jax.nn.log_softmax(jnp.where(seen_B11QS, scores_BGRQS, -1e30), axis=-1)
        entropy = -jnp.sum(jnp.where(seen_B11QS, jnp.exp(log_p) * log_p, 0), axis=-1)
        return jnp.max(jnp.where(seen_B11QS, jnp.abs(scores_BGRQS), 0), axis=(0, 3, 4)), jnp.mean(entropy)

    largest_GR, entropy = _over_query_blocks(both, q_BTHK, k_BSGK, segments_BT, scale, window)
    return {"attention_logit_max": jnp.max(largest_GR, axis=0).reshape(-1), "attention_entropy": jnp.mean(entropy)}


def dead_fraction(hidden_BTF: jax.Array) -> jax.Array:
    """Share of an MLP's hidden units that no token of the batch makes larger than 1% of the layer's RMS."""
    largest_F = jnp.max(jnp.abs(hidden_BTF.astype(jnp.float32)), axis=(0, 1))
    return jnp.mean((largest_F <= 0.01 * rms(hidden_BTF)).astype(jnp.float32))


def parameter_statistics(
    params: Any, grads: Any, updates: Any, to: Format | None, flushes: bool = False, by_row: bool = False
) -> Flow:
    """How a group of parameters, their gradients and their updates stand to each other and to a number format.

    `param_rms`, `grad_rms`; `grad_zero_fraction`, the share of the gradients that are exactly zero. What an update did,
    after the sum was rounded to the parameters' format: `update_ratio`, the RMS of the change relative to that of the
    parameters; `moved_fraction`, the share of parameters that changed; `update_lost_fraction`, the share of the updates
    that are not zero and changed nothing.

    Where a format is given `grad_flush_fraction`, the share of the gradients that are zero in it, and
    `grad_saturate_fraction`, the share that overflow. Both are of the gradients that are not zero; where products may
    flush them, of all but those of rows and columns of a matrix that have none, as dead units have.
    `weight_sqnr_db` is the signal-to-quantisation-noise ratio of the matrices in decibels (infinite where nothing is
    lost).

    Args:
      params, grads, updates: trees of the same arrays, of one layer; computed in float32.
      to: the format that is asked about. Its blocks lie along the first dim of a matrix.
      flushes: whether a zero may be what a product rounded to zero (`flushes_gradients`), and so counts as flushed.
      by_row: whether rows of a matrix without any gradient are left out: tokens that are not in the batch.
    """

    def total(of: Callable[..., jax.Array], *trees: Any) -> jax.Array:
        leaves = zip(*(jax.tree.leaves(tree) for tree in trees), strict=True)
        sums = [jnp.sum(of(*(x.astype(jnp.float32) for x in same)), dtype=jnp.float32) for same in leaves]
        return sum(sums, jnp.float32(0))

    def alive(g: jax.Array, dims: Sequence[int]) -> jax.Array:
        """Which gradients share their place along each of these dims with one that is not zero; all where none is."""
        found = jnp.ones(g.shape, bool)
        for dim in dims if g.ndim > 1 else ():
            some = jnp.any(g != 0, axis=tuple(d for d in range(g.ndim) if d != dim), keepdims=True)
            found &= some | ~jnp.any(some)
        return found

    def reached(g: jax.Array) -> jax.Array:
        """Which gradients could be other than zero."""
        return alive(g, [0] if by_row else [])

    def flushable(g: jax.Array) -> jax.Array:
        """Which gradients a product may have rounded to zero where they are."""
        return alive(g, [0] if by_row else range(g.ndim))

    moved = jax.tree.map(_change, params, updates)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    param_rms, grad_rms, moved_rms = (jnp.sqrt(total(jnp.square, tree) / count) for tree in (params, grads, moved))
    updated = jnp.maximum(total(lambda u: u != 0, updates), 1)
    found = {
        "param_rms": param_rms,
        "grad_rms": grad_rms,
        "grad_zero_fraction": total(lambda g: reached(g) & (g == 0), grads) / total(reached, grads),
        "update_ratio": moved_rms / param_rms,
        "moved_fraction": total(lambda m: m != 0, moved) / count,
        "update_lost_fraction": total(lambda u, m: (u != 0) & (m == 0), updates, moved) / updated,
    }
    if to is not None:
        counted = flushable if flushes else (lambda g: g != 0)
        counts = jnp.maximum(total(counted, grads), 1)
        found["grad_flush_fraction"] = total(lambda g: counted(g) & (quantise(g, to, 0) == 0), grads) / counts
        found["grad_saturate_fraction"] = total(lambda g: saturated(g, to, 0), grads) / counts
        if matrices := [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]:
            found["weight_sqnr_db"] = sqnr_db(matrices, [quantise(w, to, 0) for w in matrices])
    return found


def _change(p: jax.Array, u: jax.Array) -> jax.Array:
    """What adding an update changes a parameter by once the sum is rounded to its format; float32."""
    old, kept = p.astype(jnp.float32), jnp.finfo(p.dtype)
    # Not astype: XLA may compute bfloat16(x) - y in one go, in float32.
    return jax.lax.reduce_precision(old + u.astype(jnp.float32), kept.nexp, kept.nmant) - old


def of_update(
    probing: jax.Array | None,
    params: Any,
    grads: Any,
    updates: Any,
    conditioning: Conditioning,
    products: Sequence[str],
) -> dict[str, Flow]:
    """`parameter_statistics` of the `embedding`, the `blocks` (arrays [L]) and the `output`, where it has parameters.

    Args:
      probing: as in `measure`.
      params, grads, updates: the model's, as nested dicts; params as they were before the update.
      products: paths of the model's products with weights (`Model.products`), whose formats each group is asked about.
    """
    if probing is None:
        return {}

    def statistics(*trees: Any) -> Any:
        found = {}
        for group, (names, _) in _GROUPS.items():
            parts = [{name: tree[name] for name in names if name in tree} for tree in trees]
            paths = products_of(group, products)
            if group == "embedding" and "unembedding" not in params:
                paths += products_of("output", products)  # tied: it is the weights of the output too
            to, flushes = probe_format(conditioning, paths), flushes_gradients(conditioning, paths)
            one = functools.partial(parameter_statistics, to=to, flushes=flushes, by_row=group == "embedding")
            if jax.tree.leaves(parts[0]):
                found[group] = jax.vmap(one)(*parts) if group == "blocks" else one(*parts)
        return found

    return measure(probing, statistics, params, grads, updates)


def sqnr_db(signal: Any, rounded: Any) -> jax.Array:
    """Signal-to-quantisation-noise ratio of a tree of arrays: 10 log10(sum of squares / sum of squared errors)."""

    def power(tree: Any) -> jax.Array:
        sums = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
        return sum(sums, jnp.float32(0))

    noise = power(jax.tree.map(lambda x, r: x.astype(jnp.float32) - r.astype(jnp.float32), signal, rounded))
    return 10 * jnp.log10(power(signal) / noise)


def _over_query_blocks(
    statistics: Callable[[jax.Array, jax.Array], Any],
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    segments_BT: jax.Array,
    scale: float,
    window: int,
) -> Any:
    """statistics(scores, which pairs see each other) for one block of queries after the other, stacked."""
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    layout = current_layout()
    # A sequence that is split over devices is taken whole: blocks would cut across.
    whole = layout is not None and layout.ways("time") > 1
    size = T if whole or T % _QUERY_BLOCK else _QUERY_BLOCK
    behind_S = jnp.arange(T)

    def one(first: jax.Array) -> Any:
        q_BQHK = jax.lax.dynamic_slice_in_dim(q_BTHK, first, size, axis=1)
        segments_BQ = jax.lax.dynamic_slice_in_dim(segments_BT, first, size, axis=1)
        q_BQGRK = q_BQHK.reshape(B, size, G, H // G, K)
        scores_BGRQS = scale * jnp.einsum("bqgrk,bsgk->bgrqs", q_BQGRK, k_BSGK, preferred_element_type=jnp.float32)
        behind_QS = first + jnp.arange(size)[:, None] - behind_S[None, :]
        seen_QS = (behind_QS >= 0) & (behind_QS < window) if window else behind_QS >= 0
        return statistics(scores_BGRQS, seen_QS & (segments_BQ[:, :, None] == segments_BT[:, None, :]))

    return jax.lax.map(one, jnp.arange(0, T, size))
