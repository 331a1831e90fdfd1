"""Where the norms stand, against the formulas of the papers written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blobjax.model.block import Block, Places
from blobjax.model.rope import rotation
from tests.tiny import tiny

B, T = 2, 16


def block_and_input(placement):
    """A block whose gains are not all one, so that a norm that is left out or doubled shows."""
    config = tiny(f"conditioning.norm_placement={placement}")
    block = Block(config, nnx.Rngs(0))
    shake = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    nnx.update(block, jax.tree.map(shake, nnx.state(block)))
    segments = jnp.ones((B, T), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    places = Places(segments, segments, 0, *rotation(config.model.rope, config.model.d_head, positions))
    return block, jax.random.normal(jax.random.key(9), (B, T, config.model.d_model)), places


def written_out(placement, x, sublayer, norms):
    match placement:
        case "pre":  # Xiong et al. 2020, table 1
            return x + sublayer(norms.input(x))
        case "post":  # Vaswani et al. 2017, section 5.4
            return norms.stream(x + sublayer(x))
        case "sandwich" | "peri":  # Ding et al. 2021, section 2.4; Kim et al. 2025, section 3
            return x + norms.output(sublayer(norms.input(x)))
        case "none":
            return x + sublayer(x)


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "peri", "none"])
def test_a_block_is_the_formula(placement):
    block, x, places = block_and_input(placement)
    wanted = written_out(placement, x, lambda y: block.attention(y, places, None)[0], block.attention_norms)
    wanted = written_out(placement, wanted, lambda y: block.mlp(y, None)[0], block.mlp_norms)
    np.testing.assert_array_equal(block(x, places)[0], wanted)
