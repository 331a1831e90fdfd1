"""How much memory a device has for arrays."""

import functools
import os
from pathlib import Path

import jax

_CONTAINER = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/meminfo")


def container_limit() -> int | None:
    """Bytes that this process's container may use; None where nothing limits it."""
    return _number(_CONTAINER / "memory.max")


def free_host_memory() -> int:
    """Bytes that this process can still take from the machine, or from its container if that has less left."""
    try:
        lines = (line.split() for line in _MACHINE.read_text().splitlines())
        free = next(int(kilobytes) * 1024 for name, kilobytes, *_ in lines if name == "MemAvailable:")
    except (OSError, ValueError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = container_limit(), _number(_CONTAINER / "memory.current")
    return free if limit is None else min(free, limit - (used or 0))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no control groups, or "max"
        return None


@functools.cache
def capacity(device: jax.Device) -> int | None:
    """Bytes a device had for arrays when this was first called; None where it does not say.

    A run calls it before it allocates anything. CPU devices share what is free of the host's memory: each of this
    process's has an equal part of it.
    """
    if device.platform == "cpu":
        return free_host_memory() // len(jax.local_devices())
    return (device.memory_stats() or {}).get("bytes_limit")
