"""Real commands in a directory that somebody else has prepared with links: none is followed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY


def blobjax(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blobjax.cli", *arguments], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run stopped in the middle, and how to go on with it."""
    run = tmp_path_factory.mktemp("foreign") / "run"
    settings = [*TINY, f"logging.run_dir={run}", "logging.profile_steps=[8, 9]"]
    done = blobjax("train", "laptop", *settings, "duration.wall_clock_limit=0.001 seconds")
    assert done.returncode == 75, done.stderr
    return run, settings


@pytest.mark.parametrize("name", [".blobjax-hang-0", "undone_metrics.jsonl", "profile", "wandb"])
def test_a_run_that_goes_on_follows_none(foreign, tmp_path, name):
    run, settings = foreign
    (run / name).symlink_to(tmp_path / "victim")
    try:
        done = blobjax("train", "laptop", *settings)
    finally:
        (run / name).unlink()
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"blobjax: {run / name} is a symbolic link")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "victim").exists()


def test_nor_does_a_save_the_name_of_an_unfinished_one(foreign, tmp_path):
    run, settings = foreign
    (tmp_path / "victim").mkdir()
    for step in ("4", "8", "12"):
        (run / "checkpoints" / f"{step}.orbax-checkpoint-tmp").symlink_to(tmp_path / "victim")
    done = blobjax("train", "laptop", *settings)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "victim").iterdir())
    assert (run / "checkpoints" / "12").is_dir()


def test_nor_does_a_report_its_own_name(foreign, tmp_path):
    pytest.importorskip("matplotlib")
    run, _ = foreign
    (run / "report.html").symlink_to(tmp_path / "victim")
    try:
        done = blobjax("report", str(run))
    finally:
        (run / "report.html").unlink()
    assert done.returncode == 2, done.stdout
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "name", ["cells.jsonl", "cells", "cells/0", ".blobjax-compiled", ".blobjax-lock", "rate.png", "report.html"]
)
def test_nor_does_a_study(tmp_path, name):
    study = tmp_path / "study"
    path = study / name
    path.parent.mkdir(parents=True)
    (study / "study.yaml").write_text("")
    path.symlink_to(tmp_path / "victim")
    done = blobjax("study", "lr-sensitivity", "--dir", str(study))
    assert done.returncode == 2, done.stdout
    assert f"blobjax: {path} is a symbolic link, and a study writes into its own directory only" in done.stderr
    assert not (tmp_path / "victim").exists()
