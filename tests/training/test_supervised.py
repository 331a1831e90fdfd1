"""A supervised run, from a file of examples to its end, and resumed bitwise."""

import json
import shutil

import pytest

from blobjax.runs.directory import read_jsonl
from blobjax.training.trainer import FINISHED, train
from tests.tiny import tiny
from tests.training.test_resume import assert_same_bits, trajectory

EXAMPLES = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in EXAMPLES))
    return (
        "objective.kind=supervised",
        "data.mixture={sums: 1.0}",
        f"data.sources={{sums: {{kind: examples, path: '{path}'}}}}",
        "data.held_out_fraction=0.2",
        "evaluation.every=6 steps",
        "evaluation.by_position=true",
        "compute.gradient_accumulation=2",
        "compute.loss_chunk_tokens=64",
    )


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    assert train(tiny(*settings, f"logging.run_dir={directory}")) == FINISHED
    return directory


def test_it_learns_answers_and_is_judged_by_them(run):
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["cross_entropy"] < lines[0]["cross_entropy"] - 0.5
    # An example is `|a+b=c`: six or seven tokens, of which two or three are learned.
    assert all(0.2 < line["answer_fraction"] < 0.45 for line in lines)
    evaluated = [line for line in read_jsonl(run / "metrics.jsonl") if "eval/sums/cross_entropy" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert evaluated[1]["eval/sums/bits_per_byte"] > 0
    # Nothing before the last token of a prompt is counted.
    assert "eval/sums/cross_entropy_at/0" not in evaluated[1]
    assert "eval/sums/cross_entropy_at/4" in evaluated[1]


def test_it_resumes_bitwise(run, settings, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "12")
    assert train(tiny(*settings, f"logging.run_dir={again}")) == FINISHED
    assert [event["step"] for event in read_jsonl(again / "events.jsonl") if event["event"] == "resume"] == [8]
    assert trajectory(again) == trajectory(run)
    assert_same_bits(again, run)
