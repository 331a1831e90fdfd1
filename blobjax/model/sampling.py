"""Sampling: one pass over the prompt, then a compiled loop that draws a token at a time with a key/value cache.

Dims: B rows (one), T time, V vocabulary.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from blobjax.config import BadInputError
from blobjax.model.transformer import Transformer


def generate(
    model: Transformer,
    prompt: Sequence[int],
    n_tokens: int,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> np.ndarray:
    """Tokens drawn from the model to follow a prompt; the same ones for the same key.

    Args:
      model: the transformer.
      prompt: token ids; at least one. A document opens with the separator, so a prompt usually does too.
      n_tokens: how many to draw.
      key: a jax PRNG key.
      temperature: divides the logits; 0 takes the likeliest token each time.
      top_p: draws from the smallest set of tokens that has at least this probability (Holtzman et al. 2020).

    Returns:
      int32 [n_tokens].

    Raises:
      BadInputError: an empty or unknown prompt, one longer than the rotary embeddings are set for, or a temperature or
        top_p out of range.
    """
    _check(model, prompt, n_tokens, temperature, top_p)
    # Both lengths are rounded up to a power of two, so that a few compiled programs serve all. The prompt is padded on
    # the left, where no later slot has to be skipped; the padding is a segment of its own that nobody sees.
    padding = _power_of_two(len(prompt)) - len(prompt)
    tokens_BT = np.pad(np.asarray([prompt], np.int32), ((0, 0), (padding, 0)))
    drawn_T = _generate(
        *nnx.split(model),
        jnp.asarray(tokens_BT),
        jnp.int32(padding),
        jnp.int32(n_tokens),
        key,
        jnp.float32(temperature),
        jnp.float32(top_p),
        capacity=_power_of_two(n_tokens),
    )
    return np.asarray(drawn_T[:n_tokens])


def _check(model: Transformer, prompt: Sequence[int], n_tokens: int, temperature: float, top_p: float) -> None:
    shape, problems = model.shape, []
    if not len(prompt):
        problems.append("the prompt has no tokens; give at least one")
    elif not 0 <= min(prompt) <= max(prompt) < shape.vocab_size:
        problems.append(
            f"the prompt has token ids from {min(prompt)} to {max(prompt)}; model.vocab_size is {shape.vocab_size}"
        )
    if n_tokens < 1:
        problems.append(f"cannot draw {n_tokens} tokens; ask for at least one")
    room = shape.max_seq_len - len(prompt)
    if n_tokens > room:
        problems.append(
            f"a prompt of {len(prompt)} tokens and {n_tokens} more make {len(prompt) + n_tokens}, beyond the "
            f"{shape.max_seq_len} of model.max_seq_len; "
            + (f"ask for {room} or fewer" if room > 0 else "shorten the prompt")
        )
    if not temperature >= 0:
        problems.append(f"temperature {temperature} is negative; give 0 (always the likeliest token) or more")
    if not 0 < top_p <= 1:
        problems.append(f"top_p {top_p} is not a probability above 0")
    if problems:
        raise BadInputError(*problems)


def _power_of_two(n: int, least: int = 32) -> int:
    return max(least, 1 << (n - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("graphdef", "capacity"))
def _generate(graphdef, params, tokens_BT, padding, n_tokens, key, temperature, top_p, *, capacity: int) -> jax.Array:
    model = nnx.merge(graphdef, params)
    rows, length = tokens_BT.shape
    slots_T = jnp.arange(length)
    segments_BT = (slots_T >= padding).astype(jnp.int32)[None]
    positions_BT = jnp.maximum(slots_T - padding, 0)[None]
    x_BTD, cache = model.decode(tokens_BT, segments_BT, positions_BT, model.empty_cache(rows, length + capacity))
    logits_BV = model.logits(x_BTD[:, -1])

    def draw_next(i, carry):
        drawn_T, logits_BV, cache = carry
        token_B = draw(jax.random.fold_in(key, i), logits_BV, temperature, top_p)
        drawn_T = drawn_T.at[i].set(token_B[0])
        position_BT = jnp.full((rows, 1), length - padding + i)
        x_BTD, cache = model.decode(token_B[:, None], jnp.ones((rows, 1), jnp.int32), position_BT, cache)
        return drawn_T, model.logits(x_BTD[:, -1]), cache

    carry = jnp.zeros((capacity,), jnp.int32), logits_BV, cache
    return jax.lax.fori_loop(0, n_tokens, draw_next, carry)[0]


def draw(key: jax.Array, logits_BV: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One token a row; int32 [B]. `temperature` and `top_p` are scalars, as in `generate`."""
    scaled_BV = logits_BV / jnp.maximum(temperature, 1e-6)
    sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # A token stays while those before it have less than top_p together; so the likeliest always stays.
    stays_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV < top_p
    least_B1 = jnp.min(jnp.where(stays_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    # With top_p = 1 nothing is cut, rounding in the running sum notwithstanding.
    kept_BV = jnp.where((scaled_BV >= least_B1) | (top_p >= 1), scaled_BV, -jnp.inf)
    drawn_B = jax.random.categorical(key, kept_BV, axis=-1)
    return jnp.where(temperature == 0, jnp.argmax(logits_BV, axis=-1), drawn_B).astype(jnp.int32)
