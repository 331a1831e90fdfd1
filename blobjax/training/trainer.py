"""A whole training run: checks first, then state (new or restored), the loop with its hooks, and what came of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import jax

from blobjax.checkpointing import files
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.compute.runtime import HEARTBEAT_SECONDS
from blobjax.config import Config, HaltedError
from blobjax.objectives import BatchSource
from blobjax.processes.agreement import failing_together
from blobjax.processes.clock import Clock
from blobjax.processes.energy_log import EnergyLog, meter_of_this_process
from blobjax.processes.leaving import failing_in_time
from blobjax.processes.stopping import RESUMABLE, Stopping
from blobjax.processes.timers import refuse_together
from blobjax.processes.watchdog import Watchdog
from blobjax.program.batches import Position
from blobjax.program.state import TrainState
from blobjax.runs import lost_lines
from blobjax.runs.directory import read_jsonl
from blobjax.runs.outcome import sequences_before
from blobjax.training.announcements import announce_compiled, announce_origin, announce_start, conclude, introduce
from blobjax.training.context import RunContext, TimedSource
from blobjax.training.corruption import CorruptionCheck, CorruptionError, disown
from blobjax.training.hooks import (
    Accounted,
    EvaluateHook,
    ProfileHook,
    RunHook,
    SaveHook,
    StopHook,
    StragglersHook,
)
from blobjax.training.landscape import LandscapeHook
from blobjax.training.loop import StepReport
from blobjax.training.memory import ran_out, step_problem
from blobjax.training.preflight import preflight
from blobjax.training.progress import PatientConsole
from blobjax.training.recovery import Recovery
from blobjax.training.run import Run
from blobjax.training.snapshots import SnapshotRing

FINISHED = 0


def train(
    config: Config, allow_config_change: bool = False, stopping: Stopping | None = None, clock: Clock | None = None
) -> int:
    """Trains to the config's length, resuming if its run directory holds a run.

    Args:
      config: the run.
      allow_config_change: go on in a run directory whose config had other maths.
      stopping: takes the signals; None: they are left alone.
      clock: keeps account of this process's time; None: from now on.

    Returns:
      The exit code: 0 finished, 75 stopped early but resumable.

    Raises:
      BadInputError: anything about the config, the data, the devices or the run directory that cannot work; no run has
        been begun or changed then.
      HaltedError: going on would waste what it costs, or memory ran out.
    """
    clock = clock or Clock()
    if stopping is None:
        stopping = Stopping(config.reliability.grace.seconds or 0)
    stopping.join()
    ready = preflight(config, allow_config_change)
    console, saved = PatientConsole(quiet=not ready.writes), ready.past.saved
    unfinished = ""
    if saved and saved[-1] >= ready.length:
        # Finished only if its last checkpoint is good on the storage, which takes reading it as a whole.
        unfinished = Checkpointer(ready.directory.checkpoints).check(saved[-1])
        if not unfinished:
            line = f"already finished: {ready.directory.path} is at step {saved[-1]} of {ready.length}"
            console.print(line, highlight=False, soft_wrap=True)
            return FINISHED
    limit = config.reliability.hang_limit
    with Watchdog(limit.seconds if limit else None, jax.process_index()) as watchdog, ExitStack() as stack:
        # Not before: the others wait for the process that prepares the data, however long it takes.
        watchdog.start("compiling and restoring")
        # Before anything is quarantined or cleared away that might be another run's.
        with failing_together():
            if ready.writes:
                stack.enter_context(ready.directory.lock())
        run = Run(ready, console, watchdog, stopping, clock, stack)
        # If killed early, log a stop event; the step is unknown.
        stopping.farewell = lambda why, resumable: run.events.write("stop", reason=why, resumable=resumable)
        try:
            return _attempt(run, unfinished, allow_config_change)
        except BaseException as error:
            run.end(reason=f"{type(error).__name__}: {error}"[:500].removesuffix(": "))
            if problem := ran_out(run.program, *run.stages.newest, error):
                raise HaltedError(problem) from None
            raise


def _attempt(run: Run, unfinished: str, allow_config_change: bool) -> int:
    """Goes on with the run to its end, or until it is stopped; returns the exit code.

    Args:
      unfinished: what is wrong with the newest checkpoint, which would be the run's last if it were good.
    """
    past = run.past
    # Compiling and restoring draw power too.
    meter = meter_of_this_process(run.config.compute.device_watts)
    cut = past.recorded.get("events_bytes", 0) - files.size(run.directory.events)
    if past.resuming:
        run.open_log()
    announce_start(run)
    state = _begin(run, unfinished, None if allow_config_change else run.data)
    if past.resuming:
        # Before this attempt has an account of energy.
        for line in lost_lines.notes(run.directory, list(read_jsonl(run.directory.events)), cut):
            run.say(f"lost: {line}")
    if run.writes:
        run.claim()
    if meter:
        run.energy = run.stack.enter_context(EnergyLog(run.directory.energy, jax.process_index(), meter))
    run.open_log()
    if trunk := past.trunk:
        sequences = sequences_before(read_jsonl(run.directory.events))
        run.trunk = {"run": str(trunk.directory.path), "step": trunk.step, "sequences": sequences}
    introduce(run)
    try:
        state, reason = _train(run, state)
    except CorruptionError as found:
        disown(run, found)
        return RESUMABLE
    stopped = int(state.step)
    finished = stopped >= run.length
    if finished:
        with run.pause(
            "verifying the last checkpoint", "save", "no step is left; ending once the last checkpoint is verified"
        ):
            run.saver.verify(stopped)
    run.end(step=stopped, reason="finished" if finished else reason)
    if not finished:
        kept = ", saved" if stopped > run.position.start else ""
        run.say(f"stopped at step {stopped} of {run.length} ({reason}){kept}; run the same command to go on")
        return RESUMABLE
    with run.stopping.during("the run is finished and saved; ending after the sample"):
        conclude(run, state.params)
    return FINISHED


def _begin(run: Run, unfinished: str, data: str | None) -> TrainState:
    """Compiles the step, and makes or restores the state meanwhile, which saves the time of the shorter one.

    Whether the compiled step fits into memory is known only after both.

    Args:
      unfinished: as of `_attempt`.
      data: fingerprint of the data training goes on with; None: any.
    """
    program, past, bad = run.program, run.past, []

    def quarantined(step: int, reason: str, moved_to: str) -> None:
        bad.append(step)
        run.quarantined(step, reason, moved_to)

    if unfinished:
        quarantined(past.saved[-1], unfinished, run.checkpointer.put_aside(past.saved[-1]))
    run.checkpointer.prepare(program.state)
    compile_began = time.monotonic()
    batch_size = program.clockwork.batches.at((past.saved[-1] if past.saved else past.first) + 1)
    with run.clock.on("compile"):
        lowered = program.lower_train_step(batch_size)
    restoring = time.monotonic()
    with ThreadPoolExecutor(1) as compiler, _alone_or_in_time():
        # XLA compiles without Python's lock.
        compiling = compiler.submit(lambda: (lowered.compile(), time.monotonic() - compile_began))
        with run.clock.on("restore"):
            checkpointer = run.checkpointer
            newest = checkpointer.restore_newest(program.state, data, None, quarantined) if past.resuming else None
            state, sequences = (newest.state, newest.sequences) if newest else run.first_state(data)
        seconds = time.monotonic() - restoring
        with run.clock.on("compile"):
            compiled, compile_seconds = compiling.result()
    run.stages.compiled[batch_size] = compiled
    run.saver.standing = newest is not None
    refuse_together(step_problem(program, batch_size, compiled))
    announce_origin(run, newest, sequences, seconds, bool(bad))
    announce_compiled(run, compile_seconds)
    run.position = Position(int(state.step), sequences, program.clockwork.batches)
    run.context = RunContext(program, run.stream, run.position)
    return state


def _train(run: Run, state: TrainState) -> tuple[TrainState, str]:
    """Runs the loop; returns the last state, and why it ended if it did before the run's length."""
    run.open_recorder()
    check, stop = CorruptionCheck.make(run), StopHook.make(run)
    ring, stragglers = SnapshotRing.make(run), StragglersHook.make(run)
    hooks: list[RunHook | None] = [
        check,  # before anything is saved
        EvaluateHook.make(run),
        SaveHook.make(run),
        stop,
        ProfileHook.make(run),
        run.stages,
        LandscapeHook.make(run),
        ring,
        stragglers,
    ]

    def sources(steps: range) -> BatchSource:
        return TimedSource(run.program.objective.source(run.context, steps), run.clock)

    recovery, report = Recovery(run, sources, ring), partial(_report, run, stragglers)
    with _saves_finished(run):
        if run.stopping.agreed():
            stop.explain(run.position.start)
            return state, stop.reason
        with run.clock.on("train"), _alone_or_in_time():
            state = recovery.run(check or run.stages, state, report, [Accounted(hook, run) for hook in hooks if hook])
    return state, stop.reason


def _report(run: Run, stragglers: StragglersHook | None, done: StepReport) -> None:
    """Takes note of a finished step, for everything that does so at each one; the last may raise `Trouble`."""
    # The first step is not timed as a step: it waits for processes that compile, or read, for longer.
    run.watchdog.beat(f"the step after {done.step}")
    run.clock.step(done.step, run.events)
    if run.energy:
        run.energy.beat()
    if stragglers:
        stragglers.report(done)
    run.recorder.report(done)
    run.watch.report(done)


@contextmanager
def _saves_finished(run: Run) -> Iterator[None]:
    """Finishes the save under way, whatever ends what is done within."""
    doing = "finishing the save", "save"
    try:
        yield
    except BaseException:
        with run.pause(*doing, "the loop has ended by an error; ending once the save under way is written"):
            run.saver.part()
        raise
    with run.pause(*doing, "the loop is over; ending once the last save is written"):
        run.saver.finish()
        run.checkpointer.close()


def _alone_or_in_time() -> AbstractContextManager[None]:
    """An error within waits for a compilation or a save on its way out; one of several processes does not for long."""
    if jax.process_count() == 1:
        return nullcontext()
    return failing_in_time(HEARTBEAT_SECONDS, together=CorruptionError)
