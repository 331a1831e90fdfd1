"""A study's life: run, interrupted, killed and gone on with; cells that come to a bad end; what it leaves behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from blobjax.config import BadInputError
from blobjax.runs.directory import read_jsonl
from blobjax.studies import here, worker
from blobjax.studies.cell_progress import Progress
from blobjax.studies.study import ResolvedStudy, load_study
from blobjax.studies.study_command import status
from tests.report.page import Page
from tests.studies.small import BASE, write


def command(path: str, directory: Path, *more: str) -> list[str]:
    jobs = () if "--jobs" in more else ("--jobs", "1")
    return [sys.executable, "-m", "blobjax.cli", "study", path, "--dir", str(directory), *jobs, *more]


def run(path: str, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, directory, *more), capture_output=True, text=True, timeout=300)


def until_step(cell: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not any(line["step"] >= step for line in read_jsonl(cell / "metrics.jsonl")):
        assert process.poll() is None, "the study ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Long enough to be caught in the middle.
SEEDS = {"grid": {"seed": {"key": "seed", "values": [0, 1]}}}
LONG = BASE | {"duration": {"length": "600 steps", "global_batch_size": 4}, "checkpoint": {"every": "100 steps"}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(write(folder, base=LONG, **SEEDS), folder / "study")
    assert done.returncode == 0, done.stderr
    return folder / "study"


def plan(directory: Path) -> ResolvedStudy:
    return load_study(str(directory.parent / "small.yaml"), [], directory)


def cells(directory: Path) -> list[dict]:
    """cells.jsonl without what differs from run to run."""
    lines = [json.loads(line) for line in (directory / "cells.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_stopped_and_killed_in_the_middle_it_comes_to_the_same(tmp_path, undisturbed):
    path, directory = write(tmp_path, base=LONG, **SEEDS), tmp_path / "study"
    first, second = directory / "cells" / "0", directory / "cells" / "1"

    # Ctrl-C in the first cell: saved, and nothing is said to have come of it.
    process = subprocess.Popen(command(path, directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_step(first, 50, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert "run the same command to go on" in output
    assert (directory / "cells.jsonl").read_text() == ""
    assert list(read_jsonl(first / "events.jsonl"))[-1]["reason"] == "SIGTERM"
    assert not (directory / "index.html").exists()

    # kill -9 of the study in the second cell: its worker saves and ends by itself, and a finished cell stays as it is.
    process = subprocess.Popen(command(path, directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until_step(second, 50, process)
    process.kill()
    process.wait()
    finished = contents(first)
    assert list(read_jsonl(first / "events.jsonl"))[-1]["reason"] == "finished"
    done = run(path, directory)
    assert done.returncode == 0, done.stderr
    assert "2 cells, 1 of them done before" in done.stdout
    assert contents(first) == finished
    assert cells(directory) == cells(undisturbed)
    attempts = [event["event"] for event in read_jsonl(second / "events.jsonl")].count("start")
    assert attempts == 2
    # Nothing is left to run, and the same answer is given again.
    before = contents(second)
    again = run(path, directory)
    assert again.returncode == 0, again.stderr
    assert contents(second) == before


def test_a_cell_that_ends_badly_is_a_result_and_one_whose_process_dies_is_tried_again(tmp_path):
    halts = {"conditioning.guard": {"window": 2, "sigmas": 1e-4, "patience": 0}}
    diverges = {"optimizer.learning_rate": 1e30, "conditioning.clip_norm": 0.0}
    slow = {"duration.length": "100000 steps"}
    path = write(tmp_path, grid={"end": {"halts": halts, "diverges": diverges, "dies": slow, "well": {}}})
    directory = tmp_path / "study"
    process = subprocess.Popen(command(path, directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    dying = directory / "cells" / "dies"
    until_step(dying, 3, process)
    os.kill(int((dying / ".blobjax-lock").read_text()), signal.SIGKILL)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    found = {line["cell"]: line for line in cells(directory)}
    assert {name: line["status"] for name, line in found.items()} == {
        "halts": "halted",
        "diverges": "diverged",
        "dies": "failed",
        "well": "finished",
    }
    assert "halted at step" in found["halts"]["reason"]
    assert "SIGKILL" in found["dies"]["reason"]
    assert "4/4  well: finished" in output
    assert (directory / "index.html").is_file()
    shown = subprocess.run(
        [sys.executable, "-m", "blobjax.cli", "study", "status", path, "--dir", str(directory)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert shown.returncode == 0
    assert [line.split()[:2] for line in shown.stdout.splitlines()][1:] == [
        ["halts", "halted"],
        ["diverges", "diverged"],
        ["dies", "failed"],
        ["well", "finished"],
    ]
    # The dead one goes on; here it is stopped again.
    process = subprocess.Popen(command(path, directory), stdout=subprocess.PIPE, text=True)
    until_step(dying, found["dies"]["steps"] + 1, process)
    process.terminate()
    assert process.wait(timeout=100) == 75


def test_a_cell_waits_for_the_one_it_begins_from_and_fails_with_it(tmp_path):
    trunk = {"optimizer.schedule": "constant", "duration.length": "200 steps", "checkpoint.every": "10 steps"}
    grid = {
        "trunk": trunk | {"checkpoint.keep": 100},
        "halts": {"conditioning.guard": {"window": 2, "sigmas": 1e-4, "patience": 0}},
        "of_halts": {"duration.start_from": "halts@80%"},
        "of_trunk": {"duration.start_from": "trunk@80%"},
    }
    path, directory = write(tmp_path, grid={"run": grid}), tmp_path / "study"
    # Two workers: one would be free for the branch while the other trains the trunk.
    done = run(path, directory, "--jobs", "2")
    assert done.returncode == 1, done.stderr
    found = {line["cell"]: line for line in cells(directory)}
    assert {name: line["status"] for name, line in found.items()} == {
        "trunk": "finished",
        "halts": "halted",
        "of_halts": "failed",
        "of_trunk": "finished",
    }
    assert found["of_halts"]["reason"] == "it begins from halts, which is halted"
    (branch,) = (e for e in read_jsonl(directory / "cells" / "of_trunk" / "events.jsonl") if e["event"] == "branch")
    *_, stop = read_jsonl(directory / "cells" / "trunk" / "events.jsonl")
    # 80% of its own 30 steps, rounded down to a checkpoint.
    assert (branch["step"], stop["event"]) == (20, "stop")
    assert branch["time"] > stop["time"]
    assert next(read_jsonl(directory / "cells" / "of_trunk" / "metrics.jsonl"))["step"] == 21
    # The same command finds what is done, and tries what failed once more.
    again = run(path, directory)
    assert again.returncode == 1
    assert "4 cells, 3 of them done before" in again.stdout


def test_in_its_own_process_it_comes_to_the_same(tmp_path, undisturbed):
    path, directory = write(tmp_path, base=LONG, **SEEDS), tmp_path / "study"
    here = [*command(path, directory), "--on", "here"]
    process = subprocess.Popen(here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = directory / "cells" / "0"
    until_step(first, 50, process)
    # Nobody else runs it.
    assert int((first / ".blobjax-lock").read_text()) == process.pid
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert "run the same command to go on" in output
    done = subprocess.run(here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # What a cell prints is seen.
    assert "step 600/600" in done.stdout
    assert "2/2  1: finished" in done.stdout
    assert not list((directory / "cells").glob("*/log.txt"))
    assert cells(directory) == cells(undisturbed)


def test_told_to_stop_it_begins_no_other_cell_however_the_first_one_ends(tmp_path, monkeypatch):
    plan = load_study(write(tmp_path, **SEEDS), [], tmp_path / "study")
    begun = []

    def fails(directory: Path, configured: bool) -> dict:
        begun.append(directory.name)
        return {"code": 1, "error": "OSError: disk full", "told": "SIGINT"}

    monkeypatch.setattr(worker, "run", fails)
    with Progress(2, 0, Console(quiet=True), live=False) as progress, pytest.raises(KeyboardInterrupt):
        here.run(plan, list(plan.cells), progress)
    assert begun == ["0"]
    assert "disk full" in list(read_jsonl(tmp_path / "study" / "cells" / "0" / "events.jsonl"))[-1]["reason"]


def test_in_one_process_jax_is_started_in_one_way(tmp_path):
    path = write(tmp_path, grid={"devices": {"key": "compute.virtual_cpu_devices", "values": [1, 2]}})
    done = run(path, tmp_path / "study", "--on", "here")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "1 and 2 start jax in different ways" in line
    assert not (tmp_path / "study").exists()


def test_what_a_study_leaves_behind(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["reproduced"] is None
    assert summary["cells"] == {"finished": 2}
    assert summary["versions"]["jax"]
    assert summary["command"] == "blobjax study study.yaml --dir again"
    assert str(undisturbed.parent) not in (undisturbed / "summary.json").read_text()
    assert (undisturbed / "final_loss.png").read_bytes().startswith(b"\x89PNG")
    text = (undisturbed / "index.html").read_text()
    page = Page(text)
    assert page.tags.count("h1") == 1
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in text
    assert "@import" not in text
    assert "Is 1 < 2?" in page.text
    assert "Euclid & others" in page.text
    assert "seed: 0 -> 1" in page.text
    assert str(undisturbed.parent) not in text
    again = load_study(str(undisturbed / "study.yaml"), [], undisturbed)
    assert [cell.config for cell in again.cells] == [
        cell.config.model_copy(update={"name": f"study_{cell.name}"}) for cell in plan(undisturbed).cells
    ]
    for cell in (undisturbed / "cells").iterdir():
        assert "600/600" in (cell / "log.txt").read_text()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["duration.length=7 steps"], "duration.length: 600 steps -> 7 steps); give --dir"),
        (["compute.mesh.data=3"], "cell 0: compute.mesh"),
        (["duration.length=1 step", "duration.warmup=2 steps", "grid.seed=[5]"], "cell 5: duration.warmup"),
        (["grid.seed=[0]"], "holds cells of another grid (1); go on with that one by `blobjax study"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(undisturbed, tmp_path, more, expected):
    """Another config in the cells' directories; and what only a run can find out, its devices and data."""
    directory = tmp_path / "new" if expected.startswith("cell") else undisturbed
    done = run(write(tmp_path, base=LONG, **SEEDS), directory, *more)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert expected in line


def test_the_command_of_a_page_works_where_the_page_is(undisturbed, tmp_path):
    (tmp_path / "study.yaml").write_bytes((undisturbed / "study.yaml").read_bytes())
    _, *words = shlex.split(json.loads((undisturbed / "summary.json").read_text())["command"])
    shorter = ["duration={length: 5 steps, global_batch_size: 4, warmup: 2 steps}", "grid.seed=[1]"]
    done = subprocess.run([sys.executable, "-m", "blobjax.cli", *words, *shorter], cwd=tmp_path, capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1/1  1: finished" in done.stdout
    assert (tmp_path / "again" / "index.html").is_file()


def test_a_study_that_was_begun_is_gone_on_with_by_its_directory(undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.glob("cells/*/metrics.jsonl")}
    again = subprocess.run(
        [sys.executable, "-m", "blobjax.cli", "study", str(undisturbed)], capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    assert "2 cells, 2 of them done before" in again.stdout
    assert {path: path.read_bytes() for path in undisturbed.glob("cells/*/metrics.jsonl")} == before
    begun = load_study(str(undisturbed), [])
    assert begun.directory == undisturbed
    assert [cell.config.duration for cell in begun.cells] == [cell.config.duration for cell in plan(undisturbed).cells]


def test_a_cell_whose_record_is_damaged_is_named_with_what_to_do(tmp_path):
    path, directory = write(tmp_path), tmp_path / "study"
    cell = directory / "cells" / "0.001_narrow"
    cell.mkdir(parents=True)
    (directory / "study.yaml").write_text("")
    (cell / "config.yaml").write_text("model: [")
    done = run(path, directory)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "cell 0.001_narrow: " in line
    assert line.endswith(f"remove {cell} to do it again")


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    done = run(write(tmp_path), tmp_path / "there")
    assert done.returncode == 2
    assert "is not empty and holds no study" in done.stderr
    with pytest.raises(BadInputError, match="holds no study"):
        status(write(tmp_path), [], str(tmp_path / "there"))
    with pytest.raises(BadInputError, match="is a file"):
        status(write(tmp_path), [], str(tmp_path / "there" / "file"))


def test_without_matplotlib_nothing_runs(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; from blobjax import cli; "
        f"sys.argv = ['blobjax', 'study', {write(tmp_path)!r}, '--dir', {str(tmp_path / 'study')!r}]; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'blobjax[plot]'" in done.stderr
    assert not (tmp_path / "study").exists()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(write(tmp_path), tmp_path / "file" / "below")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "cannot be written" in line


def test_neither_the_number_of_jobs_nor_the_runner_changes_a_bit(tmp_path):
    """Large enough for XLA to divide sums among threads, and so unstable that their last bits grow into digits."""
    base = BASE | {
        "model": {"n_layers": 2, "d_model": 64, "n_heads": 4, "activation": "gelu", "max_seq_len": 64},
        "data": {"mixture": {"shakespeare": 1}, "seq_len": 64},
        "duration": {"length": "25 steps", "global_batch_size": 16, "warmup": "2 steps"},
        "optimizer": {"learning_rate": 0.3},
    }
    path, found = write(tmp_path, base=base, **SEEDS), {}
    # And whatever the shell would have had the number of threads be.
    for way, shell in ((["--jobs", "1"], {}), (["--jobs", "2"], {}), (["--on", "here"], {"PJRT_NPROC": "3"})):
        directory = tmp_path / "-".join(way).strip("-")
        done = subprocess.run(
            command(path, directory, *way), capture_output=True, text=True, timeout=300, env=os.environ | shell
        )
        assert done.returncode == 0, done.stderr
        found[directory.name] = [
            [line["cross_entropy"] for line in read_jsonl(cell / "metrics.jsonl") if "cross_entropy" in line]
            for cell in sorted((directory / "cells").iterdir())
        ]
        assert [line["cpu_threads"] for line in cells(directory)] == [1, 1]
        assert "with 1 thread" in Page((directory / "index.html").read_text()).text
    first, *others = found.values()
    assert [len(losses) for losses in first] == [25, 25]
    assert others == [first, first]
