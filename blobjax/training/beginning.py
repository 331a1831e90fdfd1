"""How an attempt at a run begins: the step is compiled while the state is made, or read from a checkpoint."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax

from blobjax.checkpointing.checkpointer import Checkpointer, Restored
from blobjax.compute.runtime import HEARTBEAT_SECONDS
from blobjax.processes.clock import Clock
from blobjax.processes.leaving import failing_in_time
from blobjax.program.state import TrainState
from blobjax.runs.directory import EventLog
from blobjax.training.memory import memory_bytes
from blobjax.training.preflight import Setting


@dataclass(frozen=True)
class Begun:
    """A run that is ready for its next step.

    Attributes:
      state: the newest, new or restored.
      sequences: the data stream's position.
      restored: the checkpoint it came from; None for a new run.
      batch_size: sequences of the next step.
      train_step: compiled for that many.
      state_seconds, compile_seconds: what each took; they run at the same time.
    """

    state: TrainState
    sequences: int
    restored: Restored | None
    batch_size: int
    train_step: Any
    state_seconds: float
    compile_seconds: float


def begin(
    setting: Setting,
    checkpointer: Checkpointer,
    clock: Clock,
    data: str | None,
    bad: Callable[[int, str, str], None],
) -> Begun:
    """Compiles the step, and makes or restores the state meanwhile, which saves the time of the shorter one.

    Whether the compiled step fits into memory is known only after both (`memory.step_problem`).

    Args:
      data: fingerprint of the data training goes on with; None: any.
      bad: called for each bad checkpoint: its step, what is wrong with it, and where it was moved to.
    """
    program = setting.program
    checkpointer.prepare(program.state)
    compile_began = time.monotonic()
    batch_size = program.clockwork.batches.at((setting.saved[-1] if setting.saved else setting.first) + 1)
    with clock.on("compile"):
        lowered = program.lower_train_step(batch_size)
    restoring = time.monotonic()
    with ThreadPoolExecutor(1) as compiler, alone_or_in_time():
        # XLA compiles without Python's lock.
        compiling = compiler.submit(lambda: (lowered.compile(), time.monotonic() - compile_began))
        with clock.on("restore"):
            newest = checkpointer.restore_newest(program.state, data, None, bad) if setting.resuming else None
            state, sequences = (newest.state, newest.sequences) if newest else first_state(setting, data)
        state_seconds = time.monotonic() - restoring
        with clock.on("compile"):
            compiled, compile_seconds = compiling.result()
    return Begun(state, sequences, newest, batch_size, compiled, state_seconds, compile_seconds)


def first_state(setting: Setting, data: str | None) -> tuple[TrainState, int]:
    """The state the run begins from, and the data stream's position there."""
    trunk, program = setting.trunk, setting.program
    return trunk.restore(program.state, data) if trunk else (program.init(), 0)


def announce(setting: Setting, begun: Begun, events: EventLog, say: Callable[[str], None], bad: bool) -> None:
    """Writes down where the state came from, and says what a reader must know of it.

    Args:
      bad: whether a checkpoint was found that is.
    """
    newest = begun.restored
    if newest:
        events.write("restore", step=newest.step, seconds=begun.state_seconds, verified=newest.verified)
        events.write("resume", step=newest.step)
        if not newest.verified:
            say(f"checkpoint {newest.step} has no fingerprints: taken as it is, unverified")
    elif setting.resuming and (bad or setting.directory.metrics.exists()):
        none = "NO GOOD CHECKPOINT IS LEFT" if bad else "no checkpoint"
        say(f"{none} in {setting.directory.path}: starting again from step {setting.first}")
    if setting.trunk and not newest:
        trunk = setting.trunk.directory.path
        say(f"begins from step {setting.first} of {trunk}")
        facts = {"run": str(trunk), "sequences": begun.sequences, "changed": setting.trunk.differences(setting.config)}
        events.write("branch", step=setting.first, seconds=begun.state_seconds, **facts)
    needed = memory_bytes(begun.train_step)
    events.write("compile", seconds=begun.compile_seconds, batch_size=begun.batch_size, memory_bytes=needed)


def alone_or_in_time() -> AbstractContextManager[None]:
    """What fails here waits for a compilation or a save on its way out; one of several processes not for long."""
    return failing_in_time(HEARTBEAT_SECONDS) if jax.process_count() > 1 else nullcontext()
