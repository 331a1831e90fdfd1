"""One attempt at a run: what its hooks need. Hooks know the Run, and not each other.

What more than one of them works with (the recorder, the saver, the train steps, the windows of rollbacks) is the Run's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from rich.console import Console

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.processes.clock import Clock
from blobjax.processes.energy_log import EnergyLog
from blobjax.processes.stopping import Stopping
from blobjax.processes.watchdog import Watchdog
from blobjax.program.batches import Position
from blobjax.program.state import TrainState
from blobjax.runs.directory import EventLog
from blobjax.runs.passages import write_passages
from blobjax.training import flow_summary
from blobjax.training.context import RunContext
from blobjax.training.inputs import inputs
from blobjax.training.preflight import Ready
from blobjax.training.recorder import Recorder
from blobjax.training.saving import Saver, SaveRecord
from blobjax.training.stages import Stages
from blobjax.training.trouble import FiniteWatch, GuardWatch


class Run:
    """One process's attempt at a run, from its state to its end.

    Args:
      ready: what preflight found.
      console: what the person watching sees.
      watchdog: ends the process when it makes no progress.
      stopping: takes the signals.
      clock: keeps account of this process's time.
      stack: closes what the run opens, the newest first.

    Attributes:
      program, stream, data, directory, past, config, length, writes: as in `Ready`.
      events: events.jsonl.
      checkpointer: saves and restores the run's states.
      saver: saves between steps, whatever storage does.
      stages: the train step.
      watch: takes the reports of steps, and raises `Trouble`.
      energy: what the run draws; None where that is not known.
      passages: windows of data that rollbacks left out; grows with each one.
      trunk: `run`, `step` and `sequences` that the run began from; None: from nothing.
      good: the newest step that a check for silent corruption found good.
      evaluated: the newest evaluation of this attempt: its step, and its metrics.
      position: where in the data stream a step is; set when there is a state.
      context: the run as its objective sees it; set with the position.
      recorder: every writer of metrics; set when the loop is about to begin.
    """

    position: Position
    context: RunContext
    recorder: Recorder

    def __init__(
        self, ready: Ready, console: Console, watchdog: Watchdog, stopping: Stopping, clock: Clock, stack: ExitStack
    ):
        self.began, self.program, self.stream, self.data = ready.began, ready.program, ready.stream, ready.data
        self.directory, self.past, self.writes = ready.directory, ready.past, ready.writes
        self.config, self.length = ready.config, ready.length
        self.console, self.watchdog, self.stopping, self.clock, self.stack = console, watchdog, stopping, clock, stack
        self.events = stack.enter_context(EventLog(self.directory.events if self.writes else None, wait=True))
        policy = self.config.checkpoint
        self.checkpointer = Checkpointer(self.directory.checkpoints, policy)
        self.saver = Saver(self.checkpointer, policy, self.events, self._save_record, self.say)
        self.stages = Stages(self.program, self.events)
        guard, limit = self.config.conditioning.guard, self.config.reliability.nonfinite_limit
        self.watch = GuardWatch(guard, self.say, self.events) if guard else FiniteWatch(limit, self.length)
        self.energy: EnergyLog | None = None
        self.passages = list(self.past.passages)
        self.trunk: dict[str, Any] | None = None
        self.good: int | None = self.past.recorded.get("good_step")
        self.evaluated: tuple[int, dict[str, float]] = (-1, {})

    def open_log(self) -> None:
        """From now on events are written to the disk: a new directory holds none before it is the run's."""
        self.events.open()
        self.watchdog.write_to(self.directory.path, self.events)

    def claim(self) -> None:
        """Makes the directory the run's; writes the windows of rollbacks there where their file is gone."""
        self.directory.claim(self.config)
        path = self.directory.passed_over
        if self.passages and not path.is_file():
            write_passages(path, self.passages)
            if not self.past.trunk or self.saver.standing:
                source = "a checkpoint's record" if self.past.recorded else self.directory.events.name
                self.say(f"{path} is gone: written anew from {source}")

    def open_recorder(self) -> None:
        """From now on metrics are recorded, and on the way out they are summarised."""
        directory = self.directory if self.writes else None
        if directory and self.config.conditioning.probes:
            # Before the recorder, so after it has written its last, however the run ends.
            self.stack.callback(self._summarise_flow)
        self.recorder = self.stack.enter_context(
            Recorder(self.program, self.stream, self.position, directory, self.console, self._energy_metrics)
        )

    def first_state(self, data: str | None) -> tuple[TrainState, int]:
        """The state the run begins from, and the data stream's position there.

        Args:
          data: fingerprint of the data training goes on with; None: any.
        """
        trunk = self.past.trunk
        return trunk.restore(self.program.state, data) if trunk else (self.program.init(), 0)

    @contextmanager
    def pause(self, doing: str, account: str, outlook: str = "") -> Iterator[None]:
        """What is done within may take longer than a step, and its time goes to an account of the clock.

        Args:
          outlook: what the line after a signal says will happen; empty: what it said before.
        """
        during = self.stopping.during(outlook) if outlook else nullcontext()
        with self.watchdog.patience(doing), self.clock.on(account), during:
            yield

    def say(self, line: str) -> None:
        """Prints a line for the person watching, above a live one."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def quarantined(self, step: int, reason: str, moved_to: str) -> None:
        """Writes down, and says, that a bad checkpoint was moved away."""
        self.events.write("quarantine", step=step, reason=reason, moved_to=moved_to)
        self.say(f"checkpoint {step} is bad ({reason}): moved to {moved_to}")

    def end(self, **facts: Any) -> None:
        """Writes the attempt's last words: what its time went to, and why it ends."""
        self.stopping.farewell = None
        self.clock.write(self.events)
        self.events.write("stop", **facts)

    def own_tokens(self, sequences: int) -> int:
        """Tokens up to a position in the stream, less those that the run it began from was trained on."""
        before = self.trunk["sequences"] if self.trunk else 0
        return (sequences - before) * self.config.data.seq_len

    def _energy_metrics(self, sequences: int) -> dict[str, Any]:
        return self.energy.metrics(self.own_tokens(sequences)) if self.energy else {}

    def _save_record(self, step: int) -> SaveRecord:
        best, (evaluated, metrics) = self.config.checkpoint.keep_best, self.evaluated
        metric = metrics.get(best.metric) if best and evaluated <= step else None
        tokenizer, events = self.stream.tokenizer.fingerprint, self.directory.events
        decides = inputs(self.config, tokenizer, self.passages, self.trunk, self.good, events)
        return self.position.sequences(step), self.data, metric, decides

    def _summarise_flow(self) -> None:
        found = flow_summary.conclude(self.directory, self.config, self.stream)
        if found is not None:
            flow_summary.show(found, self.console)
