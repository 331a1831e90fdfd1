"""SkyPilot's own parser reads the task; and what its nodes run is run here, by two processes with their environment."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from blobjax.config import dump
from blobjax.reliability.run_directory import read_jsonl
from tests.tiny import tiny

ROOT = Path(__file__).parents[2]
# SkyPilot's own environment: it wants an older click than ours.
PYTHON = Path(os.environ.get("SKYPILOT_PYTHON", ROOT / ".venv-skypilot" / "bin" / "python"))
TASK = ROOT / "launch" / "skypilot.yaml"


@pytest.mark.skipif(not PYTHON.exists(), reason="SkyPilot is not installed (make test-engines)")
def test_skypilot_understands_the_task(tmp_path):
    program = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); (resources,) = task.resources\n"
        "print(task.num_nodes, resources.accelerators, resources.use_spot, resources.job_recovery)"
    )
    # A home of its own: SkyPilot keeps a database there.
    done = subprocess.run(
        [str(PYTHON), "-c", program, str(TASK)],
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()[-1]
    assert said.startswith("2 {'H100': 8} True ")
    assert "'recover_on_exit_codes': [75]" in said
    assert "'max_restarts_on_errors': 2" in said
    broken = tmp_path / "broken.yaml"
    broken.write_text(TASK.read_text().replace("num_nodes", "nodes"))
    refused = subprocess.run([str(PYTHON), "-c", program, str(broken)], capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0


def test_what_two_nodes_run_is_one_run(tmp_path):
    task = yaml.safe_load(TASK.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # $ARGUMENTS is split into words wherever there is a space, so that the settings go through a file.
    (tmp_path / "tiny.yaml").write_text(dump(tiny()))
    script = task["run"].replace(":8476", f":{port}")
    nodes = []
    for rank in range(task["num_nodes"]):
        environment = {
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_TASK_ID": "task",
            "ARGUMENTS": f"{tmp_path / 'tiny.yaml'} seed=1",
            "RUNS": str(tmp_path),
            "BLOBJAX": f"{sys.executable} -m blobjax.cli",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "PYTHONPATH": str(ROOT),
        }
        nodes.append(subprocess.Popen(["bash", "-c", script], env={**os.environ, **environment}))
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    events = list(read_jsonl(tmp_path / "task" / "events.jsonl"))
    assert (events[0]["processes"], events[-1]["reason"]) == (2, "finished")
