"""A run's page says what is known, whatever became of the run, and nothing that is nobody's business."""

import json
import math
import os
import subprocess
import sys

import pytest

from blobjax.cli import commands
from blobjax.compute.flops import param_count
from blobjax.config import BadInputError
from blobjax.reliability.mixture import HELD_OUT
from blobjax.reliability.status import lines as status_lines
from blobjax.report import command, facts, run_page
from blobjax.report.html import human
from blobjax.report.prices import Prices
from tests.report.made_up import TOKENS_PER_STEP, evaluation, line, start, stop, write
from tests.report.page import Page, check


def page_of(folder, prices=None) -> Page:
    return check(run_page.page(facts.read(folder), prices or Prices()))


def test_a_finished_run_has_it_all(tmp_path):
    spent = {"event": "spent", "time": 99, "seconds": {"init": 9, "train": 90}, "first_step": 1, "last_step": 100}
    compiled = {
        "event": "compile",
        "time": 5,
        "seconds": 4,
        "memory_bytes": {"arguments": 2048, "temporaries": 3 * 2**20},
    }
    metrics = [line(step, 5 / step**0.1) for step in range(1, 101)]
    metrics[50:50] = [evaluation(50, 2.5)]
    metrics += [evaluation(100, 2.25)]
    run = write(
        tmp_path / "run",
        [start(0), compiled, {"event": "skip", "time": 50, "step": 50}, spent, stop(100)],
        metrics,
        energy={0: {"nvml": 3.6e6}, 1: {"nvml": 3.6e6}},
    )
    page = page_of(run, Prices(price=3, grid=400))
    for words in (
        "Trained to its length, step 100 of 100.",
        "51.2k tokens",
        "25.6k of them unique",  # two epochs
        "most repeated: shakespeare, 2.00 epochs",
        "1 effective domain",
        "51.2M FLOPs",
        "1 skip, 0 rollbacks",
        "next-token",
        "2 kWh",
        "3.3",  # kWh at the wall: times 1.5 and 1.1
        "1.32",  # kg
        "2.250",
        "steps that count",
        "Goodput 90.0%",
        "2.0 kB",
        "3.1 MB",
        "0.02778 chip-hours while it was up (a CPU is one chip, however many devices it appears as): 0.08 at 3 each.",
        "8 × cpu",
        "Energy at the chips",
        "2 kWh measured",
    ):
        assert words in page.text, words
    assert page.tags.count("img") == 4


@pytest.mark.parametrize(
    ("events", "metrics", "words"),
    [
        ([], [], "This run has not begun"),
        ([start(0)], [], "No loss has been logged yet."),
        (
            [start(0)],
            [line(1)],
            "This run is not finished: it died at step 1 of 100 (its process ended without a word)",
        ),
        ([start(0), stop(9, "SIGTERM", 7)], [line(1), line(7)], "it stopped at step 7 of 100 (SIGTERM)"),
        (
            [start(0), stop(9, "HaltedError: halted at step 7: loss is nan", None)],
            [line(step, "nan") for step in range(1, 8)],
            "it halted at step 7 of 100",
        ),
        ([start(0), stop(9, "OSError: no space <left>", None)], [line(1), line(2)], "(OSError: no space <left>)"),
        ([start(0), stop(9)], [line(step, "nan") for step in range(1, 101)], "but the loss is not finite"),
        (
            [start(0), stop(9)],
            [line(1, "inf"), line(2), line(50, "nan"), line(100, 2.0)],
            "2 of 4 values are not finite",
        ),
        (
            [start(0, device_kind=None, mesh=None, versions=None, length="x")],
            [line(1, loss="x"), {"step": 2}],
            "not finished",
        ),
        ([start(0, began="x", devices=None, processes=None), stop(3, step=1)], [line(1, tokens="x")], "Trained"),
    ],
    ids=["not begun", "no line", "one step", "stopped", "halted", "failed", "diverged", "gaps", "odd", "odder"],
)
def test_whatever_became_of_it(tmp_path, events, metrics, words):
    page = page_of(write(tmp_path / "run", events, metrics))
    assert words in page.text
    assert "Ingredients" in page.text


def test_an_integer_beyond_every_float_spoils_no_page(tmp_path):
    huge = 10**400
    metrics = [line(step) for step in range(1, 11)] + [
        line(11, huge, tokens=huge, grad_norm=huge),
        {**line(12), "step": huge},
    ]
    metrics.append({"step": 12, "flow/block_00/grad_rms": huge})
    events = [start(0, devices=huge, flops_per_token=huge), {"event": "skip", "time": 5, "step": huge}, stop(9)]
    page_of(write(tmp_path / "run", events, metrics, energy={0: {"nvml": huge}}))


def test_restarts_rollbacks_and_what_they_undid(tmp_path):
    rollback = {"event": "rollback", "time": 25, "step": 60, "to_step": 40, "reason": "loss is nan"}
    run = write(
        tmp_path / "run",
        [
            start(0, processes=2),
            start(20, processes=4),
            {"event": "resume", "time": 22, "step": 30},
            rollback,
            stop(40),
        ],
        [line(step, 4.0) for step in range(1, 101)],
        undone_metrics="".join(json.dumps(line(step, 9.0)) + "\n" for step in range(41, 61)) + '{"torn',
    )
    page = page_of(run)
    assert "Dotted lines: where the run was started again." in page.text
    assert "Rollback at step 60 to step 40: loss is nan." in page.text
    assert "2 attempts" in page.text
    assert "20 logged steps undone" in page.text
    # A CPU is its process's chip, whatever its devices: 2 for no known time, 4 for 20 s.
    assert facts.read(run).chip_hours == pytest.approx(4 * 20 / 3600)


@pytest.mark.parametrize("verdict", ["stagnant", "turbulent"])
def test_flow_is_judged_where_the_judgement_is_about_the_newest_probe(tmp_path, verdict):
    probed = [line(step) | {"flow/block_00/update_ratio": 0.5, "flow/embedding/grad_rms": 0.1} for step in (10, 20)]
    row = {"first": 0.5, "last": 0.5, "largest": 0.5, "verdict": verdict, "why": ""}
    judged = {
        "verdict": verdict,
        "sentences": ["It is rough."],
        "places": {"block_00": {"probes": {"update_ratio": row}}},
    }
    ended = page_of(write(tmp_path / "a", [start(0), stop(9)], probed, flow=json.dumps(judged)))
    assert "It is rough." in ended.text
    assert "0.5 !!" in ended.text
    # Killed since: what stands in flow.json is about an earlier attempt.
    killed = page_of(write(tmp_path / "b", [start(0), stop(9), start(10)], probed, flow=json.dumps(judged)))
    assert "It is rough." not in killed.text
    assert "Not held against thresholds" in killed.text
    assert "0.5" in killed.text


def test_counters_and_estimates_are_never_added(tmp_path):
    accounts = {0: {"nvml": 3.6e6, "estimate: 700 W a H100 SXM": 1.8e6}}
    run = write(tmp_path / "run", [start(0), stop(9)], [line(1), line(2)], energy=accounts)
    page = page_of(run, Prices(grid=100))
    assert "1 kWh measured and 1,800 kJ estimated" in page.text
    assert "1.5" not in page.text.replace("1.5 for hosts", "")
    assert "tokens per joule" not in page.text
    assert facts.read(run).tokens_per_joule is None
    same = write(tmp_path / "same", [start(0), stop(9)], [line(100)], energy={0: {"nvml": 512.0}})
    assert facts.read(same).tokens_per_joule == TOKENS_PER_STEP * 100 / 512


def test_of_a_branch_energy_is_held_against_what_it_trained_itself(tmp_path):
    branch = {"event": "branch", "time": 1, "step": 80, "sequences": 80 * 16}
    metrics = [line(step) for step in range(81, 101)]
    # Killed before its first save: it began once more.
    events = [start(0), branch, start(5), {**branch, "time": 6}, stop(9)]
    run = write(tmp_path / "run", events, metrics, energy={0: {"nvml": 100.0}})
    found = facts.read(run)
    assert (found.tokens, found.own_tokens) == (100 * TOKENS_PER_STEP, 20 * TOKENS_PER_STEP)
    assert found.tokens_per_joule == 20 * TOKENS_PER_STEP / 100
    page = page_of(run)
    assert "51.2k tokens" in page.text
    assert "10.2k of them in this run, which began from another" in page.text
    assert "10.2M of them in this run" in page.text
    assert "102 tokens per joule" in page.text
    assert "energy: 100 J (nvml); 102 tokens/J" in status_lines(found.status)


def test_what_stands_in_an_event_is_text_and_no_html(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    events = [start(0, processes=bad, devices=bad, device_kind=bad, mesh={bad: bad}, versions={bad: bad}), stop(9, bad)]
    run = write(tmp_path / "run", events, [line(1), line(2)], energy={0: {bad: 9.0}})
    text = run_page.page(facts.read(run), Prices())
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x") > 8


def test_names_that_are_no_formula_and_no_text_spoil_no_page(tmp_path):
    """The files of a run may be anybody's."""
    names = ("$\\frac{$", "$x", "\ud800", "_hidden", "\n")
    lines = [
        {**line(step), **{f"eval/{name}/{what}": 2.0 for name in names for what in ("cross_entropy", "bits_per_byte")}}
        for step in range(1, 4)
    ]
    run = write(tmp_path / "run", [start(0), stop(9)], lines)
    text = run_page.page(facts.read(run), Prices())
    assert "\\frac{$" in text
    text.encode()
    assert text.count("<img") >= 2


def test_what_breadth_comes_to(tmp_path):
    weights = "data.mixture={shakespeare: 2, bible: 1, mathematics: 1, empty: 0}"
    source = "data.sources={empty: {kind: text, path: nowhere.txt}}"
    found = facts.read(write(tmp_path / "run", [start(0)], [line(1)], source, weights))
    assert found.shares == {"shakespeare": 0.5, "bible": 0.25, "mathematics": 0.25}
    assert found.effective_domains == pytest.approx(2**1.5)
    assert math.isnan(found.unique_tokens)  # nothing is known of two of the domains
    assert "unique tokens not known" in page_of(found.directory.path).text


def test_secrets_and_places_stay_where_they_are(tmp_path):
    run = write(
        tmp_path / "run",
        [start(0), stop(9, "OSError: https://me:hunter2@example.com/x?sig=hunter2 api_key=hunter2 refused", None)],
        [line(1), line(2)],
        "data.sources={web: {kind: text, path: '/hunter2/a.txt'}}",
        "logging.wandb={project: hunter2}",
        f"data.prepared_dir={tmp_path}/hunter2",
    )
    text = run_page.page(facts.read(run), Prices())
    assert "hunter2" not in text
    assert str(tmp_path) not in text
    assert "OSError: https://…@example.com/x?…" in check(text).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (950, "950"),
        (999.6, "1000"),
        (12345, "12.3k"),
        (999_600, "1000k"),
        (8.03e9, "8.03B"),
        (2.8e17, "2.8e17"),
    ],
)
def test_counts_are_read_in_three_figures(value, shown):
    assert human(value) == shown


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from blobjax.cli import _run; code, words = _run(); print(words, file=sys.stderr); "
        "sys.exit(9 if 'jax' in sys.modules else code)"
    )
    return subprocess.run([sys.executable, "-c", program, "report", *arguments], capture_output=True, text=True)


def test_the_command_writes_the_page_and_needs_no_jax(tmp_path):
    run = write(tmp_path / "run", [start(0), stop(9)], [line(1), line(2)])
    done = call(str(run), "--price", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"page: {run / 'report.html'}\n"
    assert check((run / "report.html").read_text())
    assert call(str(run), "--out", str(tmp_path / "there.html")).returncode == 0
    assert (tmp_path / "there.html").is_file()


@pytest.mark.parametrize(
    ("out", "prices", "words"),
    [
        ("", {"price": -1}, "--price -1 must be a number of at least 0"),
        ("", {"grid": float("nan")}, "--grid nan must be"),
        ("", {"pue": 0.5}, "--pue 0.5 must be a number of at least 1"),
        ("{tmp}", {}, "is a directory; give a file"),
        ("{tmp}/no/x.html", {}, "there is no directory"),
        ("{tmp}/run/metrics.jsonl", {}, "belongs to the run or study in"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, out, prices, words):
    run = write(tmp_path / "run", [start(0)], [])
    with pytest.raises(BadInputError) as caught:
        command.run(run, out.replace("{tmp}", str(tmp_path)), Prices(**prices))
    (said,) = caught.value.problems
    assert words in said


def test_an_empty_name_is_no_file(tmp_path):
    run = write(tmp_path / "run", [start(0), stop(9)], [line(1), line(2)])
    with pytest.raises(BadInputError, match="--out: an empty name"):
        commands.app(["report", str(run), "--out", ""], standalone_mode=False)
    assert not (run / "report.html").exists()


def test_what_is_no_run_is_one_line(tmp_path):
    for place, words in ((tmp_path / "none", "is no directory"), (tmp_path, "holds no config.yaml of a run")):
        done = call(str(place))
        assert done.returncode == 2
        (said,) = done.stderr.strip().splitlines()
        assert words in said


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"pip install 'blobjax\[plot\]'"):
        command.run(write(tmp_path / "run", [start(0)], []), "", Prices())


def test_what_is_estimated_is_called_that_and_never_the_wall(tmp_path):
    run = write(tmp_path / "run", [start(0), stop(100)], [line(100)], energy={0: {"estimate: 5 W a core": 5870.0}})
    text = page_of(run).text
    assert "5.87 kJ estimated" in text
    assert "From the wall" not in text


def test_above_a_table_with_marks_it_does_not_say_that_nothing_went_wrong(tmp_path):
    events, metrics = [start(0), stop(100)], [line(100, **{"flow/block_00/grad_rms": 9.0})]

    def judged(verdict: str) -> str:
        probe = {"grad_rms": {"verdict": verdict}}
        return json.dumps({"sentences": [], "places": {"block_00": {"probes": probe}}})

    bad = page_of(write(tmp_path / "bad", events, metrics, flow=judged("turbulent"))).text
    assert "9 !!" in bad
    assert "Probes beyond their thresholds, in the table of the flow below: 1 turbulent (!!)." in bad
    assert "No event of trouble" not in bad
    good = page_of(write(tmp_path / "good", events, metrics, flow=judged("laminar"))).text
    assert "No event of trouble was written down, and no judged probe is beyond its threshold." in good
    # A run that was not judged is not said to be well.
    unjudged = page_of(write(tmp_path / "unjudged", events, metrics)).text
    assert "No event of trouble was written down." in unjudged
    assert "no judged probe" not in unjudged
    failed = page_of(write(tmp_path / "failed", [start(0), stop(9, "HaltedError: no way", None)], metrics)).text
    assert "No event of trouble" not in failed


def test_tokens_for_each_parameter_are_counted_as_a_length_is(tmp_path):
    """The width of the tables is most of a small model: with them 10 tokens/param would be shown as less."""
    found = facts.read(write(tmp_path / "run", [start(0), stop(100)], [line(100)]))
    inside, outside = (param_count(found.config.model, found.config.conditioning, embeddings=e) for e in (True, False))
    assert outside < inside
    tokens = 10 * outside
    run = write(tmp_path / "ten", [start(0), stop(100)], [line(100, tokens=tokens)])
    assert facts.read(run).tokens_per_param == 10
    assert "10 tokens per parameter" in page_of(run).text


def test_one_held_out_number_is_weighted_as_the_mixture_everywhere(tmp_path):
    losses = {f"eval/{name}/{metric}": value for name, value in (("shakespeare", 2.0), ("bible", 4.0), ("jargon", 9.0))
              for metric in ("cross_entropy", "perplexity", "bits_per_byte")}  # fmt: skip
    weights = "data.mixture={shakespeare: 3, bible: 1, jargon: 0}"
    text = page_of(write(tmp_path / "run", [start(0), stop(100)], [line(100), {"step": 100, **losses}], weights)).text
    # (3 × 2 + 1 × 4) / 4; jargon is evaluated and not trained on.
    assert f"2.500 bits per byte held out, {HELD_OUT}" in text
    (row,) = (row for row in text.splitlines() if row.startswith(f"all: {HELD_OUT}"))
    assert row.count("2.5") == 2


def test_a_pipe_in_place_of_an_account_of_energy_is_one_line(tmp_path):
    write(tmp_path, [start(0), stop(9)], [])
    (tmp_path / "energy").mkdir(exist_ok=True)
    (tmp_path / "energy" / "0.json").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "energy" / "0.json")
    asked = [sys.executable, "-m", "blobjax.cli", "report", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"blobjax: {tmp_path / 'energy' / '0.json'} is not a file")
    assert done.stderr.count("\n") == 1
