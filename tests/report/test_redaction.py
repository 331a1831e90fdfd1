"""What is shown around gives away no secret, and not where files lie."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from blobjax.report import redaction
from blobjax.report.prices import Prices
from blobjax.report.redaction import redacted
from blobjax.studies import confirmation, runner, study_command, study_report
from blobjax.studies.finding import Finding, Prediction
from blobjax.studies.page import page
from blobjax.studies.results import read
from blobjax.studies.study import load_study
from tests.report.made_up import evaluation, leave, line, start, stop
from tests.report.page import check
from tests.studies.small import write

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HF_TOKEN=abc failed", "HF_TOKEN=… failed"),
        ("Authorization token: Bearer abc", "Authorization token: Bearer …"),
        ("s3://key:abc@bucket/x", "s3://…@bucket/x"),
        ("gs://bucket/x?X-Goog-Signature=abc and", "gs://bucket/x?… and"),
        # Not the words alone, and not what is only named like one.
        ("data.tokenizer: bytes", "data.tokenizer: bytes"),
        ("2.083 nats per token: -0.078", "2.083 nats per token: -0.078"),
        ("evaluation.sample_tokens: 256", "evaluation.sample_tokens: 256"),
        ("2,000 tokens: as expected", "2,000 tokens: as expected"),
        # Keys in quotes, and values of several words.
        ('{"token": "abc"}', '{"token": …}'),
        ("{'api_key': 'a b', 'x': 1}", "{'api_key': …, 'x': 1}"),
        (r'"{\"token\": \"a b\", \"x\": 1}"', r'"{\"token\": …, \"x\": 1}"'),
        ('password: "my pass word" refused', "password: … refused"),
        (r'password: "a\"b c" refused', "password: … refused"),
        ('password: "never closed', "password: …"),
        ("Authorization: Bearer sk-abc refused", "Authorization: Bearer … refused"),
        ('{"Authorization": "Bearer sk-abc"}', '{"Authorization": …}'),
        ("authorization: Basic dXNlcjpw", "authorization: Basic …"),
        ("sent Bearer sk-abc", "sent Bearer …"),
        # Tokens that nothing names: whole, wherever they stand; and what only begins like one.
        ("refused ghp_16C7e42F292c6912E7710c838347Ae178B4a here", "refused … here"),
        ("(gho_16C7e42F292c6912E7710c838347Ae178B4a)", "(…)"),
        ("github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz012345", "…"),
        ("a 401 for glpat-abcdefghij0123456789.", "a 401 for …"),
        ("'hf_abcdefghijABCDEFGHIJ0123456789abcd'", "'…'"),
        ("sk-proj-abcdefghij_0123456789, sk-ant-api03-abcdefghij0123", "…, …"),
        ("AKIAIOSFODNN7EXAMPLE and ASIAIOSFODNN7EXAMPLE", "… and …"),
        ("xoxb-123456789012-abcdefghijkl xoxe.xoxp-1-abcdefgh", "… …"),
        ("AIzaSyA0123456789abcdefghijklmnopqrstuvw", "…"),
        ("task-level-parallelism-of-2024, hf_hub, sk-learn, sk-learn-compatible-models, mask_ghp_x, AKIA",) * 2,
        # Passwords that are no part of a URL by its grammar.
        ("https://u:p/w@host/x refused", "https://…@host/x refused"),
        ("https://u:p@w@host/x", "https://…@host/x"),
        ("https://token@host/x", "https://…@host/x"),
        ("https://host:80/x of a@b", "https://host:80/x of a@b"),
        # Where files lie.
        ("No space left on device: '/home/alice/runs/x'", "No space left on device: '…/x'"),
        ("file:///home/alice/a.txt and ~/runs/a.txt", "file://…/a.txt and …/a.txt"),
        ("gs://bucket/a/b/c.txt, 9 tokens/s/chip", "gs://bucket/a/b/c.txt, 9 tokens/s/chip"),
        # Settings, as a whole.
        ("data.prepared_dir=../alice/my data", "data.prepared_dir=…"),
        ("logging={run_dir: x, wandb: {project: y z}}", "logging=…"),
        ("logging.wandb.project=y", "logging.wandb.project=…"),
        ("logging.every=5 steps", "logging.every=5 steps"),
        ("data={prepared_dir: alice, seq_len: 32}", "data={prepared_dir: …, seq_len: 32}"),
        ("data.sources.web.token=my pass word", "data.sources.web.token=…"),
    ],
)
def test_what_would_be_given_away(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown  # a summary is redacted, and so is the page that is made of it


def test_a_command_stays_one():
    typed = "blobjax study x.yaml 'data.prepared_dir=/home/alice/my data' 'grid.rate=[1, 2]' model.d_model=8"
    assert redaction.command(typed) == "blobjax study x.yaml 'data.prepared_dir=…' 'grid.rate=[1, 2]' model.d_model=8"
    assert redaction.command("it's no command, token=abc") == "it's no command, token=…"


def test_a_study_keeps_them_in_its_summary_and_on_its_pages(tmp_path):
    grid = {
        "run": {
            "well": {"data.prepared_dir": f"/home/{SECRET}/prepared", "optimizer.learning_rate": 0.25},
            "ill": {"data.prepared_dir": f"/home/{SECRET}/other"},
        }
    }
    more = [f"compute.compilation_cache=/home/{SECRET}/cache", f"logging={{wandb: {{project: {SECRET}}}}}"]
    plan = load_study(write(tmp_path, grid=grid), more, tmp_path / "study")
    reason = f"OSError: https://alice:{SECRET}@example.com/x?sig={SECRET} token={SECRET} in /home/{SECRET}/x"
    for cell, end in zip(plan.cells, (stop(60, step=30), stop(60, reason, None)), strict=True):
        runner.prepare(cell)
        metrics = [line(step, 5 / step) for step in range(1, 31)]
        leave(Path(cell.config.logging.run_dir), [start(0), end], [*metrics, evaluation(30)])
    (plan.directory / "study.yaml").write_text(study_command._record(plan))
    assert study_command.conclude(plan, Console(quiet=True)) == 1
    summary = json.loads((plan.directory / "summary.json").read_text())
    assert summary["command"].startswith("blobjax study study.yaml --dir again")
    assert "compute.compilation_cache=…" in summary["overrides"]
    assert SECRET not in json.dumps(summary)
    # As an earlier version wrote it.
    summary["command"] = f"blobjax study small.yaml data.prepared_dir=/home/{SECRET}"
    (plan.directory / "summary.json").write_text(json.dumps(summary))
    again = study_report.report(plan.directory, "", Prices())
    for file, typed in ((plan.directory / "index.html", "study.yaml --dir again"), (again, "data.prepared_dir=…")):
        text = file.read_text()
        assert SECRET not in text, file
        shown = check(text).text
        for words in ("OSError: https://…@example.com/x?…", typed, "-> 0.25"):
            assert words in shown, words
        assert "logging" not in shown.replace("logging=…", "")


def test_nor_does_what_was_found_and_predicted_give_them_away(tmp_path):
    plan = load_study(write(tmp_path), [], tmp_path / "study")
    results = [read(cell) for cell in plan.cells]
    settings = {"data.prepared_dir": f"/home/{SECRET}/x", "data.sources.web.token": SECRET, "seed": 7}
    expected = {"law": {"value": 2.0, "low": 1.0, "high": 3.0, "run_low": 1.0, "run_high": 3.0}}
    words = (f"From https://me:{SECRET}@example.com/x?sig={SECRET}.",)
    prediction = Prediction("n", "it", settings, expected)
    finding = Finding(None, words, {"where": f"/home/{SECRET}/x"}, (), prediction=prediction)
    tested = confirmation.Tested(finding.prediction, results[0], 2.0)
    summary = study_command.summarise(plan, results, finding, tested)
    assert SECRET not in json.dumps(summary)
    assert summary["prediction"]["settings"] == {"data.prepared_dir": "…", "data.sources.web.token": "…", "seed": 7}
    text = page(plan, results, summary, finding, tested, [])
    assert SECRET not in text
    assert "data.prepared_dir=…, data.sources.web.token=…, seed=7" in check(text).text
