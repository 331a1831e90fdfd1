"""launch/tpu: what the scripts ask of gcloud, and what a worker makes of its VM's metadata.

No TPU and no cloud is asked: `gcloud`, `curl` and `blobjax` are stand-ins that record what they are given, so this
checks our building of arguments. Where the real gcloud is installed, its own parser is asked about them too, offline.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "launch" / "tpu"
GCLOUD = shutil.which("gcloud")

# Writes down its arguments; answers `describe` with the next of the given states; runs what `ssh` is to run on each
# worker of each slice, as the far shell would.
FAKE_GCLOUD = """
import json, os, subprocess, sys
from pathlib import Path
folder = Path(os.environ["FAKE"])
arguments = sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if "describe" in arguments:
    states = json.loads((folder / "states").read_text())
    print(states.pop(0))
    (folder / "states").write_text(json.dumps(states))
if "ssh" in arguments:
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    codes = [
        subprocess.run(["bash", "-c", command], env={**os.environ, "SLICE": str(s), "WORKER": str(w)}).returncode
        for s in range(int(os.environ["SLICES"])) for w in range(int(os.environ["WORKERS"]))
    ]
    sys.exit(next((code for code in codes if code), 0))
"""
FAKE_CURL = """
import os, sys
slices, workers = int(os.environ["SLICES"]), int(os.environ["WORKERS"])
assert "Metadata-Flavor: Google" in sys.argv
addresses = [f"10.0.{os.environ['SLICE']}.{worker}" for worker in range(workers)]
megascale = f"MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.0:8080'\\nMEGASCALE_NUM_SLICES: '{slices}'\\n"
megascale += f"MEGASCALE_SLICE_ID: '{os.environ['SLICE']}'\\n"
answers = {
    "agent-worker-number": os.environ["WORKER"],
    "tpu-env": "ACCELERATOR_TYPE: 'v6e-16'\\n" + (megascale if slices > 1 else ""),
    "worker-network-endpoints": ",".join(
        f"unknown:unknown:{each}" if os.environ.get("TRIPLES") else each for each in addresses
    ),
}
print(answers[sys.argv[-1].rsplit("/", 1)[1]])
"""
FAKE_BLOBJAX = """
import json, os, sys
place = [os.environ[f"JAX_{name}"] for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")]
print(json.dumps([*place, sys.argv[1:]]))
sys.exit(int(os.environ.get("CODE", 0)))
"""


class Cloud:
    """A folder of stand-ins, and the scripts run with it in front of the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, code in (("gcloud", FAKE_GCLOUD), ("curl", FAKE_CURL), ("blobjax", FAKE_BLOBJAX)):
            (folder / name).write_text(f"#!{sys.executable}\n{code}")
            (folder / name).chmod(0o755)

    def run(self, script: str, *arguments: str, states=(), **environment: str) -> subprocess.CompletedProcess:
        (self.folder / "states").write_text(json.dumps(list(states)))
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE": str(self.folder), "POLL_SECONDS": "0"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        return subprocess.run(
            [str(FOLDER / script), *arguments],
            env={**inherited, **path, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


QUEUED = ["compute", "tpus", "queued-resources"]


def test_one_slice_is_a_queued_resource_with_one_node(cloud):
    done = cloud.run("create.sh", "mine", "v6e-16", states=["WAITING_FOR_RESOURCES", "ACTIVE"], ZONE="us-east5-a")
    assert done.returncode == 0, done.stderr
    create, *describes = cloud.calls()
    options = ["--zone=us-east5-a", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--node-id=mine"]
    assert create == [*QUEUED, "create", "mine", *options]
    assert describes == [[*QUEUED, "describe", "mine", "--zone=us-east5-a", "--format=value(state.state)"]] * 2


def test_several_slices_are_one_with_several_nodes(cloud):
    environment = {"ZONE": "z", "SPOT": "1", "RUNTIME": "an-image"}
    done = cloud.run("create.sh", "mine", "v5p-32", "3", "--network=ours", states=["ACTIVE"], **environment)
    assert done.returncode == 0, done.stderr
    options = ["--node-count=3", "--node-prefix=mine", "--spot", "--network=ours"]
    assert cloud.calls()[0][4:] == [
        *("mine", "--zone=z", "--accelerator-type=v5p-32", "--runtime-version=an-image"),
        *options,
    ]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_what_never_comes_is_not_waited_for(cloud, state):
    done = cloud.run("create.sh", "mine", "v6e-16", states=["PROVISIONING", state], ZONE="z")
    assert done.returncode == 1
    assert f"mine is {state}" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "environment"),
    [
        ("create.sh", ["mine", "v6e-16"], {}),
        ("create.sh", ["mine"], {"ZONE": "z"}),
        ("create.sh", ["mine", "v6e-16", "two"], {"ZONE": "z"}),
        ("train.sh", ["mine"], {"ZONE": "z"}),
        ("train.sh", ["mine", "laptop"], {}),
    ],
)
def test_what_is_missing_is_said_in_one_line_before_anything_is_asked_for(cloud, script, arguments, environment):
    done = cloud.run(script, *arguments, **environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert cloud.calls() == []


@pytest.mark.parametrize("triples", ["", "1"])
@pytest.mark.parametrize(("slices", "workers"), [(1, 1), (1, 4), (2, 2)])
def test_every_worker_knows_its_place_and_gets_the_words_as_they_were(cloud, slices, workers, triples):
    train = ["models/1b", "name=on-tpus", "compute.mesh={replica: 2, fsdp: -1}", "evaluation.sample_prompt='It's $5\n'"]
    environment = {"ZONE": "z", "SLICES": str(slices), "WORKERS": str(workers), "TRIPLES": triples}
    done = cloud.run("train.sh", "mine", *train, **environment, SETUP="echo set up")
    assert done.returncode == 0, done.stderr
    (call,) = cloud.calls()
    assert call[:-1] == [*QUEUED, "ssh", "mine", "--zone=z", "--node=all", "--worker=all", "--batch-size=all"]
    lines = done.stdout.splitlines()
    count = slices * workers
    assert lines.count("set up") == count
    assert [json.loads(line) for line in lines if line != "set up"] == [
        ["10.0.0.0:8476", str(count), str(rank), ["train", *train]] for rank in range(count)
    ]


@pytest.mark.parametrize("code", ["75", "2"])
def test_the_exit_code_is_that_of_the_run(cloud, code):
    done = cloud.run("train.sh", "mine", "laptop", ZONE="z", SLICES="1", WORKERS="2", CODE=code)
    assert done.returncode == int(code)


def lint(call: list[str]) -> str:
    """What gcloud's own parser has against a command line, or ''. It runs nothing and asks nobody."""
    quoted = " ".join(f"'{word}'" for word in call)
    ask = [GCLOUD, "meta", "lint-gcloud-commands", f"--command-string=gcloud {quoted}"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=120)
    (answer,) = json.loads(done.stdout)
    return "" if answer["success"] else answer["error_message"]


@pytest.mark.skipif(GCLOUD is None, reason="gcloud is not installed")
def test_the_real_gcloud_knows_these_arguments(cloud):
    for slices in ("1", "2"):
        cloud.run("create.sh", "mine", "v6e-16", slices, states=["ACTIVE"], ZONE="us-east5-a", SPOT="1")
    cloud.run("train.sh", "mine", "laptop", ZONE="us-east5-a", SLICES="1", WORKERS="1")
    calls = [[word if "\n" not in word else "--command=true" for word in call] for call in cloud.calls()]
    assert {call[3] for call in calls} == {"create", "describe", "ssh"}
    assert [lint(call) for call in calls] == [""] * len(calls)
    assert "unrecognized arguments: --accelerator-typo" in lint(
        [word.replace("accelerator-type", "accelerator-typo") for word in calls[0]]
    )
