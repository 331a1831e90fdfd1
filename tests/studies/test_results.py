"""What a run's files say of its cell."""

import json
import math

import pytest

from blobjax.studies.results import jsonable, read, write_cells
from blobjax.studies.study import load_study
from tests.studies.small import made_up, write


def test_the_final_loss_is_the_mean_of_the_last_twentieth_and_of_five_at_least():
    assert made_up({"a": "x"}, [9.0] * 95 + [1, 2, 3, 4, 5]).final_loss == 3
    assert made_up({"a": "x"}, [9.0] * 190 + list(range(10))).final_loss == 4.5
    assert made_up({"a": "x"}, [2.0, 4.0]).final_loss == 3
    # Of 100 steps of which every tenth was logged, one is in the last twentieth.
    seldom = made_up({"a": "x"}, [9.0] * 9 + [1.0])
    seldom.metrics[:] = [line | {"step": 10 * line["step"]} for line in seldom.metrics]
    assert seldom.final_loss == 1
    assert math.isnan(made_up({"a": "x"}, [9.0] * 10 + [math.nan]).final_loss)


@pytest.mark.parametrize(
    ("losses", "status", "capped"),
    [
        ([5.0] + [2.0] * 9, "finished", 2),
        ([5.0] + [7.0] * 9, "finished", 5),
        ([5.0, math.nan], "diverged", 5),
        ([5.0, 2.0], "halted", 5),
    ],
)
def test_a_loss_is_capped_where_training_came_to_nothing(losses, status, capped):
    assert made_up({"a": "x"}, losses, status=status).capped_loss == capped


def test_probes_largest_and_newest_by_block():
    result = made_up({"a": "x"}, [5.0, 4.0, 3.0])
    for line, values in zip(result.metrics, ((1.0, 7.0), (9.0, 2.0), (3.0, "nan")), strict=True):
        line |= {"flow/block_00/residual_rms": values[0], "flow/block_01/residual_rms": values[1]}
    assert result.flow["flow/block_00/residual_rms"] == {"max": 9.0, "last": 3.0}
    assert math.isnan(result.flow["flow/block_01/residual_rms"]["max"])
    assert result.by_block("residual_rms")[0] == 3.0
    assert math.isnan(result.flow_of("residual_rms"))
    result.metrics.pop()
    assert result.flow_of("residual_rms") == 9.0
    assert result.flow_of("residual_rms", "last") == 9.0
    assert math.isnan(result.flow_of("no_such_probe"))


STOP = {"event": "stop", "time": 12.0}


@pytest.mark.parametrize(
    ("events", "loss", "expected"),
    [
        ([], 2.0, ("waiting", "")),
        ([{"event": "start", "time": 10.0}], 2.0, ("stopped", "the process ended without a word")),
        ([STOP | {"step": 3, "reason": "SIGTERM"}], 2.0, ("stopped", "SIGTERM")),
        ([STOP | {"step": 1, "reason": "finished"}], 2.0, ("finished", "")),
        ([STOP | {"step": 1, "reason": "finished"}], "nan", ("diverged", "the loss is not finite")),
        # The last step is always among the metrics.
        (
            [STOP | {"step": 30, "reason": "finished"}],
            2.0,
            ("failed", "metrics.jsonl is damaged, it ends at step 1 of 30"),
        ),
        ([STOP | {"reason": "HaltedError: halted at step 3: why"}], 2.0, ("halted", "halted at step 3: why")),
        ([STOP | {"reason": "ValueError: oh: no"}], 2.0, ("failed", "ValueError: oh: no")),
    ],
)
def test_status(tmp_path, events, loss, expected):
    (cell, *_) = load_study(write(tmp_path), [], tmp_path / "s").cells
    run_dir = tmp_path / "s" / "cells" / cell.name
    run_dir.mkdir(parents=True)
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"torn')
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "cross_entropy": loss}) + "\n")
    result = read(cell)
    assert (result.status, result.reason.partition(";")[0]) == expected


def test_wall_time_is_that_of_all_attempts():
    events = [
        # As a run writes them: the first event knows since when the process was up, and compiling comes after it.
        {"event": "start", "time": 102.0, "began": 100.0},
        {"event": "compile", "time": 107.0, "seconds": 5.0},
        {"event": "stop", "time": 112.0, "step": 3, "reason": "SIGTERM"},
        # Killed, and gone on with by one that found a sign of life of it.
        {"event": "start", "time": 202.0, "began": 200.0},
        {"event": "compile", "time": 205.0, "seconds": 3.0},
        {"event": "start", "time": 301.0, "began": 300.0, "last_alive": 208.0},
        {"event": "stop", "time": 304.0, "step": 9, "reason": "finished"},
    ]
    assert made_up({"a": "x"}, [1.0], events=events).wall_seconds == 12 + 8 + 4
    assert made_up({"a": "x"}, [1.0], events=events[:-1]).wall_seconds == 12 + 8 + 1


def test_cells_jsonl_has_a_line_for_each_cell_that_ended(tmp_path):
    results = [
        made_up({"a": "x"}, [5.0, math.inf], status="diverged", **{"eval/shakespeare/bits_per_byte": 2.5}),
        made_up({"a": "y"}, [5.0], status="stopped"),
        made_up({"a": "z"}, [5.0], status="failed"),
    ]
    write_cells(tmp_path / "cells.jsonl", results)
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [(line["cell"], line["status"]) for line in lines] == [("x", "diverged"), ("z", "failed")]
    assert lines[0]["final_loss"] == "inf"
    assert lines[0]["held_out"] == {"eval/shakespeare/bits_per_byte": 2.5}
    assert lines[0]["run_dir"] == "cells/x"
    assert jsonable({"a": [math.nan, (1.0,)]}) == {"a": ["nan", [1.0]]}
