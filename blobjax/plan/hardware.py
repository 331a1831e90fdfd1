"""Hardware that need not be here: names such as `v5p:4x4x8` or `h100:16x8`, and devices that programs compile for.

TPUs: libtpu from PyPI describes any slice on a machine without one. NVIDIA GPUs: the CUDA plugin does, given
what a chip is like in XLA's `GpuTargetConfigProto`. CPUs: virtual devices.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import jax

from blobjax.compute import accelerators
from blobjax.compute.accelerators import Accelerator
from blobjax.config import BadInputError
from blobjax.config.closest import suggest

_TPUS = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "tpu7x": "TPU7x"}
"""What jax calls them: the key into the accelerator table."""


@dataclass(frozen=True)
class _Gpu:
    """What XLA's GPU compiler asks about a chip.

    Attributes:
      kind: what jax calls it, the key into the accelerator table.
      capability: CUDA compute capability.
      cores: streaming multiprocessors (datasheet).
      lanes: FP32 units of one of them, and shared memory of one of them and of one block at most, bytes (CUDA
        Programming Guide, compute capabilities).
      l2: bytes (datasheet).
      clock: GHz at most.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    shared: int
    shared_block: int
    l2: int
    clock: float


_HOPPER = {"capability": (9, 0), "cores": 132, "lanes": 128, "shared": 233472, "shared_block": 232448}
_GPUS = {
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167936, 166912, 40 * 2**20, 1.41),
    "h100": _Gpu("NVIDIA H100 80GB HBM3", l2=50 * 2**20, clock=1.98, **_HOPPER),  # type: ignore[arg-type]
    "h200": _Gpu("NVIDIA H200", l2=50 * 2**20, clock=1.98, **_HOPPER),  # type: ignore[arg-type]
    "b200": _Gpu("NVIDIA B200", (10, 0), 148, 128, 233472, 232448, 126 * 2**20, 1.965),
}
_FORMS = "v5p:4x4x8, v6e:16x16, h100:16x8 (hosts x GPUs of one) or cpu:8"


@dataclass(frozen=True)
class Machine:
    """A set of chips, here or not.

    Attributes:
      name: as it was asked for.
      devices: for a mesh; programs can be compiled for them, and run only if they are here.
      chip: its row in the accelerator table; None for a CPU.
      torus: size of each dim of one slice's torus; empty where there is none.
      slices: TPU slices, joined by the data-centre network.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Accelerator | None
    torus: tuple[int, ...] = ()
    slices: int = 1

    @property
    def platform(self) -> str:
        return self.devices[0].platform

    @property
    def chips(self) -> int:
        return len(self.devices) // (self.chip.devices if self.chip else 1)


def find_machine(name: str, slices: int = 1) -> Machine:
    """The machine that a name stands for.

    Args:
      name: `CHIP:SIZES`.
      slices: how many such TPU slices.

    Raises:
      BadInputError: the name is none, or what compiles for such chips is not installed.
    """
    chip, colon, sizes_text = name.lower().partition(":")
    known = (*_TPUS, *_GPUS, "cpu")
    if chip not in known:
        raise BadInputError(f"--on '{name}': unknown chip '{chip}'; {suggest(chip, known)}")
    if not colon or not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*", sizes_text):
        raise BadInputError(f"--on '{name}' is not of the form CHIP:SIZES, such as {_FORMS}")
    sizes = tuple(int(size) for size in sizes_text.split("x"))
    row = accelerators.find(_TPUS.get(chip) or (_GPUS[chip].kind if chip in _GPUS else ""))
    dims = 1 if row is None else row.torus_dims or 2
    if len(sizes) != dims:
        raise BadInputError(f"--on '{name}': {chip} takes {dims} sizes, not {len(sizes)}; such as {_FORMS}")
    if math.prod(sizes) * slices > 2**17:
        raise BadInputError(f"--on '{name}': {math.prod(sizes) * slices:,} chips are more than any machine has")
    if slices > 1 and chip not in _TPUS:
        raise BadInputError(f"--slices {slices}: only TPUs have slices; give {chip} the number of hosts in --on")
    if row is None:
        return _cpu(name, sizes[0])
    if chip in _TPUS:
        return _tpu(name, chip, sizes, slices)
    if sizes[1] > row.chips_per_host:
        raise BadInputError(
            f"--on '{name}': a host of {chip} has {row.chips_per_host} GPUs, not {sizes[1]}; give hosts x GPUs of one, "
            f"such as {chip}:{-(-math.prod(sizes) // row.chips_per_host)}x{row.chips_per_host}"
        )
    return _gpu(name, _GPUS[chip], row, sizes)


def _cpu(name: str, count: int) -> Machine:
    # Setting it once jax runs is an error.
    if not _jax_runs():
        jax.config.update("jax_platforms", "cpu")
        if "JAX_NUM_CPU_DEVICES" not in os.environ:
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise BadInputError(f"--on '{name}': jax has started with {len(devices)} CPU devices (JAX_NUM_CPU_DEVICES?)")
    return Machine(name, devices[:count], None)


def _compile_on_cpu() -> None:
    """The process itself computes nothing on an accelerator, even where there is one."""
    if not _jax_runs():
        jax.config.update("jax_platforms", "cpu")


def _jax_runs() -> bool:
    from jax._src import xla_bridge  # jax has no public way to ask

    return xla_bridge.backends_are_initialized()


def _tpu(name: str, chip: str, sizes: tuple[int, ...], slices: int) -> Machine:
    if find_spec("libtpu") is None:
        raise BadInputError(
            f"--on {name} needs the TPU compiler, which is not installed (it needs no TPU); "
            "pip install 'blobjax[plan-tpu]'"
        )
    # Without these libtpu asks a metadata server that only Google Cloud has, and waits for it.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
        # Nothing is driven here, so a second plan, or a training run, may have it loaded as well.
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    _compile_on_cpu()
    options = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(sizes) == 1 else {}
    topology = f"{chip}:{'x'.join(str(size) for size in sizes)}"
    from jax.experimental import topologies

    try:
        devices = topologies.get_topology_desc(topology, "tpu", num_slices=slices, **options).devices
    except Exception as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise BadInputError(f"--on {name}: libtpu does not take it: {reason}") from None
    machine = Machine(name, devices, None, sizes, slices)
    return replace(machine, chip=accelerators.find(machine.devices[0].device_kind))


def _gpu(name: str, gpu: _Gpu, row: Accelerator, sizes: tuple[int, ...]) -> Machine:
    if find_spec("jax_plugins") is None or not any(find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise BadInputError(
            f"--on {name} needs the CUDA compiler, which is not installed (it needs no GPU); "
            "pip install 'blobjax[plan-gpu]'"
        )
    _compile_on_cpu()
    hosts, local = sizes
    from jax.experimental import topologies

    # Slices, processes of one and devices of a process: jax sees GPU hosts as slices.
    try:
        devices = topologies.get_topology_desc(
            platform="cuda", topology=f"{hosts}x1x{local}", target_config=_target_config(gpu, row)
        ).devices
    except Exception as error:
        raise BadInputError(f"--on {name}: the CUDA plugin does not take it: {str(error).splitlines()[0]}") from None
    return Machine(name, devices, row)


def _target_config(gpu: _Gpu, chip: Accelerator) -> str:
    """XLA's GpuTargetConfigProto, as text. Limits that all chips of the last ten years share stand as numbers."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {int(chip.hbm_bandwidth)}
  device_memory_size: {int(chip.hbm_bytes)}
  l2_cache_size: {gpu.l2}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_block}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{gpu.kind}"
"""
