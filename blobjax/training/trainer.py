"""A whole training run: checks first, then state (new or restored), the loop with its hooks, and what came of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from rich.console import Console

from blobjax.config import Config, HaltedError
from blobjax.reliability import lost_lines
from blobjax.reliability.agreement import failing_together
from blobjax.reliability.clock import Clock
from blobjax.reliability.energy_log import EnergyLog, energy_line, meter_of_this_process
from blobjax.reliability.outcome import sequences_before
from blobjax.reliability.run_directory import EventLog, read_jsonl
from blobjax.reliability.stopping import RESUMABLE, Stopping
from blobjax.reliability.stragglers import Stragglers
from blobjax.reliability.supervisor import restarted
from blobjax.reliability.timers import Earliest, Every, refuse_together
from blobjax.reliability.watchdog import Watchdog
from blobjax.training import checkpoint_files, flow_summary
from blobjax.training.announcements import facts, headline, warnings
from blobjax.training.batches import Position, training_batches
from blobjax.training.beginning import Begun, alone_or_in_time, announce, begin, first_state
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.corruption import CorruptionCheck, CorruptionError
from blobjax.training.finishing import looks_finished, verify_the_last, wrong_with_the_last
from blobjax.training.finite import FiniteWatch
from blobjax.training.guard_watch import GuardWatch
from blobjax.training.hooks import EvaluateHook, ProfileHook, StopHook, Watched
from blobjax.training.inference import sample
from blobjax.training.inputs import inputs
from blobjax.training.landscape import LandscapeHook
from blobjax.training.loop import Hook, StepReport
from blobjax.training.memory import ran_out, step_problem
from blobjax.training.passages import write_passages
from blobjax.training.preflight import Setting, preflight
from blobjax.training.progress import PatientConsole
from blobjax.training.recorder import Recorder
from blobjax.training.recovery import Recovery, quarantined
from blobjax.training.saving import SaveHook
from blobjax.training.snapshots import SnapshotRing
from blobjax.training.stages import Stages
from blobjax.training.state import TrainState
from blobjax.training.step import Batch

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
    setting = preflight(config, allow_config_change)
    console = PatientConsole(quiet=not setting.writes)
    unfinished = ""
    if looks_finished(setting):
        unfinished = wrong_with_the_last(setting)
        if not unfinished:
            line = f"already finished: {setting.directory.path} is at step {setting.saved[-1]} of {setting.length}"
            console.print(line, highlight=False, soft_wrap=True)
            return FINISHED
    limit = config.reliability.hang_limit
    with Watchdog(limit.seconds if limit else None, jax.process_index()) as watchdog, ExitStack() as stack:
        # Not before: the others wait for the process that prepares the data, however long it takes.
        watchdog.start("compiling and restoring")
        # Before anything is put aside or cleared away that might be another run's.
        with failing_together():
            if setting.writes:
                stack.enter_context(setting.directory.lock())
        events = stack.enter_context(EventLog(setting.directory.events if setting.writes else None, wait=True))
        attempt = _Attempt(setting, console, events, stopping, watchdog, clock, unfinished)
        # Whoever is cut off says so where it can; which step it was at is not known to it.
        stopping.farewell = lambda why, resumable: events.write("stop", reason=why, resumable=resumable)
        try:
            return attempt.run(allow_config_change, stack)
        except BaseException as error:
            attempt.end(reason=f"{type(error).__name__}: {error}"[:500].removesuffix(": "))
            batch_size, needed = attempt.stages.newest if attempt.stages else (config.duration.global_batch_size, {})
            if problem := ran_out(setting.program, batch_size, needed, error):
                raise HaltedError(problem) from None
            raise


def _last_written(setting: Setting) -> float | None:
    """When the attempt before this one last wrote a metric, in seconds since 1970: its last sign of life if it died."""
    try:
        return setting.directory.metrics.stat().st_mtime
    except OSError:
        return None


class _Attempt:
    """One process's life with a run, from its state to its end.

    Args:
      unfinished: what is wrong with the newest checkpoint, which would be the run's last if it were good.
    """

    def __init__(
        self,
        setting: Setting,
        console: Console,
        events: EventLog,
        stopping: Stopping,
        watchdog: Watchdog,
        clock: Clock,
        unfinished: str = "",
    ):
        self.setting = setting
        self.unfinished = unfinished
        self.console = console
        self.events = events
        self.stopping = stopping
        self.watchdog = watchdog
        self.clock = clock
        self.checkpointer = Checkpointer(setting.directory.checkpoints, setting.config.checkpoint)
        self.energy: EnergyLog | None = None
        self.sequences_before = 0
        self.stages: Stages | None = None
        self.trunk: dict[str, Any] | None = None
        # The last step that a check for silent corruption has found good.
        self.good: int | None = setting.recorded.get("good_step")

    def run(self, allow_config_change: bool, stack: ExitStack) -> int:
        """All of it; returns the exit code."""
        setting, events = self.setting, self.events
        # Compiling and restoring draw power too.
        meter = meter_of_this_process(setting.config.compute.device_watts)
        cut = setting.recorded.get("events_bytes", 0) - checkpoint_files.size(setting.directory.events)
        if setting.resuming:
            self._open_log()
        events.write(
            "start",
            began=self.clock.began,
            last_alive=_last_written(setting),
            supervised=restarted(),
            **facts(setting.program),
        )
        began_from = setting.recorded.get("trunk")
        if began_from and not sequences_before(read_jsonl(setting.directory.events)):
            # The event that said so is lost.
            events.write("branch", **began_from)
        begun = self._begin(None if allow_config_change else setting.data)
        if setting.resuming:
            # Before this attempt has an account of energy.
            for line in lost_lines.notes(setting.directory, list(read_jsonl(setting.directory.events)), cut):
                self._say(f"lost: {line}")
        if setting.writes:
            setting.directory.claim(setting.config)
            if setting.passages and not setting.directory.passed_over.is_file():
                write_passages(setting.directory.passed_over, setting.passages)
                if not setting.trunk or begun.restored:
                    source = "a checkpoint's record" if setting.recorded else setting.directory.events.name
                    self._say(f"{setting.directory.passed_over} is gone: written anew from {source}")
        if meter:
            self.energy = stack.enter_context(EnergyLog(setting.directory.energy, jax.process_index(), meter))
        self._open_log()
        if setting.trunk:
            self.sequences_before = sequences_before(read_jsonl(setting.directory.events))
            self.trunk = {
                "run": str(setting.trunk.directory.path),
                "step": setting.trunk.step,
                "sequences": self.sequences_before,
            }
        start = int(begun.state.step)
        self._say(headline(setting.program, start))
        for line in warnings(setting.program):
            self._say(f"warning: {line}")
        try:
            state, reason = self._train(begun, start, stack)
        except CorruptionError as found:
            return self._corrupted(found)
        stopped = int(state.step)
        finished = stopped >= setting.length
        if finished:
            with self.stopping.during("no step is left; ending once the last checkpoint is verified"):
                verify_the_last(self.checkpointer, stopped, events, self.watchdog, self.clock)
        self.end(step=stopped, reason="finished" if finished else reason)
        if not finished:
            kept = ", saved" if stopped > start else ""
            self._say(f"stopped at step {stopped} of {setting.length} ({reason}){kept}; run the same command to go on")
            return RESUMABLE
        with self.stopping.during("the run is finished and saved; ending after the sample"):
            self._conclude(state.params)
        return FINISHED

    def end(self, **facts: Any) -> None:
        """Writes the attempt's last words: what its time went to, and why it ends."""
        self.stopping.farewell = None
        self.clock.write(self.events)
        self.events.write("stop", **facts)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _open_log(self) -> None:
        """From now on events are written to the disk: a new directory holds none before it is the run's."""
        self.events.open()
        self.watchdog.write_to(self.setting.directory.path, self.events)

    def _begin(self, data: str | None) -> Begun:
        """Compiles the step while the state is made or read."""
        setting, bad = self.setting, []

        def put_aside(step: int, reason: str, moved_to: str) -> None:
            bad.append(step)
            self._say(quarantined(self.events, step, reason, moved_to))

        if self.unfinished:
            put_aside(setting.saved[-1], self.unfinished, self.checkpointer.put_aside(setting.saved[-1]))
        begun = begin(setting, self.checkpointer, self.clock, data, put_aside)
        self.stages = Stages(setting.program, {begun.batch_size: begun.train_step}, self.events)
        refuse_together(step_problem(setting.program, begun.batch_size, begun.train_step))
        announce(setting, begun, self.events, self._say, bool(bad))
        return begun

    def _train(self, begun: Begun, start: int, stack: ExitStack) -> tuple[TrainState, str]:
        """Runs the loop; returns the last state, and why it ended if it did before the run's length."""
        setting, events, program, config = self.setting, self.events, self.setting.program, self.setting.config
        stream, clockwork = setting.stream, program.clockwork
        position = Position(start, begun.sequences, clockwork.batches)
        writes_to = setting.directory if setting.writes else None
        if writes_to and config.conditioning.probes:
            # Behind the recorder, so after it has written its last, however the run ends.
            stack.callback(self._summarise_flow)
        recorder = stack.enter_context(
            Recorder(program, stream, position, writes_to, self.console, self.energy, self.sequences_before)
        )
        evaluation = EvaluateHook(program, stream, Every(config.evaluation.every, clockwork), recorder, events)
        best, passages = config.checkpoint.keep_best, list(setting.passages)
        save = SaveHook(
            self.checkpointer,
            config.checkpoint,
            Earliest(config.checkpoint.every, clockwork),
            setting.length,
            position,
            setting.data,
            events,
            metric=lambda step: evaluation.newest(best.metric, step) if best else None,
            inputs=lambda: inputs(
                config, stream.tokenizer.fingerprint, passages, self.trunk, self.good, setting.directory.events
            ),
            say=recorder.say,
            standing=begun.restored is not None,
        )
        stop = StopHook(self.stopping, config.duration.wall_clock_limit, setting.began, save, events)
        profile = stack.enter_context(ProfileHook(config.logging.profile_steps, start, setting.directory.profile))
        stages = self.stages
        assert stages is not None
        watched: list[Hook] = [
            self._watched("evaluate", evaluation),
            self._watched("save", save),
            self._watched("save", stop),
            self._watched("other", profile),
            self._watched("compile", stages),
        ]
        train_step: Any = stages
        if config.reliability.check_every:
            known = [step for step in setting.checked if step <= start]
            # What the first attempt with checks goes out from is taken to be good.
            self.good = max(known, default=start)
            if not known:
                events.write("check", step=start, taken=True)
            train_step = CorruptionCheck(stages, config.reliability.check_every, setting.length, self._checked)
            # Before anything is saved.
            watched.insert(0, self._watched("other", train_step))
        if config.conditioning.surveyed:
            survey = LandscapeHook(program, stream, position, setting.directory, recorder, events)
            watched.append(self._watched("other", survey))
        guard = config.conditioning.guard
        watch = (
            GuardWatch(guard, recorder.say, events)
            if guard
            else FiniteWatch(config.reliability.nonfinite_limit, setting.length)
        )
        ring = None
        if isinstance(watch, GuardWatch) and guard and guard.rollback:
            ring = SnapshotRing(guard.rollback.snapshots, guard.rollback.snapshot_every, watch)
            watched.append(self._watched("other", ring))
        stragglers = None
        if jax.process_count() > 1 and config.reliability.stragglers_every.amount:
            gather_every = Every(config.reliability.stragglers_every, clockwork)
            stragglers = Stragglers(gather_every, events, recorder.say)
            watched.append(self._watched("other", stragglers))

        def batches(steps: range) -> Iterator[Batch]:
            made = training_batches(stream, position, steps, program.batch_sharding, config.data.seq_len)
            return self.clock.waiting(made)

        recovery = Recovery(
            program,
            stream,
            position,
            batches,
            passages,
            ring,
            self.checkpointer,
            save,
            recorder,
            events,
            setting.directory,
            self.watchdog,
            self.clock,
            self.stopping,
            setting.first,
            lambda: first_state(setting, None)[0],
        )

        def report(done: StepReport) -> None:
            self.watchdog.beat(f"the step after {done.step}")
            self.clock.step(done.step, events)
            if self.energy:
                self.energy.beat()
            if stragglers:
                stragglers.note(done.seconds, done.data_wait, done.device_wait)
            recorder.report(done)
            watch.report(done)

        state = begun.state
        try:
            if self.stopping.agreed():
                stop.explain(start)
            else:
                # The first step is not timed as a step: it waits for processes that compile, or read, for longer.
                corrupted = None
                with self.clock.on("train"), alone_or_in_time():
                    try:
                        state = recovery.run(train_step, state, report, watched)
                    except CorruptionError as found:  # to which all come together
                        corrupted = found
                if corrupted:
                    raise corrupted
        except BaseException:
            # Whatever ended the loop, a save under way is worth finishing.
            with self._finishing("the loop has ended by an error; ending once the save under way is written"):
                save.part()
            raise
        with self._finishing("the loop is over; ending once the last save is written"):
            save.finish()
            self.checkpointer.close()
        return state, stop.reason

    def _watched(self, account: str, hook: Any) -> Watched:
        return Watched(hook, account, self.watchdog, self.clock, self.stopping)

    @contextmanager
    def _finishing(self, outlook: str) -> Iterator[None]:
        with self.watchdog.patience("finishing the save"), self.clock.on("save"), self.stopping.during(outlook):
            yield

    def _checked(self, step: int) -> None:
        """A step was found good by the check for silent corruption."""
        self.good = step
        self.events.write("check", step=step)

    def _corrupted(self, found: CorruptionError) -> int:
        """Puts aside what was saved since the last step that was found good, and ends: elsewhere the run may go on."""
        assert self.good is not None
        reason = f"saved by devices that were found to be wrong later ({found})"
        for step, moved_to in self.checkpointer.put_aside_after(self.good):
            self._say(quarantined(self.events, step, reason, moved_to))
        self.events.write("corruption", reason=str(found), good_step=self.good)
        self.end(reason=f"silent corruption: {found}")
        self._say(
            f"silent corruption: {found}; what was saved after step {self.good}, the last that was found good, is put "
            "aside; run the same command on other devices to go on"
        )
        return RESUMABLE

    def _summarise_flow(self) -> None:
        found = flow_summary.conclude(self.setting.directory, self.setting.config, self.setting.stream)
        if found is not None:
            flow_summary.show(found, self.console)

    def _conclude(self, params: Any) -> None:
        """The sampled passage, what the devices drew, and where everything is."""
        config, program = self.setting.config, self.setting.program
        prompt, tokens = config.evaluation.sample_prompt, config.evaluation.sample_tokens
        if prompt:
            with self.watchdog.patience("sampling"), self.clock.on("sample"):
                passage = sample(program.arch, params, self.setting.stream.tokenizer, prompt, tokens, seed=config.seed)
            self.clock.write(self.events)
            self.console.rule("sampled")
            self._say(prompt + passage)
            self.console.rule()
        if self.energy:
            sequences = program.clockwork.batches.sequences(self.setting.length) - self.sequences_before
            self._say(energy_line(self.energy.totals(), sequences * config.data.seq_len))
        self._say(f"run directory: {self.setting.directory.path}")
