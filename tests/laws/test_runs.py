"""Points from what runs and studies left."""

import json
import math

import numpy as np
import pytest

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import BadInputError, dump
from blobjax.laws.tables import read
from blobjax.report import facts
from tests.tiny import tiny


def make_run(folder, steps: int = 40, loss: float = 2.0, reason: str = "finished", width: int = 32) -> None:
    """What a run leaves, without the run."""
    config = tiny(f"logging.run_dir={folder}", f"model.d_model={width}", "duration.length=40 steps")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    lines = [
        {
            "step": n,
            "cross_entropy": loss + 10 / n,
            "tokens": n * 512,
            "data/shakespeare/epochs": n / 10,
            "data/bible/epochs": 0.1,
            "data/mathematics/epochs": 0.5,
        }
        for n in range(1, steps + 1)
    ]
    lines[-1]["eval/shakespeare/cross_entropy"] = loss + 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [{"event": "start", "time": 0.0}, {"event": "stop", "time": 1.0, "reason": reason}]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_run_knows_what_it_counts(tmp_path):
    make_run(tmp_path / "run")
    table = read([str(tmp_path / "run")])
    (row,) = table.rows
    config = tiny()
    assert row.cells["params"] == param_count(config.model, config.conditioning, embeddings=True)
    assert row.cells["non_embedding_params"] == param_count(config.model, config.conditioning, embeddings=False)
    assert row.cells["tokens"] == 40 * 512
    assert row.cells["flops"] == pytest.approx(flops_per_token(config.model, 32) * 40 * 512)
    assert row.cells["flops_6nd"] == 6 * row.cells["params"] * 40 * 512
    assert row.cells["loss"] == pytest.approx(2 + np.mean([10 / n for n in range(36, 41)]))
    assert row.cells["eval/shakespeare/cross_entropy"] == 2.5
    assert "embeddings and output projection in" in table.meanings["params"]


def test_tokens_of_repeated_domains_are_not_unique_and_the_report_says_the_same(tmp_path):
    make_run(tmp_path / "run")
    (row,) = read([str(tmp_path / "run")]).rows
    shares = {"shakespeare": 0.6, "bible": 0.2, "mathematics": 0.2}
    assert dict(tiny().data.mixture) == shares
    # Gone through 4 times, 0.1 times and 0.5 times.
    assert row.cells["unique_tokens"] == pytest.approx(row.cells["tokens"] * (0.6 / 4 + 0.2 + 0.2))
    assert facts.read(tmp_path / "run").unique_tokens == row.cells["unique_tokens"]
    # Of a domain of which nothing was written down nothing is made up, in either.
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("data/mathematics/epochs", "other"))
    (row,) = read([str(tmp_path / "run")]).rows
    assert math.isnan(row.cells["unique_tokens"])
    assert math.isnan(facts.read(tmp_path / "run").unique_tokens)


def test_a_study_gives_its_finished_cells_and_names_the_others(tmp_path):
    (tmp_path / "study.yaml").write_text("")
    for n, width in enumerate((32, 64, 96)):
        make_run(tmp_path / "cells" / f"cell{n}", loss=2 - n / 10, width=width)
    make_run(tmp_path / "cells" / "broken", reason="OSError: no space")
    table = read([str(tmp_path)])
    assert len(table.rows) == 3
    assert "broken (failed)" in table.notes[0]
    assert len({row.cells["params"] for row in table.rows}) == 3


def test_a_run_moved_elsewhere_is_read_where_it_lies(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert len(read([str(tmp_path / "moved")]).rows) == 1


def test_a_run_that_has_not_finished_is_refused(tmp_path):
    make_run(tmp_path / "run", reason="KeyboardInterrupt: ")
    with pytest.raises(BadInputError, match=r"no finished run: run \(failed\)"):
        read([str(tmp_path / "run")])


def test_a_training_curve_is_many_points(tmp_path):
    make_run(tmp_path / "run", steps=200)
    rows = read([str(tmp_path / "run")], curves=True).rows
    assert 20 < len(rows) <= 60
    tokens = [row.cells["tokens"] for row in rows]
    assert tokens == sorted(set(tokens))
    assert rows[-1].cells["tokens"] == 200 * 512
    losses = [row.cells["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
