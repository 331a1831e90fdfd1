"""How differences between processes are told; real processes are in training/test_agreement.py."""

from pathlib import Path

from blobjax.processes.agreement import differences, sees


def test_equal_facts_are_no_difference():
    assert differences([{"a": "1", "b": "2"}] * 3) == []


def test_each_value_is_told_with_the_processes_that_have_it():
    facts = [{"a": "1"}, {"a": "1"}, {}, {"a": "1"}, {"a": "2" * 300}, {"a": "1"}]
    assert differences(facts) == [
        f"the processes disagree on a: 1 (process 0-1, 3, 5), (absent) (process 2), {'2' * 200}… (process 4)"
    ]


def test_two_runs_that_have_nothing_in_common_are_told_in_a_screen_of_lines():
    *lines, last = differences([{str(i): "x" for i in range(100)}, {str(i): "y" for i in range(100)}])
    assert len(lines) == 30
    assert last == "and on 70 things more"


class SeenLate(type(Path())):
    """A directory that a host does not see the first time it looks, as over a cache of a network's file system."""

    looks = 0

    def is_dir(self, **how):
        self.looks += 1
        return (self.looks > 1 or self.name != "run") and super().is_dir(**how)


def test_a_directory_that_is_seen_late_is_looked_for_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".blobjax-1").write_text("")
    assert sees(SeenLate(tmp_path / "run"), ".blobjax-1")
    assert not sees(tmp_path / "run", ".blobjax-2", seconds=0)
    assert sees(tmp_path / "run" / "not made yet", ".blobjax-1")
