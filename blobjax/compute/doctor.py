"""What `blobjax doctor` looks at: is this machine ready to train, and what is it?"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from blobjax.compute import accelerators
from blobjax.compute.memory import container_limit
from blobjax.config.paths import expanded
from blobjax.config.sizes import in_words

_PACKAGES = ("blobjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# The laptop job's checkpoints and token shards fit into a tenth of this; less free space than this is an
# accident.
_ENOUGH_DISK = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is as it should be, and what was found."""

    name: str
    ok: bool
    detail: str


def report(directory: str | Path) -> list[Check]:
    """Looks at everything and never raises; starts jax's backend.

    Args:
      directory: where runs will be written; it need not exist yet.
    """
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "versions": _versions,
        "devices": _devices,
        "host memory": _host_memory,
        "device memory": _device_memory,
        "arithmetic": _arithmetic,
        "collective": _collective,
        "write": lambda: _write(Path(directory)),
        "disk": lambda: _disk(Path(directory)),
    }
    return [_run(name, check) for name, check in checks.items()]


def _run(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # whatever is wrong with this machine is the finding
        return Check(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _versions() -> tuple[bool, str]:
    found = [f"{package} {metadata.version(package)}" for package in _PACKAGES]
    return True, ", ".join([f"python {platform.python_version()}", *found])


def _devices() -> tuple[bool, str]:
    devices = jax.devices()
    kind, where = devices[0].device_kind, devices[0].platform
    peak = accelerators.peak_flops(devices[0])
    speed = f"{peak / 1e12:.0f} TFLOP/s bf16 each" if peak else "peak FLOP/s not known, so no utilisation"
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return True, f"{len(devices)} x {kind}{f' ({where})' * (kind != where)}{processes}; {speed}"


def _host_memory() -> tuple[bool, str]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    limit = container_limit()
    bound = "" if limit is None else f", limited to {in_words(limit)} by the container"
    return True, f"{in_words(free)} free of {in_words(total)}{bound}; {os.cpu_count()} CPU cores"


def _device_memory() -> tuple[bool, str]:
    stats = [device.memory_stats() for device in jax.local_devices()]
    known = [(s["bytes_in_use"], s["bytes_limit"]) for s in stats if s and "bytes_limit" in s]
    if not known:
        return True, "shared with the host"
    used, limit = max(used for used, _ in known), min(limit for _, limit in known)
    return True, f"{in_words(limit)} each, at most {in_words(used)} in use"


def _arithmetic() -> tuple[bool, str]:
    """A sum that jaxlib 0.10.2 gets wrong on a CPU (`xla_flags.needed`): the last of the rows (i, 0, 0), squared."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    found, expected = float(squares[-1]), float(rows[-1, 0]) ** 2
    # Powers of two, so exact in whatever a device multiplies.
    return found == expected, f"a float32 sum of squares is {found:,.0f}, expected {expected:,.0f}"


def _collective() -> tuple[bool, str]:
    """Device i holds i + 1; their sum over all devices must be n (n + 1) / 2, on every one of them."""
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), (jax.sharding.AxisType.Auto,))
    ranks = np.arange(1, count + 1, dtype=np.float32)
    placed = jax.make_array_from_callback(
        (count,), NamedSharding(mesh, PartitionSpec("all")), lambda index: ranks[index]
    )
    total = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(jnp.sum(x), "all"),
            mesh=mesh,
            in_specs=PartitionSpec("all"),
            out_specs=PartitionSpec(),
        )
    )
    jax.block_until_ready(total(placed))
    start = time.perf_counter()
    result = jax.block_until_ready(total(placed))
    seconds = time.perf_counter() - start
    expected = count * (count + 1) // 2
    seen = [float(shard.data) for shard in result.addressable_shards]
    ok = all(value == expected for value in seen)
    return ok, f"sum over {count} devices is {seen[0]:g}, expected {expected}; {seconds * 1e3:.2f} ms"


def _existing(directory: Path) -> Path:
    """The directory, or the nearest one above it that exists: where it would be made."""
    directory = expanded(directory, "the directory").absolute()
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def _write(directory: Path) -> tuple[bool, str]:
    where = _existing(directory)
    payload = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".blobjax-probe-") as probe:
            probe.write(payload)
            probe.flush()
            os.fsync(probe.fileno())
            same = Path(probe.name).read_bytes() == payload
    except OSError as error:
        return False, f"{where}: {error.strerror or error}"
    return same, f"{where}: 1 MB written, synced and read back{'' if same else ' differently'}"


def _disk(directory: Path) -> tuple[bool, str]:
    usage = shutil.disk_usage(_existing(directory))
    return usage.free > _ENOUGH_DISK, f"{in_words(usage.free)} free of {in_words(usage.total)}"
