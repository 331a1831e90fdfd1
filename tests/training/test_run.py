"""The Run: hooks are made from it where its config needs them, and their time goes where they say."""

import inspect
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from blobjax import training
from blobjax.processes.clock import Clock
from blobjax.processes.stopping import Stopping
from blobjax.processes.watchdog import PATIENCE, Watchdog
from blobjax.program.batches import Position
from blobjax.runs.directory import read_jsonl
from blobjax.training.corruption import CorruptionCheck
from blobjax.training.hooks import Accounted, EvaluateHook, ProfileHook, SaveHook, StopHook, StragglersHook
from blobjax.training.landscape import LandscapeHook
from blobjax.training.preflight import preflight
from blobjax.training.progress import PatientConsole
from blobjax.training.run import Run
from blobjax.training.snapshots import SnapshotRing
from tests.tiny import tiny

HOOKS = (
    CorruptionCheck,
    EvaluateHook,
    SaveHook,
    StopHook,
    ProfileHook,
    LandscapeHook,
    SnapshotRing,
    StragglersHook,
)
MODULES = sorted(path.stem for path in Path(next(iter(training.__path__))).glob("*.py"))


@contextmanager
def attempt(directory: Path, *overrides: str, limit: float | None = None):
    """A run of the tiny config that is about to begin its loop."""
    ready = preflight(tiny(f"logging.run_dir={directory}", *overrides), False)
    with Watchdog(limit, 0) as watchdog, ExitStack() as stack:
        stack.enter_context(ready.directory.lock())
        run = Run(ready, PatientConsole(quiet=True), watchdog, Stopping(25), Clock(), stack)
        run.claim()
        run.open_log()
        run.position = Position(0, 0, run.program.clockwork.batches)
        run.open_recorder()
        yield run


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), set()),
        (("reliability.check_every=6",), {CorruptionCheck}),
        (("conditioning.noise_scale_every=5",), {LandscapeHook}),
        (("conditioning.guard={rollback: null}",), set()),
        (("conditioning.guard={rollback: {}}",), {SnapshotRing}),
        (("logging.profile_steps=[20, 30]",), {ProfileHook}),
    ],
)
def test_a_hook_is_made_where_the_config_needs_it(tmp_path, overrides, wanted):
    with attempt(tmp_path / "run", *overrides) as run:
        made = {kind for kind in HOOKS if kind.make(run)}
    assert made == {EvaluateHook, SaveHook, StopHook} | wanted


class Waits:
    """A hook that notes how long the watchdog lets it work."""

    def __init__(self, run, patient):
        self.account, self.patient, self.allowed, self._run = "evaluate", patient, 0.0, run

    def due(self, step):
        return step == 3

    def run(self, step, state):
        self.allowed = self._run.watchdog._allowed
        return True


def test_a_hook_has_the_account_and_the_patience_that_it_declares(tmp_path):
    with attempt(tmp_path / "run", limit=60) as run:
        run.watchdog.beat()
        hasty, patient = Waits(run, False), Waits(run, True)
        for hook in (hasty, patient):
            accounted = Accounted(hook, run)
            assert [step for step in range(5) if accounted.due(step)] == [3]
            assert accounted.run(3, None), "what a hook says ends the loop, or does not"
        assert (hasty.allowed, patient.allowed) == (60, 60 * PATIENCE)
        run.clock.write(run.events)
    (spent,) = [event for event in read_jsonl(tmp_path / "run" / "events.jsonl") if event["event"] == "spent"]
    assert "evaluate" in spent["seconds"]


@pytest.mark.parametrize("name", MODULES)
def test_no_constructor_takes_more_than_six_arguments(name):
    module = import_module(f"blobjax.training.{name}")
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and "__init__" in vars(kind):
            assert len(inspect.signature(kind.__init__).parameters) <= 1 + 6, kind
