"""What cannot be shown is replaced: no command ends because stdout is ASCII, Latin-1, or that of a bare locale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

LOCAL = Path(__file__).parent.parent / "launch" / "local.py"
# What Python does when nothing tells it of UTF-8; PYTHONIOENCODING is of the standard streams alone.
ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
TEXT = "Ένα σύννεφο – 雲が流れる，空は青い。\n"


def environment(name: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    return kept | ENVIRONMENTS[name]


def blobjax(name: str, *arguments: str, cwd: Path) -> str:
    """Output of a command, which ends well."""
    done = subprocess.run(
        [sys.executable, "-m", "blobjax.cli", *arguments],
        capture_output=True,
        env=environment(name),
        cwd=cwd,
        timeout=300,
    )
    output = (done.stdout + done.stderr).decode("latin-1")
    assert done.returncode == 0, output
    assert "UnicodeEncodeError" not in output
    return output


def config(folder: Path) -> Path:
    """A config, itself in UTF-8, of documents that neither ASCII nor Latin-1 has letters for."""
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"{number} {TEXT}" * 20, encoding="utf-8")
    text = (
        "include: laptop\n"
        f"data: {{mixture: {{clouds: 1}}, sources: {{clouds: {{path: '{folder}/[0-9]*.txt'}}}},"
        f" prepared_dir: '{folder}/prepared', held_out_fraction: 0.3}}\n"
        f"logging: {{run_dir: '{folder}/run'}}\n"
    )
    (folder / "clouds.yaml").write_text(text, encoding="utf-8")
    return folder / "clouds.yaml"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_command_ends_for_what_it_prints(tmp_path, name):
    path = str(config(tmp_path))
    (tmp_path / "prompt.yaml").write_text(
        "include: clouds.yaml\nevaluation: {sample_prompt: '雲 –', sample_tokens: 8}\n", encoding="utf-8"
    )
    tiny = [each for each in TINY if not each.startswith("evaluation")]
    blobjax(name, "data", "describe", path, *tiny, cwd=tmp_path)
    output = blobjax(name, "train", str(tmp_path / "prompt.yaml"), *tiny, cwd=tmp_path)
    assert "? ?" in output, "the sampled passage, of whose prompt nothing can be shown but the blank"
    assert [line["step"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in line][-1] == 12
    for command in (
        ["config", "show", str(tmp_path / "prompt.yaml"), *tiny],
        ["sample", "run", "--tokens", "8"],
        ["status", "run"],
        ["checkpoint", "list", "run"],
        ["checkpoint", "show", "run"],
        ["report", "run"],
    ):
        blobjax(name, *command, cwd=tmp_path)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_bad_input_that_cannot_be_shown_is_told_all_the_same(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-m", "blobjax.cli", "train", "laptop", "data.mixture={wölkchen–雲: 1}"],
        capture_output=True,
        env=environment(name),
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.startswith(b"blobjax: ")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_launcher_loses_no_line(name):
    code = r"import sys; sys.stdout.buffer.write('\u00fcber \u2013 \u96f2\n'.encode())"
    launch = [sys.executable, str(LOCAL), "-n", "1", "--", sys.executable, "-c", code]
    done = subprocess.run(launch, capture_output=True, env=environment(name), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"[0] ")


def test_the_last_words_are_said_whatever_letters_they_have():
    code = "from blobjax.processes.leaving import leave; leave(7, 'no \\udcff, no 雲')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment("ascii"), timeout=60)
    assert (done.returncode, done.stderr) == (7, b"no \\udcff, no \\u96f2\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_messages_that_cannot_be_written_end_nothing(tmp_path):
    """Nobody can be told then; what a command is asked for is another matter, and fails."""
    arguments = [sys.executable, "-m", "blobjax.cli", "data", "prepare", "laptop", f"data.prepared_dir={tmp_path}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60)
    assert done.returncode == 0
    assert "prepared: " in done.stdout
