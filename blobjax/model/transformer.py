"""The decoder-only transformer.

Dims: B batch, T time, D d_model, V vocabulary, S cache slots, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from blobjax.compute import target
from blobjax.compute.sharding import constrain
from blobjax.conditioning import soft_cap
from blobjax.conditioning.flow import Flow, measure, rms
from blobjax.conditioning.norms import make_norm, normalise
from blobjax.conditioning.parametrisation import output_deviation, readout
from blobjax.conditioning.precision import policy
from blobjax.conditioning.products import make_products
from blobjax.config.schema import Config
from blobjax.model.block import Block, Places, Stored
from blobjax.model.initialisers import embedding, matrix
from blobjax.model.remat import remat_block
from blobjax.model.rope import rotation


class Cache(NamedTuple):
    """What decoding remembers of the tokens so far."""

    stored: Stored
    """Keys and values [L, B, S, G, K] of every slot."""
    segments_BS: jax.Array
    """int32 segment of the token in each slot; -1 where there is none yet, which is nobody's segment."""
    length: jax.Array
    """int32 scalar; slots filled so far, the same in every row."""


class Transformer(nnx.Module):
    """Token embedding, `n_layers` blocks, a final norm and an output projection.

    The blocks are one Block whose every parameter has a leading "layers" dim, whether they are scanned or unrolled.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs):
        m = config.model
        # Sections, not the whole config: module definitions are compared and hashed by jit.
        self.shape = m
        self.precision = policy(config.conditioning)
        self.final_soft_cap = config.conditioning.final_soft_cap
        self.readout = readout(config)
        self.products = make_products(config)
        self.remat = config.compute.remat
        self.scanned = scans(config)
        self.embedding = embedding(rngs, m.vocab_size, m.d_model)
        self.embedding_norm = make_norm(config.conditioning, m.d_model, "embedding")
        self.blocks = _stack(config, rngs)
        self.final_norm = make_norm(config.conditioning, m.d_model, "final")
        self.unembedding = (
            None
            if m.tie_embeddings
            else matrix(rngs, (m.d_model, m.vocab_size), ("embed", "vocab"), m.d_model, output_deviation(config))
        )

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """[B, T, V] float32 logits; arguments as for `hidden`."""
        logits_BTV = self.logits(self.hidden(tokens_BT, segments_BT, positions_BT)[0])
        return constrain(logits_BTV, ("batch", "time", "vocab"))

    def hidden(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        probing: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, Flow]]:
        """The residual stream after the final norm.

        Args:
          tokens_BT: int32 token ids.
          segments_BT: int32 document number of each token; 0: padding.
          positions_BT: int32 position of each token within its document.
          probing: bool scalar, whether flow probes measure this pass; None: never.

        Returns:
          [B, T, D] in the compute dtype, and probes of the `embedding` and the `blocks`, the latter arrays [L].
        """
        places = Places(segments_BT, segments_BT, 0, *self._rotation(positions_BT), probing)
        x_BTD = self._embed(tokens_BT)
        embedded = measure(probing, lambda x_BTD: {"residual_rms": rms(x_BTD)}, x_BTD)
        x_BTD, _, blocks = self._run_blocks(x_BTD, places, None)
        return normalise(self.final_norm, x_BTD), {"embedding": embedded, "blocks": blocks}

    def decode(
        self, tokens_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """As `hidden`, for tokens that follow those in a cache.

        Returns:
          [B, T, D], and the cache with these tokens added.
        """
        length = tokens_BT.shape[1]
        key_segments_BS = jax.lax.dynamic_update_slice_in_dim(cache.segments_BS, segments_BT, cache.length, axis=1)
        places = Places(segments_BT, key_segments_BS, cache.length, *self._rotation(positions_BT))
        x_BTD, stored, _ = self._run_blocks(self._embed(tokens_BT), places, cache.stored)
        assert stored is not None
        return normalise(self.final_norm, x_BTD), Cache(stored, key_segments_BS, cache.length + length)

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache for `slots` tokens of each of `rows` sequences."""
        m = self.shape
        zeros = jnp.zeros((m.n_layers, rows, slots, m.n_kv_heads, m.d_head), self.precision.compute)
        return Cache(Stored(zeros, zeros), jnp.full((rows, slots), -1, jnp.int32), jnp.int32(0))

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        # The table is made whole along embed before the look-up, as every weight is before its matmul: rows looked up
        # in pieces of their features come out laid over the mesh the wrong way round, for all tokens at once.
        table_VD = constrain(self.embedding[...], ("vocab", None)).astype(self.precision.gradient)
        # Cast after the look-up: its backward pass adds up the gradients of all tokens of a word, in the format that
        # was looked up in. In bfloat16 a sum stands still once it is 256 times what is added to it.
        x_BTD = normalise(self.embedding_norm, table_VD[tokens_BT].astype(self.precision.compute))
        return constrain(x_BTD, ("batch", "time", "embed"))

    def _rotation(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rotation(self.shape.rope, self.shape.d_head, positions_BT)

    def _run_blocks(
        self, x_BTD: jax.Array, places: Places, stored: Stored | None
    ) -> tuple[jax.Array, Stored | None, Flow]:
        graphdef, params = nnx.split(self.blocks)

        def run_block(params, x_BTD, places, stored):
            return nnx.merge(graphdef, params)(x_BTD, places, stored)

        if stored is None:
            run_block = remat_block(run_block, self.remat)

        def step(x_BTD, layer):
            params, stored = layer
            x_BTD, *rest = run_block(params, x_BTD, places, stored)
            return x_BTD, rest

        x_BTD, (stored, flow) = jax.lax.scan(step, x_BTD, (params, stored), unroll=not self.scanned)
        return x_BTD, stored, flow

    def output_weights(self) -> jax.Array:
        """[D, V] the output projection, in float32: the loss may add up its gradient chunk by chunk, in this format."""
        w_DV = self.embedding[...].T if self.unembedding is None else self.unembedding[...]
        return w_DV.astype(self.precision.gradient)

    def logits(self, x_BTD: jax.Array, w_DV: jax.Array | None = None) -> jax.Array:
        """Scores of every token of the vocabulary, soft-capped.

        Args:
          x_BTD: what `hidden` returned; any leading dims.
          w_DV: `output_weights()`, where the caller has laid them out for itself.

        Returns:
          [..., V] float32.
        """
        w_DV = self.output_weights() if w_DV is None else w_DV
        logits_BTV = self.products["output"](x_BTD, w_DV, result=self.precision.output)
        return soft_cap(self.readout * logits_BTV, self.final_soft_cap)


UNROLLED_AT_MOST = 24
"""Layers that `auto` unrolls on a CPU, where a step then takes 0.78 of the time, for 2 s more of compilation at 24."""


def scans(config: Config) -> bool:
    """Whether layers run as a loop over one compiled block (`compute.scan_layers`)."""
    if config.compute.scan_layers != "auto":
        return config.compute.scan_layers
    return target.platform() != "cpu" or config.model.n_layers > UNROLLED_AT_MOST


def logical_axes(params: nnx.State) -> dict:
    """The logical axis names of every parameter.

    Args:
      params: `nnx.state(model)` or the second half of `nnx.split(model)`; arrays or their abstract shapes.

    Returns:
      Nested dicts as of `nnx.to_pure_dict(params)`, with a tuple of names (one a dim, None for never sharded) in place
      of each array. A tuple is itself a pytree to jax: map over it with the parameters' tree first.
    """
    return nnx.to_pure_dict(jax.tree.map(lambda p: p.replace(p.get_metadata("axes")), params, is_leaf=_is_param))


def _is_param(x: object) -> bool:
    return isinstance(x, nnx.Param)


def _stack(config: Config, rngs: nnx.Rngs) -> Block:
    """`n_layers` blocks from as many keys, as one Block with a leading "layers" dim on every parameter."""

    def init(key):
        return nnx.split(Block(config, nnx.Rngs(params=key)))

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(params=0))))
    params = jax.vmap(lambda key: init(key)[1])(jax.random.split(rngs.params(), config.model.n_layers))
    stacked = jax.tree.map(
        lambda p: p.replace(p[...], axes=("layers", *p.get_metadata("axes"))), params, is_leaf=_is_param
    )
    return nnx.merge(graphdef, stacked)
