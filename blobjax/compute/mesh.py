"""The device mesh: five named axes, ordered from the slowest network to the fastest."""

import math
from collections import Counter
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from blobjax.config.errors import BadInputError
from blobjax.config.schema import Mesh

AXES = ("replica", "data", "fsdp", "tensor", "context")

# Auto, on purpose (jax.make_mesh defaults to Explicit): the model names the layouts that matter with
# `constrain`, and the compiler chooses the rest and its collectives. Explicit types would put a sharding on
# every intermediate's type, so that each einsum and reshape of the model would have to say how it is laid
# out: noise in a file read like a paper.
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


def make_mesh(sizes: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Lays devices out over the five axes.

    On several slices (TPU pods joined by a data-centre network, or GPU hosts), the slices are laid over the
    first axes that hold them: `replica` first, so that with `replica` a multiple of the slices only its
    gradient all-reduce crosses the slow network.

    Args:
      sizes: the size of each axis; -1 takes the devices that are left.
      devices: which devices, all of the world's by default.

    Raises:
      BadInputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _resolve(sizes, devices)
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        return jax.make_mesh(shape, AXES, _AXIS_TYPES, devices=devices)
    across = _lay_slices(shape, len(slices))
    within = [size // slow for size, slow in zip(shape, across, strict=True)]
    if len(set(slices.values())) > 1:
        raise BadInputError(f"compute.mesh: the slices have different numbers of devices: {dict(slices)}")
    array = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(array, AXES, axis_types=_AXIS_TYPES)


def _resolve(sizes: Mesh, devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """The axis sizes with -1 filled in."""
    wanted = {axis: getattr(sizes, axis) for axis in AXES}
    given = {axis: size for axis, size in wanted.items() if size != -1}
    product = math.prod(given.values())
    free = len(devices) // product if len(devices) % product == 0 else 0
    if not free or (len(given) == len(AXES) and free != 1):
        factors = [f"{axis} {size}" for axis, size in given.items() if size > 1] or ["1"]
        arithmetic = " x ".join(factors) + (f" = {product}" if len(factors) > 1 else "")
        fit = "does not divide the number of devices," if len(given) < len(AXES) else "devices are asked for, there are"
        on_cpu = devices[0].platform == "cpu" and product > len(devices)
        processes = jax.process_count()
        each = f"-d {-(-product // processes)} of launch/local.py" if processes > 1 else ""
        hint = f", or {each or f'compute.virtual_cpu_devices={product}'} to try it on a CPU" if on_cpu else ""
        raise BadInputError(
            f"compute.mesh: {arithmetic} {fit} {len(devices)}; "
            f"change a size, or give one axis -1 for the devices that are left{hint}"
        )
    return tuple(free if size == -1 else size for size in wanted.values())


def _lay_slices(shape: tuple[int, ...], slices: int) -> list[int]:
    """How many slices each axis spans: as many as fit over the first axis, the rest over the next."""
    across = []
    for size in shape:
        across.append(math.gcd(size, slices))
        slices //= across[-1]
    return across
