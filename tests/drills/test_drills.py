"""The fault drills that are short enough for every change; `make drills` runs all of them, and more thoroughly."""

from types import SimpleNamespace

import pytest

from tools import fault_drill
from tools.drills import run as run_module
from tools.drills.registry import DRILLS
from tools.drills.run import ONE, PATIENCE_SECONDS, CannotRunError, DrillFailedError, Drills, Run

SEED = 1


@pytest.fixture(scope="module")
def drills(tmp_path_factory):
    drills = Drills(tmp_path_factory.mktemp("drills"), quick=True, seed=SEED)
    yield drills
    drills.close()


@pytest.mark.parametrize("name", [name for name, each in DRILLS.items() if each.quick])
def test_drill(drills, name):
    try:
        print(DRILLS[name].function(drills))
    except CannotRunError as reason:
        pytest.skip(f"{name}: {reason}")
    except DrillFailedError as error:
        pytest.fail(f"{name} (seed {SEED}): {error}", pytrace=False)


class Trains(Run):
    """A run on a slow machine: ten steps, each of which takes four looks at it."""

    looks = 0

    def running(self):
        self.looks += 1
        (self.directory / "metrics.jsonl").write_text(f'{{"step": {self.looks // 4}}}\n')
        return [0] if self.looks < 40 else []


@pytest.mark.parametrize(("share_of_patience", "ends"), [(0.2, True), (0.4, False)])
def test_a_run_may_take_any_time_but_not_for_a_step(tmp_path, monkeypatch, share_of_patience, ends):
    seconds = [0.0]

    def sleep(_):
        seconds[0] += share_of_patience * PATIENCE_SECONDS

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=sleep))
    (tmp_path / "run").mkdir()
    run = Trains(tmp_path / "run", ONE)
    (tmp_path / "run-logs" / "0-0.txt").touch()
    if ends:
        assert run.end(PATIENCE_SECONDS, since_a_step=True) == []
    else:
        with pytest.raises(DrillFailedError, match="had not ended"):
            run.end(PATIENCE_SECONDS, since_a_step=True)


def test_the_table_is_put_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{fault_drill.BEGIN}\nold\n{fault_drill.END}\nafter\n")
    drill = DRILLS["sigstop"]
    fault_drill.write(page, fault_drill.table([(drill, "one | two")], seed=7))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"| `sigstop` | {drill.does} | {drill.must} | one \\| two |" in text
    assert "--seed 7" in text
