"""Before the first device is touched: XLA flags, virtual CPU devices, compilation cache, and the other processes."""

import contextlib
import importlib.util
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from blobjax.compute.cluster import find_place
from blobjax.compute.xla_flags import BUNDLES, needed
from blobjax.config.closest import suggest
from blobjax.config.errors import BadInputError
from blobjax.config.paths import expanded
from blobjax.config.schema import Compute

# Seconds without a sign of life after which a process counts as dead and the others are told. jax's default
# of 100 lets a whole pod wait; heartbeats come from a thread of their own and survive long compilations.
HEARTBEAT_SECONDS = 10

# Part of a GPU's memory that jax takes for its arrays, at the start. Its own default of 0.75 wastes a sixth of what a
# run could use. NCCL's buffers, cuDNN, cuBLAS and CUDA itself live in the rest, 8 GB of 80; NVIDIA's JAX-Toolbox runs
# MaxText at 0.9 too (test-maxtext.sh).
GPU_MEMORY_FRACTION = 0.9
# jax refuses to be told by both; the second is its older name for the first.
_GPU_MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def configure(compute: Compute) -> None:
    """Applies what must be said before jax starts a backend. The user's own environment wins over the config,
    except over `cpu_threads`.

    Raises:
      BadInputError: an unknown flag bundle, or no home directory for a `~`.
    """
    if compute.virtual_cpu_devices and "JAX_NUM_CPU_DEVICES" not in os.environ:
        # Virtual devices are asked for to try a mesh; a GPU that happens to be there is not one of them.
        if "JAX_PLATFORMS" not in os.environ:
            jax.config.update("jax_platforms", "cpu")
        # Setting it once jax runs is an error, even to what it is.
        if getattr(jax.config, "jax_num_cpu_devices", None) != compute.virtual_cpu_devices:
            jax.config.update("jax_num_cpu_devices", compute.virtual_cpu_devices)
    if compute.cpu_threads:
        # XLA reads it when it starts the CPU, and nothing else sets the number: fewer cores leave it as it is. It wins
        # over the user's environment, because the run's record says that this many threads made its numbers.
        os.environ["PJRT_NPROC"] = str(compute.cpu_threads)
    _add_flags(_bundle_flags(compute.xla_flags))
    set_needed_flags()
    if platform() == "gpu" and not any(os.environ.get(name) for name in _GPU_MEMORY_VARIABLES):
        os.environ[_GPU_MEMORY_VARIABLES[0]] = str(GPU_MEMORY_FRACTION)
    if compute.compilation_cache:
        cache = expanded(compute.compilation_cache, "compute.compilation_cache")
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # jax keeps only programs that took a second to compile; a start is made of many shorter ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def set_needed_flags() -> None:
    """Sets the XLA flags that this jaxlib needs on a CPU. Call it before the first array of a process."""
    if platform() == "cpu":
        _add_flags(list(needed()))


def _add_flags(flags: list[str]) -> None:
    """Puts flags before those that XLA_FLAGS has: XLA takes the last of two equal flags, so the user's win."""
    present = os.environ.get("XLA_FLAGS", "")
    new = [flag for flag in flags if flag not in present.split()]
    if new:
        os.environ["XLA_FLAGS"] = " ".join([*new, present]).strip()


def _bundle_flags(wanted: str | tuple[str, ...]) -> list[str]:
    if wanted == "auto":
        here = platform()
        return [flag for b in BUNDLES.values() if b.measured and b.platform == here for flag in b.flags]
    for name in wanted:
        if name not in BUNDLES:
            raise BadInputError(f"compute.xla_flags: unknown bundle '{name}'; {suggest(name, BUNDLES)}")
    return [flag for name in wanted for flag in BUNDLES[name].flags]


def platform() -> str:
    """`tpu`, `gpu` or `cpu`: what jax will run on, told without starting it."""
    chosen = (getattr(jax.config, "jax_platforms", None) or "").split(",")[0]
    if chosen:
        return "gpu" if chosen in ("cuda", "rocm") else chosen
    if importlib.util.find_spec("libtpu") and (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        return "tpu"
    plugins = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "gpu" if plugins and Path("/dev/nvidiactl").exists() else "cpu"


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: Sequence[int] | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any; must come before anything that touches a device.

    Asked for by arguments or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; otherwise detected where
    more than one task of a cluster runs this (`cluster.find_place`). A single process starts nothing and waits for
    nobody.

    Args:
      coordinator: HOST:PORT of process 0, which binds exactly that address (JAX_COORDINATOR_BIND_ADDRESS overrides it,
        for a host that is known to others under a name it cannot bind).
      num_processes: how many there are.
      process_id: which one this is, from 0.
      local_device_ids: the GPUs of this host that belong to this process; all of them by default.
      timeout_seconds: how long to wait for the others.

    Raises:
      BadInputError: the arguments contradict each other, or the coordinator cannot be bound or reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--{flag}" for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        place = find_place(timeout_seconds)
        if place is None:
            return
        coordinator, num_processes, process_id = place.coordinator, place.num_processes, place.process_id
        local_device_ids = place.local_device_ids if local_device_ids is None else local_device_ids
    if num_processes is not None and num_processes < 1:
        raise BadInputError(f"--num-processes {num_processes} is not a number of processes; give 1 or more")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise BadInputError(f"--process-id {process_id} is not one of 0..{num_processes - 1} (--num-processes)")
    if num_processes == 1:
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise BadInputError(
            f"several processes need --coordinator, --num-processes and --process-id; missing: {', '.join(missing)}"
        )
    _host_and_port(coordinator)
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
    with _deadline(timeout_seconds, coordinator, num_processes):
        if process_id == 0:
            _check_bind(bind)
        else:
            _wait_for(coordinator, timeout_seconds)
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids,
            cluster_detection_method="deactivate",  # all is given; detection may ask slow metadata servers
            initialization_timeout=timeout_seconds + 5,  # _deadline speaks first
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            coordinator_bind_address=bind,
        )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not (text.isascii() and text.strip().isdigit() and len(text) < 10):
        raise BadInputError(f"{variable}={text!r} is not a number")
    return int(text)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and bare == host:
        raise BadInputError(f"--coordinator '{address}': an IPv6 address stands in brackets, such as [::1]:1234")
    usable = host.isascii() and len(host) < 256 and port.isascii() and port.isdigit()
    if not (colon and host and usable and 0 < int(port) < 65536):
        raise BadInputError(f"--coordinator '{address[:80]}' is not HOST:PORT, such as 10.0.0.1:1234")
    if bare in ("0.0.0.0", "::"):
        raise BadInputError(f"'{address}' is every address of a host; give the one by which the others reach process 0")
    return bare, int(port)


def _check_bind(address: str) -> None:
    """jaxlib 0.10 crashes on an address it cannot bind; so it is tried here first, where it can be said."""
    host, port = _host_and_port(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
        if str(where[0]).startswith("127.0.1."):  # what Debian's /etc/hosts has for a host's own name
            print(
                f"blobjax: warning: {host} means {where[0]} on this host, where no other can reach it; with several "
                f"hosts set JAX_COORDINATOR_BIND_ADDRESS=ADDRESS:{port} for process 0",
                file=sys.stderr,
                flush=True,
            )
    except OSError as error:
        raise BadInputError(
            f"--coordinator {address}: process 0 cannot listen there ({error.strerror or error}); give an address of "
            "this host and a free port"
        ) from None


def _wait_for(address: str, timeout_seconds: float) -> None:
    """Waits until something listens at the coordinator's address: jaxlib aborts the process when nothing ever does."""
    deadline = time.monotonic() + timeout_seconds
    patient = time.monotonic() + 10
    while True:
        if time.monotonic() > patient:
            print(f"blobjax: waiting for process 0 at {address}", file=sys.stderr, flush=True)
            patient = deadline
        try:
            socket.create_connection(_host_and_port(address), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise BadInputError(
                    f"--coordinator {address} was not reachable within {timeout_seconds} s "
                    f"({error.strerror or error}); is process 0 running there?"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _deadline(seconds: float, coordinator: str, num_processes: int) -> Iterator[None]:
    """Ends the process with one clear line when the others do not come; jaxlib would dump a native stack instead."""

    def give_up() -> None:
        print(
            f"blobjax: not all of the {num_processes} processes met at {coordinator} within {seconds} s; start the "
            "missing ones with the same --coordinator and --num-processes",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds + 1, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
