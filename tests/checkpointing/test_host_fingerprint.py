"""numpy's fingerprints, part by part, are those of the devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.checkpointing import fingerprint, host_fingerprint

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int32, jnp.int8, jnp.bool_)


def on_device(x: np.ndarray) -> str:
    return fingerprint.as_text(fingerprint.fingerprint_all({"x": jnp.asarray(x)}))["x"]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_a_whole_array(dtype, shape):
    x = np.asarray(jnp.asarray(np.random.default_rng(0).normal(size=shape) * 3, dtype))
    assert host_fingerprint.as_text(host_fingerprint.part(x, (0,) * x.ndim, x.shape)) == on_device(x)


def test_parts_add_up_whatever_they_are():
    x = np.random.default_rng(0).normal(size=(6, 300, 70)).astype(np.float32)  # more than is taken at once
    sums = np.zeros(2, np.uint32)
    for start in ((0, 0), (0, 150), (4, 0), (4, 150)):
        part = x[start[0] : start[0] + 4, start[1] : start[1] + 150]
        sums += host_fingerprint.part(part, (*start, 0), x.shape)
    assert host_fingerprint.as_text(sums) == on_device(x)


def test_an_element_of_eight_bytes_is_two_words():
    x = np.arange(12, dtype=np.int64).reshape(3, 4) << 30
    assert (host_fingerprint.part(x, (0, 0), x.shape) == host_fingerprint.part(x.view(np.int32), (0, 0), (3, 8))).all()
