"""flow.json and the table: read from a run's own metrics, whatever ended it."""

import io
import json
import math

import numpy as np
from rich.console import Console

from blobjax.runs.directory import RunDirectory
from blobjax.training import flow_summary
from blobjax.training.trainer import train
from tests.tiny import tiny


def test_a_probed_run_ends_with_a_table_and_keeps_it(tmp_path, capsys):
    settings = tiny("conditioning.probe_every=3", "duration.length=6 steps", f"logging.run_dir={tmp_path}/run")
    assert train(settings) == 0
    printed = capsys.readouterr().out
    for expected in ("flow at the last probe", "embedding", "block_00", "block_01", "output", "residual"):
        assert expected in printed
    found = json.loads((tmp_path / "run" / "flow.json").read_text())
    assert list(found["places"]) == ["embedding", "block_00", "block_01", "output", "run"]
    assert found["places"]["run"]["probes"]["cross_entropy"]["first"] > 5
    # Of English bytes.
    assert 2.5 < found["unigram_entropy"] < 3.5
    assert found["places"]["block_01"]["probes"]["residual_rms"]["last"] > 0


def test_without_probes_there_is_none(tmp_path, capsys):
    assert train(tiny("duration.length=2 steps", f"logging.run_dir={tmp_path}/run")) == 0
    assert "flow at" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "flow.json").exists()


def test_numbers_that_json_does_not_know_stay_readable(tmp_path):
    directory = RunDirectory(tmp_path)
    wide = {f"flow/block_00/{name}": -1.234e-05 for name in ("residual_rms", "attention_entropy", "dead_fraction")}
    wide |= {f"flow/block_00/{name}": 1.234e-05 for name in ("attention_logit_max", "update_ratio", "weight_sqnr_db")}
    lines = [
        {"step": 1, "flow/block_00/grad_rms": 0.5, "flow/output/log_z_mean": 5.217},
        {"step": 2, "flow/block_00/grad_rms": "nan", **wide},
    ]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = flow_summary.conclude(directory, tiny())
    kept = json.loads(directory.flow.read_text())
    assert kept["places"]["block_00"]["probes"]["grad_rms"]["last"] == "nan"
    assert kept["verdict"] == "turbulent"
    console = Console(file=io.StringIO(), width=60)
    flow_summary.show(found, console)
    text = console.file.getvalue()
    assert "5.22" in text
    assert "1.23e-05" in text
    assert "…" not in text
    assert "nan !!" in text
    assert "block_00: grad_rms is not finite at step 2" in text


def test_an_overflow_that_loss_scaling_refused_is_no_turbulence(tmp_path):
    directory = RunDirectory(tmp_path)
    lines = [
        {"step": 1, "loss": 5.5, "loss_scale": 65536.0, "grad_norm": "inf", "flow/block_00/grad_rms": "inf"},
        {"step": 2, "loss": 5.5, "loss_scale": 32768.0, "grad_norm": 1.0, "flow/block_00/grad_rms": 0.5},
    ]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert flow_summary.conclude(directory, tiny())["verdict"] == "laminar"
    # Without loss scaling it is what it looks like.
    directory.metrics.write_text(json.dumps({k: v for k, v in lines[0].items() if k != "loss_scale"}) + "\n")
    assert flow_summary.conclude(directory, tiny())["verdict"] == "turbulent"


def test_entropy_is_that_of_what_was_drawn_from_not_of_the_sample():
    """4,096 equally frequent words, two draws each on average: the frequencies alone say a quarter of a nat too little.

    The correction leaves what the words that were never drawn, one in seven, would add: less than a third of it.
    """
    words, draws = 4096, 8192
    counts = np.bincount(np.random.default_rng(9).integers(words, size=draws), minlength=words)
    p = counts[counts > 0] / draws
    plain = -float(np.sum(p * np.log(p)))
    true = math.log(words)
    assert plain < true - 0.2
    assert abs(flow_summary.entropy(counts) - true) < (true - plain) / 3
    assert flow_summary.entropy(np.array([0, 5])) == 0
