"""What a run must not do to the one who runs it: listen to strangers, or write secrets down."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blobjax.runs.directory import read_jsonl
from tests.tiny import TINY

LOCAL = Path(__file__).parent.parent / "launch" / "local.py"
SECRETS = {
    "WANDB_API_KEY": "wandb-0f4be1d5-secret",
    "HF_TOKEN": "hf-0f4be1d5-secret",
    "AWS_SECRET_ACCESS_KEY": "aws-0f4be1d5-secret",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/gcp-0f4be1d5-secret.json",
}


def listening(processes: set[int]) -> set[str]:
    """Addresses, as the kernel writes them in hexadecimal, that these processes listen at."""
    inodes = set()
    for process in processes:
        for entry in Path(f"/proc/{process}/fd").iterdir():
            target = os.readlink(entry)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


def children(process: int) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # gone meanwhile
                continue
            if parent == process:
                found.add(int(entry.name))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two processes: where they listened while they trained, all they printed, and the run directory."""
    directory = tmp_path_factory.mktemp("security") / "run"
    settings = [*TINY, f"logging.run_dir={directory}", "compute.mesh={data: 2}", "duration.length=40 steps"]
    trainer = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *settings]
    with subprocess.Popen(
        [sys.executable, str(LOCAL), "-n", "2", "-d", "1", "--", *trainer],
        env={**os.environ, **SECRETS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        deadline = time.monotonic() + 240
        while not any(read_jsonl(directory / "metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        addresses = listening(children(launcher.pid))
        output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, output
    return addresses, output, directory


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from /proc, which is not here")
def test_processes_listen_on_the_given_address_only(run):
    addresses, _, _ = run
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same as IPv6 has it
    assert addresses, "nothing listened: the test looked at the wrong processes"
    assert addresses <= loopback


def test_secrets_of_the_environment_are_written_nowhere(run):
    _, output, directory = run
    written = [path for path in directory.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert b"0f4be1d5-secret" not in path.read_bytes(), path
    assert "0f4be1d5-secret" not in output


def test_secrets_of_the_environment_are_not_in_the_page_of_a_run(run, tmp_path):
    _, _, directory = run
    page = tmp_path / "page.html"
    report = [sys.executable, "-m", "blobjax.cli", "report", str(directory), "--out", str(page)]
    done = subprocess.run(report, env={**os.environ, **SECRETS}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0f4be1d5-secret" not in page.read_text()
    assert str(directory) not in page.read_text()


def test_secrets_stay_out_of_the_report_of_a_failure(tmp_path):
    trainer = [sys.executable, "-m", "blobjax.cli", "train", "laptop", *TINY]
    for broken in ("data.tokenizer=nowhere.json", f"logging.run_dir={tmp_path / 'file' / 'run'}"):
        (tmp_path / "file").write_text("")
        done = subprocess.run([*trainer, broken], env={**os.environ, **SECRETS}, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "0f4be1d5-secret" not in done.stdout + done.stderr


# Ends the process at the first object that any library unpickles. Only TensorBoard's writer may: it hands its own
# objects from thread to thread that way, in memory.
NO_PICKLE = """
import os, sys, traceback
def hook(event, arguments):
    if event != "pickle.find_class":
        return
    if not any("tensorboardX" in frame.filename for frame in traceback.extract_stack()):
        os.write(2, "".join([f"unpickled {arguments}", *traceback.format_stack()]).encode())
        os._exit(99)
sys.addaudithook(hook)
from blobjax.cli import main
main()
"""


def without_pickle(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", NO_PICKLE, *arguments], capture_output=True, text=True, timeout=240)


def test_nothing_is_unpickled_on_the_way_from_data_to_a_resumed_run(tmp_path):
    control = NO_PICKLE.replace(
        "from blobjax.cli import main\nmain()", "import pickle; pickle.loads(pickle.dumps(os.getcwd))"
    )
    assert subprocess.run([sys.executable, "-c", control], capture_output=True).returncode == 99
    settings = [*TINY, f"logging.run_dir={tmp_path / 'run'}", f"data.prepared_dir={tmp_path / 'prepared'}"]
    for arguments in (
        ("train", "laptop", *settings, "duration.wall_clock_limit=0.001 seconds"),
        ("train", "laptop", *settings),
        ("sample", str(tmp_path / "run"), "--tokens", "2"),
    ):
        done = without_pickle(*arguments)
        assert done.returncode in (0, 75), done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "12").is_dir()
