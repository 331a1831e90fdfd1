"""Fingerprints do not depend on sharding, and notice every change of one element."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from blobjax.checkpointing.fingerprint import as_text, fingerprint_all

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int32, jnp.int8, jnp.bool_)


def of(x) -> str:
    return as_text(fingerprint_all({"x": x}))["x"]


def by_hand(x: np.ndarray) -> str:
    """The definition, word by word, in Python's own integers."""

    def mix(word: int) -> int:
        word = (word ^ (word >> 16)) * 0x85EBCA6B % 2**32
        word = (word ^ (word >> 13)) * 0xC2B2AE35 % 2**32
        return word ^ (word >> 16)

    words = [int(word) for word in x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}")]
    sums = [
        sum(mix(word ^ mix((place * seed + seed) % 2**32)) for place, word in enumerate(words)) % 2**32
        for seed in (0x9E3779B1, 0xC2B2AE35)
    ]
    return "".join(f"{each:08x}" for each in sums)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_is_what_it_is_defined_to_be(dtype, shape):
    x = np.asarray(jnp.asarray(np.random.default_rng(0).normal(size=shape) * 3, dtype))
    assert of(jnp.asarray(x)) == by_hand(x)


@pytest.mark.parametrize("spec", [(), ("data",), ("fsdp", "data"), (("data", "fsdp"),), (None, "fsdp")])
def test_does_not_depend_on_the_sharding(spec):
    x = np.random.default_rng(0).normal(size=(16, 8, 3)).astype(np.float32)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    assert of(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))) == of(jnp.asarray(x))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_notices_every_flipped_bit(dtype):
    x = np.zeros((5, 3), dtype)
    seen = {of(jnp.asarray(x))}
    for byte in range(x.nbytes):
        for bit in range(8):
            flipped = x.copy()
            flipped.reshape(-1).view(np.uint8)[byte] ^= 1 << bit
            seen.add(of(jnp.asarray(flipped)))
    assert len(seen) == 1 + 8 * x.nbytes


def test_notices_exchanged_elements_and_signed_zeros():
    assert of(jnp.array([1.0, 2.0])) != of(jnp.array([2.0, 1.0]))
    assert of(jnp.array([0.0])) != of(jnp.array([-0.0]))
    assert of(jnp.zeros(4)) != of(jnp.zeros(5))
