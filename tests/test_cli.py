"""The command line as a person meets it: help at once; bad input is one clear line, exit code 2, nothing written."""

import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY


def blobjax(*arguments: str, cwd=None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "blobjax.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.mark.smoke
def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv=['blobjax', '--help']\n"
        "from blobjax import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'flax', 'grain', 'orbax', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("train", "sample", "study", "plan", "laws", "status", "checkpoint", "data", "config", "doctor"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "latpop"], "did you mean 'laptop'?"),
        (["train", "laptop", "model.n_layer=3"], "did you mean 'model.n_layers'?"),
        (["train", "laptop", "model.n_layers=three"], "model.n_layers"),
        (["train", "laptop", "model.d_model"], "dotted.key=value"),
        (["train", "laptop", "model.n_heads=3"], "256 / 3 = 85.33"),
        (["train", "laptop", "compute.mesh.data=3"], "there are 1"),
        (["train", "laptop", "duration.global_batch_size=12", "compute.virtual_cpu_devices=8"], "12"),
        (["train", "laptop", "data.seq_len=4096"], "model.max_seq_len"),
        (["train", "laptop", "data.mixture={shakspeare: 1}"], "shakespeare"),
        (["train", "laptop", "data.mixture={a: 1}", "data.sources={a: {path: nowhere/*.txt}}"], "nowhere"),
        (["train", "laptop", "data.tokenizer=nowhere.json"], "nowhere.json"),
        (["train", "laptop", "duration.length=3 fortnights"], "20 tokens/param"),
        (["train", "laptop", "--process-id", "1"], "--coordinator"),
        (["train", "laptop", "duration.warmup=10000 steps"], "10000 steps, more than the 250"),
        (["train", "laptop", "evaluation.sample_tokens=100000"], "model.max_seq_len"),
        (["train", "x" * 5000], "cannot be the name of a file"),
        (["sample", "nowhere"], "not a run directory"),
        (["study", "lr-sensitivty"], "did you mean 'lr-sensitivity'?"),
        (["study", "lr-sensitivity", "model.d_modle=8"], "did you mean 'model.d_model'?"),
        (["study", "lr-sensitivity", "grid.learning_rat=[1]"], "did you mean 'learning_rate'?"),
        (["train", "studies/lr-sensitivity"], "blobjax study lr-sensitivity"),
        (["config", "show", "laptop", "seed=-1"], "seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, arguments, expected):
    done = blobjax(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_yaml_that_refers_to_itself_is_refused(tmp_path):
    (tmp_path / "cycle.yaml").write_text("model: &m {d_model: *m}")
    done = blobjax("config", "show", "cycle.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cycle.yaml:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_does_not_stop_training(tmp_path):
    command = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *TINY, f"logging.run_dir={tmp_path}/run"]
    script = f'{shlex.join(command)} | head -1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "12").is_dir()


def test_all_errors_at_once(tmp_path):
    done = blobjax("train", "laptop", "model.n_layer=3", "optimizer.learning_rate=-1", "dta.seq_len=8", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3, done.stderr


def test_a_run_directory_of_another_config_is_refused_with_a_diff(tmp_path):
    run_dir = f"logging.run_dir={tmp_path / 'run'}"
    assert blobjax("train", "laptop", *TINY, run_dir, "duration.length=2 steps").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*") if path.is_file()}
    done = blobjax("train", "laptop", *TINY, run_dir, "duration.length=2 steps", "seed=5")
    assert done.returncode == 2
    assert "seed" in done.stderr
    assert "--allow-config-change" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*") if path.is_file()} == before
    allowed = [run_dir, "duration.length=4 steps", "seed=5", "--allow-config-change"]
    done = blobjax("train", "laptop", *TINY, *allowed)
    assert done.returncode == 0, done.stderr
    assert "resuming at step 2" in " ".join(done.stdout.split())


def test_version():
    done = blobjax("--version")
    assert (done.returncode, done.stdout) == (0, f"blobjax {version('blobjax')}\n")


def test_a_run_that_halts_says_why_in_one_line_and_exits_1(tmp_path):
    guard = "conditioning.guard={window: 2, sigmas: 1.0e-4, patience: 0}"
    run_dir = f"logging.run_dir={tmp_path}/run"
    done = blobjax("train", "laptop", *TINY, run_dir, guard, "optimizer.learning_rate=3.0", "duration.length=200 steps")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("blobjax: halted at step")


def test_interrupted_on_a_laptop_means_saved_and_resumable(tmp_path):
    run_dir = tmp_path / "run"
    command = ["train", "laptop", *TINY, f"logging.run_dir={run_dir}", "duration.length=100000 steps"]
    process = subprocess.Popen([sys.executable, "-m", "blobjax.cli", *command], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 2 for line in read_jsonl(run_dir / "metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "(SIGINT), saved" in " ".join(output.split())
    stopped = list(read_jsonl(run_dir / "events.jsonl"))[-1]
    assert (stopped["event"], stopped["reason"]) == ("stop", "SIGINT")
    assert (run_dir / "checkpoints" / str(stopped["step"])).is_dir()


def test_an_unwritable_run_directory_is_found_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("")
    done = blobjax("train", "laptop", *TINY, f"logging.run_dir={tmp_path}/file/run")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.smoke
def test_train_then_sample(tmp_path):
    run_dir = tmp_path / "run"
    done = blobjax(
        "train",
        "laptop",
        *TINY,
        f"logging.run_dir={run_dir}",
        "evaluation={every: 6 steps, sequences: 16, sample_prompt: 'ROMEO:', sample_tokens: 20}",
        "logging.profile_steps=[3, 5]",
    )
    assert done.returncode == 0, done.stderr
    assert "held-out bits/byte" in done.stdout
    assert "ROMEO:" in done.stdout
    assert (run_dir / "config.yaml").is_file()
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert list((run_dir / "profile").rglob("*.xplane.pb"))
    drawn = blobjax("sample", str(run_dir), "--prompt", "JULIET:", "--tokens", "20", "--temperature", "0")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("JULIET:")
    again = blobjax("sample", str(run_dir), "--prompt", "JULIET:", "--tokens", "20", "--temperature", "0")
    assert again.stdout == drawn.stdout
    too_long = blobjax("sample", str(run_dir), "--prompt", "x", "--tokens", "1000")
    assert too_long.returncode == 2
    assert "max_seq_len" in too_long.stderr


@pytest.mark.smoke
def test_config_show_is_a_config_again(tmp_path):
    shown = blobjax("config", "show", "laptop", "model.d_model=512", cwd=tmp_path)
    assert shown.returncode == 0
    assert "d_model: 512" in shown.stdout
    (tmp_path / "copy.yaml").write_text(shown.stdout)
    assert blobjax("config", "show", "copy.yaml", cwd=tmp_path).stdout == shown.stdout


@pytest.mark.smoke
def test_doctor_finds_this_machine_well(tmp_path):
    done = blobjax("doctor", str(tmp_path), JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_shell_completion_is_offered():
    done = blobjax("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "COMP_WORDS" in done.stdout


def test_the_help_of_study_shows_the_options_of_the_command_that_has_no_name():
    done = blobjax("study", "--help")
    assert done.returncode == 0, done.stderr
    assert " study [OPTIONS] {name}" in done.stdout.splitlines()[0]
    for each in ("--on", "--jobs", "--dir", "--confirm", "--slurm", "study status NAME"):
        assert each in done.stdout
    assert "study run" not in done.stdout
