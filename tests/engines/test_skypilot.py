"""launch/skypilot.yaml as SkyPilot's own parser reads it, and its `run:` part on two nodes, here two processes.

No cloud is asked. The parser wants SkyPilot's list of accelerators, which it would download; it is given a short one.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]
TASK = ROOT / "launch" / "skypilot.yaml"
parsed = pytest.mark.skipif(
    importlib.util.find_spec("sky") is None, reason="SkyPilot is not installed (make test-engines)"
)

PARSE = """
import json, sys, yaml
import sky

task = sky.Task.from_yaml_config(yaml.safe_load(sys.argv[1]), env_overrides=json.loads(sys.argv[2]))
task.validate(skip_workdir=True)
(resources,) = task.resources
print(json.dumps({
    "nodes": task.num_nodes, "accelerators": resources.accelerators, "spot": resources.use_spot,
    "recovery": resources.job_recovery, "envs": task.envs, "run": task.run,
}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of its own, in which SkyPilot finds the list of accelerators that it would download."""
    folder = tmp_path_factory.mktemp("home")
    ask = "from sky.skylet import constants; print(constants.CATALOG_SCHEMA_VERSION)"
    version = python(folder, "-c", ask).stdout.split()[-1]
    catalog = folder / ".sky" / "catalogs" / version / "common"
    catalog.mkdir(parents=True)
    (catalog / "accelerators.csv").write_text("AcceleratorName,Clouds\nH100,\"['AWS', 'GCP']\"\n")
    return folder


def python(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: importing SkyPilot writes into the home."""
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def parse(task: dict[str, Any], home: Path, **envs: str) -> subprocess.CompletedProcess:
    return python(home, "-c", PARSE, yaml.safe_dump(task), json.dumps(list(envs.items())))


def read() -> dict[str, Any]:
    return yaml.safe_load(TASK.read_text())


@parsed
def test_skypilot_understands_it(home):
    done = parse(read(), home, RUNS_NFS="server:/runs")
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    assert (task["nodes"], task["accelerators"], task["spot"]) == (2, {"H100": 8}, True)
    assert (task["recovery"]["recover_on_exit_codes"], task["recovery"]["max_restarts_on_errors"]) == ([75], 3)
    assert task["run"] == read()["run"]


def change(task: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    at = task
    for parent in parents:
        at = at[parent]
    at[last] = value
    return task


@parsed
@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("num_node", 2, "num_node"),
        ("num_nodes", "two", "two"),
        ("resources.use_spots", True, "use_spots"),
        ("resources.job_recovery.recover_on_exit_codes", ["all"], "all"),
        ("run", ["blobjax", "train"], "run"),
    ],
)
def test_skypilot_refuses_a_damaged_one(home, path, value, line):
    done = parse(change(read(), path, value), home, RUNS_NFS="server:/runs")
    assert done.returncode != 0
    assert line in done.stderr


@parsed
def test_skypilot_asks_for_what_has_no_default(home):
    done = parse(read(), home)
    assert done.returncode != 0
    assert "'RUNS_NFS' is None" in done.stderr


def run_part(folder: Path, *settings: str) -> list[tuple[int, str]]:
    """Runs `run:` once a node, with what SkyPilot tells each; returns exit codes and output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "blobjax").write_text(f'#!/bin/sh\nexec {sys.executable} -m blobjax.cli "$@"\n')
    (programs / "blobjax").chmod(0o755)
    task = read()
    # TRAIN is separated by spaces, so the tiny config goes into a file.
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(dict(include="laptop", **overrides(*TINY, *settings))))
    assert set(task["envs"]) == {"TRAIN", "RUNS_NFS", "COORDINATOR_PORT"}
    envs = {
        "TRAIN": f"{config} logging.run_dir={folder / 'run'}",
        "RUNS_NFS": "server:/runs",
        "COORDINATOR_PORT": port,
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    nodes = [
        subprocess.Popen(
            ["bash", "-c", task["run"]],
            env={**os.environ, **envs, "SKYPILOT_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(task["num_nodes"])
    ]
    try:
        output = [node.communicate(timeout=240)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [(node.returncode, text) for node, text in zip(nodes, output, strict=True)]


def overrides(*settings: str) -> dict[str, Any]:
    """Dotted overrides as the nested mapping of a config file."""
    tree: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        *parents, last = key.split(".")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = yaml.safe_load(value)
    return tree


def test_two_nodes_are_two_processes_of_one_run_which_can_be_gone_on_with(tmp_path):
    stopped = run_part(tmp_path, "compute.mesh={data: 4}", "duration.wall_clock_limit=0.01 seconds")
    assert [code for code, _ in stopped] == [75, 75], stopped
    done = run_part(tmp_path, "compute.mesh={data: 4}")
    assert [code for code, _ in done] == [0, 0], done
    events = list(read_jsonl(tmp_path / "run" / "events.jsonl"))
    assert [(e["processes"], e["devices"]) for e in events if e["event"] == "start"] == [(2, 4), (2, 4)]
    assert events[-1]["reason"] == "finished"
