"""The fault drills that are short enough for every change; `make drills` runs all of them, and more thoroughly."""

import pytest

from tools import fault_drill
from tools.drills.registry import DRILLS
from tools.drills.run import CannotRunError, DrillFailedError, Drills

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
