"""Attention: one function, three implementations, all of them somebody else's kernels.

  xla     plain einsums; runs everywhere, knows every option, keeps the [T, S] scores in memory.
  cudnn   cuDNN's flash attention through jax.nn.dot_product_attention; NVIDIA GPUs, 16-bit floats.
  splash  the Pallas flash attention that ships with jax; TPUs.

A position sees those at or before it, within its window if there is one, that belong to the same document.

Dims: B batch, T time of queries, S time of keys, H query heads, G key/value heads, R = H/G queries to a key, K d_head.
"""

import functools

import jax
import jax.numpy as jnp

from blobjax.compute import target
from blobjax.compute.sharding import current_layout
from blobjax.conditioning import soft_cap
from blobjax.conditioning.precision import policy
from blobjax.config import BadInputError
from blobjax.config.schema import Config


def choose(config: Config, platform: str | None = None) -> str:
    """The implementation a config gets on a platform (`cpu`, `gpu`, `tpu`; default: what programs are made for).

    Raises:
      BadInputError: one is asked for that cannot do what the rest of the config asks.
    """
    platform = platform or target.platform()
    wanted = config.compute.attention
    if wanted == "auto":
        native = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")
        return "xla" if _cannot(native, config, platform) else native
    reason = _cannot(wanted, config, platform)
    if reason:
        raise BadInputError(
            f"compute.attention={wanted} cannot be used here: {reason}; set compute.attention=auto or xla"
        )
    return wanted


def _cannot(implementation: str, config: Config, platform: str) -> str | None:
    """Why an implementation cannot do what a config asks, or None."""
    d_head, dtype = config.model.d_head, policy(config.conditioning).compute
    if implementation == "cudnn":
        if platform != "gpu":
            return f"it needs an NVIDIA GPU, and this is a {platform}"
        if target.platform() == "gpu" and not _has_flash_kernel(target.device()):
            return f"its kernel needs compute capability 8.0, and this is a {target.device().device_kind}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"it computes in 16-bit floats only, and conditioning.precision is {config.conditioning.precision}"
        if config.conditioning.attention_soft_cap:
            return "it knows no soft cap, and conditioning.attention_soft_cap is set"
        if d_head % 8 or d_head > 128:
            return f"it needs model.d_head to be a multiple of 8 up to 128, not {d_head}"
        if config.compute.mesh.context != 1:
            return "it cannot split a sequence, and compute.mesh.context is not 1"
    if implementation == "splash":
        if platform != "tpu":
            return f"it needs a TPU, and this is a {platform}"
        if dtype == jnp.float16:
            return "Pallas on TPUs has no float16, and conditioning.precision is float16"
        if config.data.seq_len % 128:
            return f"it works on blocks of 128 tokens, and data.seq_len is {config.data.seq_len}"
        if config.compute.mesh.context != 1:
            return "it is used on whole sequences only, and compute.mesh.context is not 1"
    return None


def _has_flash_kernel(device: jax.Device) -> bool:
    """Whether cuDNN's attention runs on a GPU: Ampere or newer. (ROCm's devices are called `gpu` as well.)"""
    capability = str(getattr(device, "compute_capability", "0"))
    return "NVIDIA" in device.device_kind and float(capability or 0) >= 8.0


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    segments_BT: jax.Array,
    segments_BS: jax.Array,
    *,
    scale: float | None = None,
    start: jax.Array | int = 0,
    window: int = 0,
    cap: float = 0.0,
    implementation: str = "xla",
) -> jax.Array:
    """softmax(scale · q·k) v over the keys each query may see.

    Args:
      q_BTHK, k_BSGK, v_BSGK: the compute dtype; H is a multiple of G, query head h reads kv head h // (H/G).
      segments_BT, segments_BS: int32 document numbers of queries and keys; only equal ones see each other.
      scale: of q·k (parametrisation.attention_scale); None: 1 / sqrt(K).
      start: index among the keys of the first query; not 0 when decoding with a cache (xla only).
      window: tokens a position may look back to, itself included; 0: all.
      cap: soft cap of the scores; 0: none.
      implementation: as `choose` says.

    Returns:
      [B, T, H, K] in the dtype of v; scores and softmax are computed in float32.
    """
    scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "cudnn":
        return _cudnn(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, window)
    if implementation == "splash":
        return _splash(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, window, cap)
    return _xla(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, start, window, cap)


def _xla(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, start, window, cap) -> jax.Array:
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    # Heads before time: as batched matmuls of contiguous matrices XLA's CPU backend is 1.3 times faster.
    q_BGRTK = jnp.moveaxis(q_BTHK.reshape(B, T, G, H // G, K), 1, 3) * scale
    k_BGSK, v_BGSK = jnp.swapaxes(k_BSGK, 1, 2), jnp.swapaxes(v_BSGK, 1, 2)

    def rows(first: int, last: int) -> jax.Array:
        """Outputs of queries first to last, from the keys that any of them may see."""
        low, high = (max(first - window + 1, 0) if window else 0, last) if blocks > 1 else (0, S)
        scores_BGRTS = jnp.einsum(
            "bgrtk,bgsk->bgrts",
            q_BGRTK[..., first:last, :],
            k_BGSK[:, :, low:high],
            preferred_element_type=jnp.float32,
        )
        behind_TS = start + jnp.arange(first, last)[:, None] - jnp.arange(low, high)[None, :]
        seen_TS = (behind_TS >= 0) & (behind_TS < window) if window else behind_TS >= 0
        seen_BTS = seen_TS & (segments_BT[:, first:last, None] == segments_BS[:, None, low:high])
        # A finite floor: with -inf, a row that sees nothing would be 0/0 and its gradient NaN.
        scores_BGRTS = jnp.where(seen_BTS[:, None, None], soft_cap(scores_BGRTS, cap), -1e30)
        weights_BGRTS = jax.nn.softmax(scores_BGRTS, axis=-1).astype(v_BSGK.dtype)
        return jnp.einsum("bgrts,bgsk->bgrtk", weights_BGRTS, v_BGSK[:, :, low:high])

    blocks = _query_blocks(T, S)
    size = T // blocks
    out_BGRTK = jnp.concatenate([rows(i * size, (i + 1) * size) for i in range(blocks)], axis=3)
    return jnp.moveaxis(out_BGRTK, 3, 1).reshape(B, T, H, K)


def _query_blocks(T: int, S: int) -> int:
    """In how many blocks of queries to compute attention, each against the keys up to its own end.

    Four blocks skip 3/8 of the square, which the causal mask would throw away (and more with a window), and a block's
    scores are more likely to stay in cache: forward and backward 1.9 times faster on a CPU at T = 256, where two blocks
    gave 1.5 and eight no more than four. Not where a sequence is split over devices, which blocks would cut across.
    """
    layout = current_layout()
    whole = layout is None or layout.ways("time") == 1
    return 4 if whole and T == S and T % 4 == 0 and T >= 256 else 1


def _cudnn(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, window) -> jax.Array:
    # Documents go in as a mask, which jax hands to cuDNN as a bias of B·T·S 16-bit floats: far less than xla's scores,
    # which have a head dim too. (cuDNN's own packed layout is not reachable through jax's public function.)
    same_B1TS = (segments_BT[:, :, None] == segments_BS[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        mask=same_B1TS,
        scale=scale,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )


@functools.lru_cache
def _splash_kernel(heads: int, length: int, window: int, cap: float, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    shape = (length, length)
    mask = splash.LocalMask(shape, (window - 1, 0), 0) if window else splash.CausalMask(shape)
    with jax.ensure_compile_time_eval():  # the kernel keeps its mask as arrays, which must not be tracers when cached
        return splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * heads), attn_logits_soft_cap=cap or None, interpret=interpret
        )


def _splash(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS, scale, window, cap, interpret=False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    def one_device(q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS):
        kernel = _splash_kernel(q_BTHK.shape[2], q_BTHK.shape[1], window, cap, interpret)
        q_BHTK, k_BGSK, v_BGSK = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
        segments = SegmentIds(segments_BT, segments_BS)
        out_BHTK = jax.vmap(kernel)(q_BHTK * scale, k_BGSK, v_BGSK, segments)
        return jnp.swapaxes(out_BHTK, 1, 2).astype(v_BSGK.dtype)

    args = (q_BTHK, k_BSGK, v_BSGK, segments_BT, segments_BS)
    layout = current_layout()
    if layout is None or layout.mesh.size == 1:
        return one_device(*args)
    # XLA cannot split a Pallas kernel by itself: each device is given its own rows and heads.
    axes = [("batch", None, "heads", None), *[("batch", None, "kv_heads", None)] * 2, *[("batch", None)] * 2]
    specs = tuple(layout.spec(names, x.shape) for names, x in zip(axes, args, strict=True))
    if specs[0][2] != specs[1][2]:
        # Fewer kv heads than devices: kv heads are whole on each, so each query head brings its own copy.
        repeats = q_BTHK.shape[2] // k_BSGK.shape[2]
        args = (q_BTHK, *(jnp.repeat(x, repeats, axis=2) for x in (k_BSGK, v_BSGK)), segments_BT, segments_BS)
        specs = (specs[0], specs[0], specs[0], *specs[3:])
    return jax.shard_map(one_device, mesh=layout.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*args)
