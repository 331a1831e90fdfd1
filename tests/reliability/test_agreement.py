"""How differences between processes are told; real processes are in training/test_agreement.py."""

from blobjax.reliability.agreement import differences


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
