"""When states are saved, and that storage which is slow, full or gone is told instead of waited for."""

import shutil

import pytest

from blobjax.checkpointing.files import probe
from blobjax.config import BatchSizes, Clockwork, Durations, HaltedError
from blobjax.config.schema import Checkpoint
from blobjax.processes.timers import Earliest
from blobjax.program.batches import Position
from blobjax.runs.directory import EventLog, read_jsonl
from blobjax.training.hooks import SaveHook
from blobjax.training.saving import Saver

CLOCKWORK = Clockwork(tokens_per_step=1, flops_per_token=1.0, params=1, tokens_per_epoch=1, length=10)


class Storage:
    """Takes the place of a Checkpointer: writes down what it is asked, and fails or takes its time when told to."""

    def __init__(self):
        self.saved = []
        self.committed = []
        self.error = None
        self.problem = ""
        self.slow = False
        self.waited = None
        self._pending = None

    @property
    def writing(self):
        return self._pending is not None and self.slow

    def save(self, state, step, sequences, data, metric, inputs):
        self.saved.append((step, sequences, data, metric))
        self._pending = step
        return True

    def wait(self, seconds=None):
        if self._pending is None or self.slow:
            self.waited = seconds
            return self._pending is None
        step, self._pending = self._pending, None
        if self.error is not None:
            raise self.error
        self.committed.append(step)
        return True

    def probe(self, seconds):
        return self.problem

    def steps(self):
        return self.committed

    def newest_finite(self):
        if self.error is not None:
            raise self.error
        return self.committed[-1] if self.committed else None

    in_a_run = True


class Hooks:
    """A Saver and its hook with everything around it; time stands still unless it is moved."""

    def __init__(self, path, every="4 steps"):
        self.path = path / "events.jsonl"
        self.now = 0.0
        self.storage = Storage()
        self.said = []
        clock, position = lambda: self.now, Position(2, 100, BatchSizes(8))
        self.saver = Saver(
            self.storage,
            Checkpoint(stall_limit="5 seconds", write_limit="1 minute"),
            EventLog(self.path),
            lambda step: (position.sequences(step), "text", step / 10, {}),
            self.said.append,
            clock,
        )
        self.hook = SaveHook(self.saver, Earliest(Durations.parse(every), CLOCKWORK, clock), 10)

    def step(self, step):
        if self.hook.due(step):
            self.hook.run(step, None)

    def events(self):
        return [(event["event"], event["step"]) for event in read_jsonl(self.path)]


@pytest.fixture
def run(tmp_path):
    return Hooks(tmp_path)


def test_a_save_counts_the_sequences_of_a_resumed_run(run):
    assert [step for step in range(1, 11) if run.hook.due(step)] == [4, 8, 10]
    run.hook.run(4, None)
    run.hook.run(4, None)
    assert run.storage.saved == [(4, 116, "text", 0.4)]
    assert run.events() == [], "a save is an event when it is committed, not before"
    run.step(5)
    assert run.events() == [("save", 4)], "and then at once"


def test_the_last_step_is_saved_and_waited_for(run):
    for step in range(1, 11):
        run.step(step)
    assert run.storage.committed == [4, 8, 10]
    assert run.events() == [("save", 4), ("save", 8), ("save", 10)]


def test_steps_or_time_whichever_comes_first(tmp_path):
    run = Hooks(tmp_path, every=["4 steps", "10 seconds"])
    for step in range(1, 10):
        run.now += 1 if step < 6 else 6
        run.step(step)
    # At step 4; then ten seconds after it, which also puts off the next by time.
    assert [saved[0] for saved in run.storage.saved] == [4, 7, 8]


def test_a_save_that_falls_due_during_another_waits_a_while_and_is_left_out(run):
    run.step(4)
    run.storage.slow = True
    run.now = 7.0
    run.step(8)
    assert run.storage.waited == 5.0, "after the stall limit"
    assert [saved[0] for saved in run.storage.saved] == [4], "training goes on"
    assert run.events() == [("save_skipped", 8)]
    assert "that of step 4 has been in the writing for 7 s" in run.said[0]
    run.storage.slow = False
    run.step(9)
    assert run.events() == [("save_skipped", 8), ("save", 4)]


def test_a_save_that_is_not_written_within_the_limit_ends_the_run(run):
    run.step(4)
    run.storage.slow = True
    run.now = 61.0
    with pytest.raises(HaltedError, match="save of step 4 was not written within 1 minute"):
        run.step(8)


def test_a_stop_waits_for_the_save_under_way_and_for_its_own(run):
    run.step(4)
    run.saver.save_now(5, None)
    assert run.storage.committed == [4, 5]
    run.storage.slow = True
    with pytest.raises(
        HaltedError, match=r"step 6 could not be saved within 3 s; the newest checkpoint is that of step 5"
    ):
        run.saver.save_now(6, None, within=3.0)


def test_a_failed_save_is_said_at_the_next_step_and_training_goes_on(run):
    run.step(4)
    run.storage.error = OSError(28, "No space left on device")
    run.step(5)
    assert run.events() == [("save_failed", 4)]
    assert "step 4: not saved: OSError: [Errno 28] No space left on device; there is no checkpoint" in run.said[0]
    run.storage.error = None
    run.step(8)
    run.step(9)
    assert run.events() == [("save_failed", 4), ("save", 8)]


def test_no_step_is_named_that_is_gone_with_its_run(run):
    run.step(4)
    run.step(5)
    run.storage.in_a_run = False
    run.storage.problem = "RUN/checkpoints is gone"
    run.step(8)
    assert "the run's directory is gone, and what it held" in run.said[-1]


@pytest.mark.parametrize("how", ["writing fails", "nothing can be written"])
def test_the_third_failure_in_a_row_ends_the_run(tmp_path, how):
    run = Hooks(tmp_path, every="1 step")

    def broken(now):
        run.storage.error = OSError("no") if now and how == "writing fails" else None
        run.storage.problem = "the disk is away" if now and how != "writing fails" else ""

    # One that succeeds between failures counts anew.
    for step, now in enumerate((False, True, True, False, True, True), 1):
        broken(now)
        run.step(step)
    broken(True)

    def go_on():  # whether writing failed is known at the step after
        run.step(7)
        run.step(8)

    with pytest.raises(HaltedError, match="3 saves in a row failed; the newest checkpoint is that of step"):
        go_on()
    assert [event for event, _ in run.events()[-3:]] == ["save_failed"] * 3


def test_a_last_save_that_fails_is_no_success(run):
    run.storage.error = OSError("no")
    with pytest.raises(HaltedError, match="step 10 could not be saved"):
        run.step(10)


def test_a_run_that_ends_by_an_error_finishes_its_save(run):
    run.step(4)
    run.saver.part()
    assert run.events() == [("save", 4)]


def test_a_probe_says_why_nothing_can_be_written(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    assert probe(checkpoints) == ""
    assert list(checkpoints.iterdir()) == []
    shutil.rmtree(tmp_path / "run")
    assert probe(checkpoints) == f"{checkpoints} is gone"
    assert not checkpoints.exists(), "a directory that vanished is not made anew"
    # As a save does that was being written meanwhile.
    checkpoints.mkdir(parents=True)
    assert probe(checkpoints) == f"{checkpoints} is gone"


def test_a_save_that_committed_in_the_background_can_be_gone_on_from_although_nobody_looked(run):
    run.step(4)
    assert not run.saver.resumable()
    run.storage.wait()
    assert run.saver.resumable()
    run.storage.committed.clear()
    assert not run.saver.resumable()


def test_whether_it_can_be_gone_on_from_is_what_was_known_where_the_storage_fails(run):
    run.step(4)
    run.step(5)
    run.storage.error = OSError("gone")
    assert run.saver.resumable()
