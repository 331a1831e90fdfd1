"""One transformer block: attention and an MLP, each added to the residual stream; the config says where norms stand.

No linear layer has a bias (PaLM, Chowdhery et al. 2022, section 2).

Dims: B batch, T time, S cached time, D d_model, H query heads, G key/value heads, K d_head, F d_ff.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from blobjax.compute.sharding import constrain, current_layout
from blobjax.conditioning.flow import Flow, attention_statistics, dead_fraction, measure, rms
from blobjax.conditioning.norms import RMSNorm, make_norm, normalise
from blobjax.conditioning.parametrisation import attention_scale, into_stream, residual
from blobjax.conditioning.products import Product, make_products
from blobjax.config.schema import Config
from blobjax.model.attention import attend, choose
from blobjax.model.initialisers import matrix
from blobjax.model.remat import BLOCK_INPUT
from blobjax.model.rope import rotate


class Places(NamedTuple):
    """What a block must know of the tokens besides their features."""

    segments_BT: jax.Array
    """int32; tokens of different segments do not see each other."""
    key_segments_BS: jax.Array
    """int32; the same of the keys: in training the same tokens, when decoding all the cache's slots."""
    start: jax.Array | int
    """Index among the keys of the first token; 0 in training."""
    cos_BTP: jax.Array
    sin_BTP: jax.Array
    """float32; the rotation of each pair of features (rope.rotation)."""
    probing: jax.Array | None = None
    """Bool; whether flow probes measure this pass. None: never."""


class Stored(NamedTuple):
    """Keys and values of one block for every slot of the cache; with a leading dim, of all blocks."""

    k_BSGK: jax.Array
    v_BSGK: jax.Array


def project(x_BTI: jax.Array, w_IO: jax.Array, product: Product, n_in: int = 1) -> jax.Array:
    """x · w over the last `n_in` dims of x, which are the first of w.

    Args:
      x_BTI: activations in the compute dtype.
      w_IO: a parameter.
      product: multiplies the two, in the format of this place in the model.
      n_in: how many dims are summed over: 2 for heads and features, otherwise 1.

    Returns:
      [B, T, O...] in the dtype of x.
    """
    layout = current_layout()
    if layout is not None and layout.ways("time") > 1:
        # B · T as one dim would interleave two mesh axes, which XLA can only do by gathering the activations.
        return product(x_BTI, w_IO, n_in)
    # As [tokens, in] · [in, out] matmuls the step takes 0.65 of the time on XLA's CPU backend, most of it saved in the
    # gradients of w; elsewhere it is the same program.
    features = math.prod(w_IO.shape[:n_in])
    flat = product(x_BTI.reshape(-1, features), w_IO.reshape(features, -1))
    return flat.reshape(*x_BTI.shape[: x_BTI.ndim - n_in], *w_IO.shape[n_in:])


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        m, c = config.model, config.conditioning
        heads, kv_heads = ("embed", "heads", "head"), ("embed", "kv_heads", "head")
        self.query = matrix(rngs, (m.d_model, m.n_heads, m.d_head), heads, m.d_model)
        self.key = matrix(rngs, (m.d_model, m.n_kv_heads, m.d_head), kv_heads, m.d_model)
        self.value = matrix(rngs, (m.d_model, m.n_kv_heads, m.d_head), kv_heads, m.d_model)
        self.out = matrix(
            rngs,
            (m.n_heads, m.d_head, m.d_model),
            ("heads", "head", "embed"),
            m.n_heads * m.d_head,
            into_stream(config),
        )
        self.products = make_products(config, "blocks/attention")
        self.query_norm = RMSNorm(m.d_head, c.norm_epsilon) if c.qk_norm else None
        self.key_norm = RMSNorm(m.d_head, c.norm_epsilon) if c.qk_norm else None
        self.scale = attention_scale(config)
        self.window = m.sliding_window
        self.cap = c.attention_soft_cap
        self.implementation = choose(config)
        self.recompute = config.compute.remat == "attention"

    def __call__(
        self, x_BTD: jax.Array, places: Places, stored: Stored | None
    ) -> tuple[jax.Array, Stored | None, Flow]:
        q_BTHK = project(x_BTD, self.query[...], self.products["query"])
        k_BTGK = project(x_BTD, self.key[...], self.products["key"])
        v_BTGK = project(x_BTD, self.value[...], self.products["value"])
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHK, k_BTGK = self.query_norm(q_BTHK), self.key_norm(k_BTGK)
        q_BTHK = rotate(q_BTHK, places.cos_BTP, places.sin_BTP)
        k_BTGK = rotate(k_BTGK, places.cos_BTP, places.sin_BTP)
        q_BTHK = constrain(q_BTHK, ("batch", "time", "heads", "head"))
        k_BTGK = constrain(k_BTGK, ("batch", "time", "kv_heads", "head"))
        v_BTGK = constrain(v_BTGK, ("batch", "time", "kv_heads", "head"))

        flow = measure(places.probing, self._statistics, q_BTHK, k_BTGK, places.segments_BT)

        def run(q_BTHK, k_BSGK, v_BSGK):
            return attend(
                q_BTHK,
                k_BSGK,
                v_BSGK,
                places.segments_BT,
                places.key_segments_BS,
                scale=self.scale,
                start=places.start,
                window=self.window,
                cap=self.cap,
                implementation=self.implementation if stored is None else "xla",
            )

        if stored is None:
            a_BTHK = (jax.checkpoint(run) if self.recompute else run)(q_BTHK, k_BTGK, v_BTGK)
        else:
            k_BSGK = jax.lax.dynamic_update_slice_in_dim(stored.k_BSGK, k_BTGK, places.start, axis=1)
            v_BSGK = jax.lax.dynamic_update_slice_in_dim(stored.v_BSGK, v_BTGK, places.start, axis=1)
            stored = Stored(k_BSGK, v_BSGK)
            a_BTHK = run(q_BTHK, *stored)
        a_BTHK = constrain(a_BTHK, ("batch", "time", "heads", "head"))
        return project(a_BTHK, self.out[...], self.products["out"], n_in=2), stored, flow

    def _statistics(self, q_BTHK: jax.Array, k_BTGK: jax.Array, segments_BT: jax.Array) -> Flow:
        return attention_statistics(q_BTHK, k_BTGK, segments_BT, self.scale, self.window)


class MLP(nnx.Module):
    """down(f(up x)), or down(f(gate x) ⊙ up x) for gated activations (Shazeer 2020)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        m = config.model
        into, out_of = ("embed", "mlp"), ("mlp", "embed")
        self.gate = matrix(rngs, (m.d_model, m.d_ff), into, m.d_model) if m.gated else None
        self.up = matrix(rngs, (m.d_model, m.d_ff), into, m.d_model)
        self.down = matrix(rngs, (m.d_ff, m.d_model), out_of, m.d_ff, into_stream(config))
        self.products = make_products(config, "blocks/mlp")
        self.activation = m.activation

    def __call__(self, x_BTD: jax.Array, probing: jax.Array | None) -> tuple[jax.Array, Flow]:
        up_BTF = project(x_BTD, self.up[...], self.products["up"])
        # GELU in its tanh form (Hendrycks & Gimpel 2016), as GPT-2 and Gemma have it.
        if self.gate is not None:
            gate_BTF = project(x_BTD, self.gate[...], self.products["gate"])
            f = jax.nn.silu if self.activation == "swiglu" else jax.nn.gelu
            hidden_BTF = f(gate_BTF) * up_BTF
        elif self.activation == "gelu":
            hidden_BTF = jax.nn.gelu(up_BTF)
        else:
            hidden_BTF = jnp.square(jax.nn.relu(up_BTF))
        hidden_BTF = constrain(hidden_BTF, ("batch", "time", "mlp"))
        flow = measure(probing, lambda h_BTF: {"dead_fraction": dead_fraction(h_BTF)}, hidden_BTF)
        return project(hidden_BTF, self.down[...], self.products["down"]), flow


class Norms(nnx.Module):
    """The norms of one sublayer, as `conditioning.norm_placement` places them."""

    def __init__(self, config: Config):
        features = config.model.d_model
        self.input = make_norm(config.conditioning, features, "input")
        self.output = make_norm(config.conditioning, features, "output")
        self.stream = make_norm(config.conditioning, features, "stream")
        self.residual = residual(config)

    def add(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        """The residual stream with a sublayer's output added."""
        return normalise(self.stream, x_BTD + self.residual * normalise(self.output, y_BTD))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), or with the norms in other places."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.attention_norms = Norms(config)
        self.attention = Attention(config, rngs)
        self.mlp_norms = Norms(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x_BTD: jax.Array, places: Places, stored: Stored | None = None
    ) -> tuple[jax.Array, Stored | None, Flow]:
        """One block.

        Args:
          x_BTD: the residual stream, compute dtype.
          places: segments and rotations of the same tokens.
          stored: when decoding, the keys and values of the tokens before these; when training None.

        Returns:
          The residual stream, `stored` with these tokens added (None where none was given), and this block's probes.
        """
        x_BTD = checkpoint_name(x_BTD, BLOCK_INPUT)
        mixed_BTD, stored, flow = self.attention(normalise(self.attention_norms.input, x_BTD), places, stored)
        x_BTD = constrain(self.attention_norms.add(x_BTD, mixed_BTD), ("batch", "time", "embed"))
        mixed_BTD, mlp_flow = self.mlp(normalise(self.mlp_norms.input, x_BTD), places.probing)
        x_BTD = constrain(self.mlp_norms.add(x_BTD, mixed_BTD), ("batch", "time", "embed"))
        flow |= mlp_flow | measure(places.probing, lambda x_BTD: {"residual_rms": rms(x_BTD)}, x_BTD)
        return x_BTD, stored, flow
