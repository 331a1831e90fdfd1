"""The wall socket: energy as the machine measures it, or an estimate from rated power where it does not; never a sum of
both.

Measured is what the counter covers and no more: a GPU's board (NVML), or a machine's processor packages with all that
runs on them (RAPL). Neither knows of fans, power supplies, switches or cooling.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from blobjax.compute import accelerators

# Rated power of server processors by core: AMD EPYC 9654 360 W / 96, Intel Xeon Platinum 8480+ 350 W / 56 (datasheets).
WATTS_PER_CPU_CORE = 5.0
_POWERCAP = Path("/sys/class/powercap")


@dataclass
class Meter:
    """Joules that this process's devices have used since the meter was made.

    Attributes:
      source: `nvml`, `rapl`, or `estimate: …` with what it was made from; `energy_log.measured` tells them apart.
      read: the counter, joules; only differences mean something.
    """

    source: str
    read: Callable[[], float]

    def __post_init__(self) -> None:
        self._start = self.read()

    @property
    def joules(self) -> float:
        """Since the meter was made."""
        return self.read() - self._start


def meter(devices: Sequence[Any] | None = None, watts: float = 0) -> Meter | None:
    """The best there is for these devices.

    Args:
      devices: jax devices of this process; its local devices by default.
      watts: rated power of one device for an estimate; 0: from the table of accelerators.

    Returns:
      None where there is no counter and no power is known: no figure is better than a made-up one. What is on a CPU is
      the machine's, and of several processes on one machine only one may have a meter.
    """
    devices = jax.local_devices() if devices is None else devices
    if devices[0].platform == "gpu":
        return _nvml(devices) or _estimate(devices, watts)
    if devices[0].platform == "cpu":
        return _rapl(_POWERCAP) or _estimate(devices, watts)
    return _estimate(devices, watts)


def _estimate(devices: Sequence[Any], watts: float) -> Meter | None:
    chip = accelerators.find(devices[0].device_kind)
    # The words name no number of devices or cores: what hosts of one kind have drawn is one sum.
    if watts:
        total, said = watts * len(devices), f"{watts:g} W a device"
    elif chip is not None and chip.watts is not None:
        total, said = chip.watts / chip.devices * len(devices), f"{chip.watts:g} W a {chip.name}"
    elif devices[0].platform == "cpu":
        # Virtual devices share the cores there are.
        total, said = WATTS_PER_CPU_CORE * _cores(), f"{WATTS_PER_CPU_CORE:g} W a core"
    else:
        return None
    return Meter(f"estimate: {said}", lambda: total * time.monotonic())


def _cores() -> int:
    """Cores this process may use: those that XLA is told to use (PJRT_NPROC), where there are not fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("PJRT_NPROC", "")
    return min(cores, int(told)) if told.isdigit() and int(told) else cores


def _nvml(devices: Sequence[Any]) -> Meter | None:
    """By the sum of the GPUs' energy counters; None where a library, a driver or a counter is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [_handle(pynvml, device.local_hardware_id) for device in devices]

        def read() -> float:
            return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3  # from mJ

        return Meter("nvml", read)
    except Exception:  # ImportError, or whatever NVML makes of a driver or GPU that does not count
        return None


def _handle(pynvml: Any, number: int) -> Any:
    """NVML's handle of the GPU that CUDA, and so jax, calls by a number; NVML counts those hidden from CUDA too."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return pynvml.nvmlDeviceGetHandleByIndex(number)
    name = visible.split(",")[number].strip()
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name.encode())


def _rapl(powercap: Path) -> Meter | None:
    """By the processor packages' counters; None where there are none, or one is out of this process's reach."""
    packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        packages = [zone for zone in packages if (zone / "name").read_text().startswith("package")]
        return Meter("rapl", _Rapl(packages)) if packages else None
    except (OSError, ValueError):
        return None


class _Rapl:
    """The sum of the packages' counters. They run over, so it has to be read more often than they do (some minutes)."""

    def __init__(self, packages: list[Path]):
        self._files = [zone / "energy_uj" for zone in packages]
        self._range = [int((zone / "max_energy_range_uj").read_text()) for zone in packages]
        self._last = [int(file.read_text()) for file in self._files]
        self._total = 0

    def __call__(self) -> float:
        now = [int(file.read_text()) for file in self._files]
        self._total += sum((new - old) % range_ for new, old, range_ in zip(now, self._last, self._range, strict=True))
        self._last = now
        return self._total / 1e6
