"""From what the device reports to what people read: derived metrics, every writer, and the progress line."""

import resource
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console

from blobjax.compute import accelerators
from blobjax.data import Stream
from blobjax.processes.timers import Every
from blobjax.program.batches import Position
from blobjax.program.program import Program
from blobjax.runs.directory import RunDirectory
from blobjax.training.loop import StepReport
from blobjax.training.metrics import Writer, make_writers
from blobjax.training.progress import ProgressLine


class Recorder:
    """Takes the loop's reports and hooks' metrics; a context manager, so that what is written is kept.

    Args:
      directory: where metrics go; None on a process that writes nothing.
      energy: metrics of what the run has drawn up to a position in the stream; empty where that is not known.
    """

    def __init__(
        self,
        program: Program,
        stream: Stream,
        position: Position,
        directory: RunDirectory | None,
        console: Console,
        energy: Callable[[int], dict[str, Any]],
    ):
        self._program = program
        self._stream = stream
        self._position = position
        self._energy = energy
        self._every = Every(program.config.logging.every, program.clockwork)
        self._writers: list[Writer] = make_writers(program.config, directory, position.start) if directory else []
        self._line = ProgressLine(
            program.clockwork.length, position.start, program.clockwork.batches, program.objective.watched, console
        )

    def __enter__(self) -> "Recorder":
        self._line.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        for writer in self._writers:
            writer.close()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Hands metrics to every writer."""
        for writer in self._writers:
            writer.write(step, metrics)

    def undo(self, step: int) -> None:
        """Takes back what was recorded of the steps after this one."""
        for writer in self._writers:
            writer.undo(step)

    def report(self, done: StepReport) -> None:
        """Records a step when logging is due, and the last one always."""
        if self._every.due(done.step) or done.step == self._program.clockwork.length or self._probed(done.step):
            metrics = self._derive(done)
            self.write(done.step, metrics)
            self._line.update(done.step, metrics)

    def _probed(self, step: int) -> bool:
        every = self._program.config.conditioning.probe_every
        return bool(every) and step % every == 0

    def _derive(self, done: StepReport) -> dict[str, Any]:
        """A step's metrics under the names that readers of a run directory rely on."""
        # One transfer for all scalars; the step is done, so nothing waits.
        found = jax.device_get(done.metrics)
        flow = found.pop("flow", {})
        metrics = {name: float(value) for name, value in found.items()}
        clockwork = self._program.clockwork
        batch_size = self._position.sizes.at(done.step)
        seq_len = self._program.config.data.seq_len
        rate = batch_size * seq_len / done.seconds
        peak = accelerators.peak_flops(jax.devices()[0])
        sequences = self._position.sequences(done.step)
        return {
            **metrics,
            **(named(flow) if self._probed(done.step) else {}),
            **({"batch_size": batch_size} if clockwork.batches.smaller else {}),
            **self._program.objective.derived(metrics),
            "tokens": sequences * seq_len,
            "tokens_per_second": rate,
            # None where the chip's peak is not in the table (a CPU): no figure is better than a wrong one.
            "model_flops_utilization": rate * clockwork.flops_per_token / (peak * len(jax.devices())) if peak else None,
            "step_seconds": done.seconds,
            "data_wait_seconds": done.data_wait,
            **memory_peaks(),
            **self._energy(sequences),
            **{f"data/{domain}/epochs": epochs for domain, epochs in self._stream.epochs(sequences).items()},
        }


def memory_peaks() -> dict[str, int]:
    """The most bytes that any of this process's devices has held so far, where they tell, and the process itself."""
    devices = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    # Linux counts in KiB, macOS in bytes.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return ({"device_memory_peak_bytes": max(devices)} if any(devices) else {}) | {"host_memory_peak_bytes": host}


def named(flow: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Probes under the names they are read by: `flow/block_00/residual_rms`."""
    named: dict[str, float] = {}
    for group, probes in flow.items():
        for name, values in probes.items():
            if group == "blocks":
                # What is known of each head is read as that of the worst.
                named |= {f"flow/block_{layer:02d}/{name}": float(np.max(value)) for layer, value in enumerate(values)}
            else:
                named[f"flow/{group}/{name}"] = float(values)
    return named
