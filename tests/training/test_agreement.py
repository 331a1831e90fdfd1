"""Real processes that were not started with the same: all end with 2 before anything is computed, and each says why."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import blobjax
from blobjax.processes.agreement import source_digest
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.training.branching import Trunk
from blobjax.training.trainer import train
from tests.tiny import TINY, tiny

PACKAGE = Path(blobjax.__file__).parent
# A config of its own, environment and code for one of several processes: what a pod with stale hosts has.
Own = tuple[tuple[str, ...], dict[str, str]]
SAME: Own = ((), {})


def together(run_dir: Path, *own: Own) -> list[tuple[int, str]]:
    """Starts a process for each of these over loopback; exit code and output of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = [
        *TINY,
        f"compute.mesh={{data: {len(own)}}}",
        f"logging.run_dir={run_dir}",
        "duration.global_batch_size=24",
    ]
    processes = []
    for rank, (overrides, environment) in enumerate(own):
        place = {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(len(own)),
            "JAX_PROCESS_ID": str(rank),
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_PLATFORMS": "cpu",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "blobjax.cli", "train", "laptop", *shared, *overrides],
                env={**os.environ, **place, **environment},
                cwd=run_dir.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def refused(run_dir: Path, *own: Own) -> list[str]:
    """What all of them say, the same, on their way out with 2; nothing was begun."""
    ended = together(run_dir, *own)
    assert [code for code, _ in ended] == [2] * len(own), ended
    said = [[line for line in output.splitlines() if line.startswith("blobjax: ")] for _, output in ended]
    assert all(lines == said[0] for lines in said), said
    assert not run_dir.exists()
    return said[0]


def test_keys_that_differ_are_named_with_their_values_and_the_processes(tmp_path):
    other = (
        "evaluation.sequences=8",
        "evaluation.every=3 steps",
        "compute.gradient_accumulation=2",
        "checkpoint.every=[3 steps, 1 hour]",
        "compute.mesh={data: 1, fsdp: 3}",
        "optimizer.beta2=0.99",
    )
    *lines, fix = refused(tmp_path / "run", SAME, (other, {}), SAME)
    assert sorted(lines) == [
        "blobjax: the processes disagree on checkpoint.every: 4 steps (process 0, 2), ['3 steps', '1 hour'] "
        "(process 1)",
        "blobjax: the processes disagree on compute.gradient_accumulation: 1 (process 0, 2), 2 (process 1)",
        "blobjax: the processes disagree on compute.mesh.data: 3 (process 0, 2), 1 (process 1)",
        "blobjax: the processes disagree on compute.mesh.fsdp: 1 (process 0, 2), 3 (process 1)",
        "blobjax: the processes disagree on evaluation.every: 100 steps (process 0, 2), 3 steps (process 1)",
        "blobjax: the processes disagree on evaluation.sequences: 16 (process 0, 2), 8 (process 1)",
        "blobjax: the processes disagree on optimizer.beta2: 0.95 (process 0, 2), 0.99 (process 1)",
    ]
    assert "logging.run_dir" in fix, "which keys may differ"


def test_code_versions_and_flags_that_differ_are_named(tmp_path):
    """One host has a source with another constant, and an environment of its own."""
    shutil.copytree(PACKAGE, tmp_path / "stale" / "blobjax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "configs", tmp_path / "stale" / "configs")
    optimizer = tmp_path / "stale" / "blobjax" / "program" / "optimizer.py"
    optimizer.write_text(optimizer.read_text() + "\nMOMENTUM = 0.9\n")
    stale = {
        "PYTHONPATH": str(tmp_path / "stale"),
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=true --xla_dump_to=/tmp/nowhere " + os.environ["XLA_FLAGS"],
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_ENABLE_X64": "1",
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    *lines, _ = refused(tmp_path / "run", SAME, (("--allow-config-change",), stale))
    digests = r"[0-9a-f]{16} \(process 0\), [0-9a-f]{16} \(process 1\)"
    assert re.fullmatch(rf"blobjax: the processes disagree on the source of blobjax: {digests}", lines[0])
    assert sorted(lines[1:]) == [
        "blobjax: the processes disagree on --allow-config-change: False (process 0), True (process 1)",
        "blobjax: the processes disagree on NVIDIA_TF32_OVERRIDE: (absent) (process 0), 0 (process 1)",
        "blobjax: the processes disagree on XLA_FLAGS --xla_cpu_enable_fast_math: (absent) (process 0), true "
        "(process 1)",
        "blobjax: the processes disagree on jax_default_matmul_precision: None (process 0), bfloat16 (process 1)",
        "blobjax: the processes disagree on jax_enable_x64: False (process 0), True (process 1)",
    ]


def test_a_host_may_have_paths_caches_and_a_copy_of_the_source_of_its_own(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "copy" / "blobjax", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(PACKAGE.parent / "configs", tmp_path / "copy" / "configs")
    os.symlink(tmp_path / "run", tmp_path / "mounted")
    own = (
        f"logging.run_dir={tmp_path / 'mounted'}",
        f"data.prepared_dir={tmp_path / 'prepared'}",
        f"compute.compilation_cache={tmp_path / 'cache'}",
        "compute.device_watts=7",
    )
    environment = {"PYTHONPATH": str(tmp_path / "copy"), "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_dump_to="}
    (tmp_path / "run").mkdir()
    ended = together(tmp_path / "run", SAME, (own, environment))
    assert [code for code, _ in ended] == [0, 0], ended
    assert [line["loss"] for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in line][11:]


def test_directories_that_are_not_the_same_are_refused(tmp_path):
    """Each would train on, until the first checkpoint has one part here and the other there."""
    (tmp_path / "other").mkdir()
    lines = refused(tmp_path / "run", SAME, ((f"logging.run_dir={tmp_path / 'other' / 'run'}",), {}), SAME)
    assert lines == [
        f"blobjax: the processes disagree on the run directory: shared (process 0, 2), {tmp_path / 'other' / 'run'}, "
        "without process 0's files (process 1)",
        "blobjax: give all the same data and one run directory on a file system that all share",
    ]
    assert not any((tmp_path / "other").iterdir())


def test_the_digest_of_the_source_is_of_its_content_alone(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "elsewhere")
    assert source_digest(tmp_path / "elsewhere") == source_digest(PACKAGE)
    (tmp_path / "elsewhere" / "cli" / "began.py").rename(tmp_path / "elsewhere" / "began.py")
    assert source_digest(tmp_path / "elsewhere") != source_digest(PACKAGE)


def test_what_is_wrong_on_one_host_alone_ends_all_with_its_cause(tmp_path):
    """Neither aborts, whichever it is: process 0, in which the others' coordinator lives, or another."""
    (tmp_path / "file").write_text("")
    for alone, override, line in (
        (0, f"data.prepared_dir={tmp_path / 'file'}", f"data.prepared_dir '{tmp_path / 'file'}' cannot be written"),
        (1, f"data.prepared_dir={tmp_path / 'file'}", f"data.prepared_dir '{tmp_path / 'file'}' cannot be written"),
        (0, f"logging.run_dir={tmp_path / 'file'}", f"run directory {tmp_path / 'file'} cannot be written"),
        (1, "duration.start_from=nowhere@4 steps", "is not the directory of a run; it has no config.yaml"),
    ):
        own = [SAME] * 3
        own[alone] = ((override,), {})
        ended = together(tmp_path / "run", *own)
        assert [code for code, _ in ended] == [2] * 3, ended
        said = [[part for part in output.splitlines() if part.startswith("blobjax: ")] for _, output in ended]
        (cause,) = said.pop(alone)
        assert line in cause
        assert said == [[f"blobjax: process {alone} cannot go on: {cause.removeprefix('blobjax: ')}"]] * 2
        assert not any("Stack" in output or "Traceback" in output for _, output in ended)
        assert not (tmp_path / "run").exists()


def test_trunks_that_are_not_the_same_are_refused(tmp_path):
    """Each host has one of its own at the same step, and would train on from its own part of the parameters."""
    for name, seed in (("trunk", 0), ("other", 1)):
        assert train(tiny(f"logging.run_dir={tmp_path / name}", f"seed={seed}", "duration.length=4 steps")) == 0
    shutil.copytree(tmp_path / "trunk", tmp_path / "copy")
    trunks = {name: Trunk(RunDirectory(tmp_path / name), 4).contents() for name in ("trunk", "copy", "other")}
    assert trunks["copy"] == trunks["trunk"] != trunks["other"]
    own = [((f"duration.start_from={tmp_path / name}@4 steps",), {}) for name in ("trunk", "copy", "other")]
    line, _ = refused(tmp_path / "run", *own)
    assert line == (
        f"blobjax: the processes disagree on trunk: step 4, whose arrays and data are {trunks['trunk']} "
        f"(process 0-1), step 4, whose arrays and data are {trunks['other']} (process 2)"
    )


def test_a_run_directory_in_use_ends_all_processes(tmp_path):
    """Process 0 alone asks for the lock."""
    with RunDirectory(tmp_path / "run").lock():
        *ended, (code, output) = together(tmp_path / "run", SAME, SAME)
    assert [code, *(each for each, _ in ended)] == [2, 2], (ended, output)
    assert "blobjax: process 0 cannot go on: run directory" in output
    assert "is in use by another run" in output
