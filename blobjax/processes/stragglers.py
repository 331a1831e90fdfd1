"""Which process holds up the others.

A step ends everywhere at the same moment, since each waits for the slowest: step times say that somebody is slow and
not who. Two things do say it. A host that is slow itself (data, Python, a busy machine) is the one that waits least for
its devices: its own time, the step's less that waiting, is the longest. And a device that is slow (heat, a bad link to
its memory) shows when it has to multiply matrices alone, with nobody to wait for. What a process would hold up the
others by is the sum of both, beyond the median.
"""

import socket
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blobjax.processes.timers import Every
from blobjax.runs.directory import EventLog

# The columns of what is gathered, means over the steps since the last report: a step; of it, the wait for data; of it,
# all that is not waiting for the devices; and the slowest local device's time for the matrices.
COLUMNS = ("step_seconds", "data_wait_seconds", "host_seconds", "device_seconds")
# Below this share of a step nobody is called slow.
_CLEARLY = 0.25
_HOST_BYTES = 64


def lags(table: np.ndarray) -> np.ndarray:
    """Seconds a step by which each process would hold up the others; below 0 for those faster than the median.

    Args:
      table: [processes, COLUMNS].
    """
    step, _, host, device = table.T
    return host - np.median(host) + np.median(step) * (device / np.median(device) - 1)


class Stragglers:
    """A hook that gathers and reports; every process runs it. It costs a small collective, and no step's time holds it.

    Args:
      every: when to report.
      say: prints a line.
    """

    def __init__(self, every: Every, events: EventLog, say: Callable[[str], None]):
        self._every = every
        self._events = events
        self._say = say
        self._steps: list[tuple[float, float, float]] = []

    def note(self, seconds: float, data_wait: float, device_wait: float) -> None:
        """Takes note of a step's time and of what of it was waiting."""
        self._steps.append((seconds, data_wait, seconds - device_wait))

    def due(self, step: int) -> bool:
        """Every so often."""
        return self._every.due(step)

    def run(self, step: int, state: Any) -> bool:
        """Gathers, reports and forgets."""
        from jax.experimental import multihost_utils

        mine = [*np.mean(self._steps, axis=0), _device_seconds()]
        name = np.frombuffer(socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0"), np.uint8)
        table, names = multihost_utils.process_allgather((np.array(mine, np.float32), name))
        self._report(step, np.asarray(table), [bytes(np.asarray(each)).rstrip(b"\0").decode() for each in names])
        self._steps.clear()
        return False

    def _report(self, step: int, table: np.ndarray, hosts: list[str]) -> None:
        lag = lags(table)
        slowest = int(np.argmax(lag))
        figures = {name: [float(f"{x:.3g}") for x in column] for name, column in zip(COLUMNS, table.T, strict=True)}
        facts = {"slowest": slowest, "host": hosts[slowest], "lag_seconds": float(f"{lag[slowest]:.3g}")}
        self._events.write("stragglers", step=step, **facts, **figures)
        median = np.median(table, axis=0)
        if lag[slowest] > _CLEARLY * median[0]:
            _, data, host, device = table[slowest]
            self._say(
                f"step {step}: process {slowest} ({hosts[slowest]}) holds up the others by about "
                f"{lag[slowest]:.2g} s of a {median[0]:.2g} s step: own time {host:.2g} s (median {median[2]:.2g}), "
                f"of it data {data:.2g} s; devices {device / median[3]:.0%} of the median's time"
            )


@jax.jit
def _matrices(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jnp.tanh(x @ x)
    return x


def _device_seconds() -> float:
    """The slowest local device's time for some products of matrices, the best of five."""
    size = 256 if jax.default_backend() == "cpu" else 4096
    slowest = 0.0
    for device in jax.local_devices():
        x = jax.block_until_ready(jax.device_put(np.full((size, size), 1e-3, jnp.bfloat16), device))
        jax.block_until_ready(_matrices(x))  # compiles, the first time
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(_matrices(x))
            times.append(time.perf_counter() - began)
        slowest = max(slowest, min(times))
    return slowest
