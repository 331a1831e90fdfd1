"""Fingerprints of arrays: computed on the devices, the same however an array is split over them.

A fingerprint is two sums, modulo 2^32, over an array's elements: of each element's bits, mixed with where it stands.
Sums of integers do not depend on their order, so neither sharding nor device count shows. A mix is a bijection of the
element's bits, so a change of any one element changes both sums; several changes cancel in both with a probability of
about 2^-64. The mix is the finaliser of MurmurHash3 (Appleby 2011): it finds accidents, not forgeries.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from blobjax.checkpointing import host_fingerprint
from blobjax.checkpointing.host_fingerprint import SEEDS, mix


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element, as many uint32 as they fill, in a dim of their own at the end."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32).reshape(*x.shape, -1)


def fingerprint(x: jax.Array) -> jax.Array:
    """The fingerprint of one array of any shape and dtype, uint32 [2]; to be used under jit."""
    words = _words(x)
    # Where a word stands in the whole array, modulo 2^32; the compiler knows which part of it a device holds.
    place, stride = jnp.uint32(0), 1
    for dim in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim) * np.uint32(stride % 2**32)
        stride *= words.shape[dim]
    sums = [jnp.sum(mix(words ^ mix(place * np.uint32(seed) + np.uint32(seed))), dtype=jnp.uint32) for seed in SEEDS]
    return jnp.stack(sums)


@jax.jit
def fingerprint_all(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Name to fingerprint. Arrays may be sharded over any mesh; what comes out is small and still on the devices."""
    return {name: fingerprint(x) for name, x in arrays.items()}


def as_text(fingerprints: Mapping[str, jax.Array]) -> dict[str, str]:
    """Name to 16 hexadecimal digits; waits for the devices."""
    return {name: host_fingerprint.as_text(np.asarray(x)) for name, x in fingerprints.items()}


def fingerprint_parts(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Fingerprints of what each device holds by itself, so that copies of the same part can be compared.

    Args:
      arrays: all with a NamedSharding on one mesh. A device's part is fingerprinted as an array of its own.

    Returns:
      uint32 [devices, arrays, 2]: devices in the mesh's order and one row on each, arrays in the order of the mapping.
      No device learns of another's: there is no collective in it.
    """
    shardings: list[Any] = [x.sharding for x in arrays.values()]
    program = _parts_program(shardings[0].mesh, tuple(sharding.spec for sharding in shardings))
    return program(*arrays.values())


@lru_cache(maxsize=8)
def _parts_program(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Callable[..., jax.Array]:
    def of_device(*parts: jax.Array) -> jax.Array:
        return jnp.stack([fingerprint(part) for part in parts])[None]

    rows = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False))
