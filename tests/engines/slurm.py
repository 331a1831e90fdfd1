"""A real Slurm on this machine: its controller, and two nodes that are two daemons on loopback. Needs root.

Everything it writes lies in one folder, and everything it starts is ended with it. There is no systemd and no cgroup in
it, so it also runs in a container.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")

CONFIG = """\
ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
KillWait=20
MailProg=/bin/true
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={n0} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why it cannot be started here; empty if it can."""
    absent = [program for program in PROGRAMS if _find(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed (make test-engines installs them)"
    return "" if os.geteuid() == 0 else "only root can start Slurm's daemons"


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True)
class Slurm:
    """The running cluster."""

    folder: Path

    def __call__(self, *command: str, **environment: str) -> str:
        """Runs one of Slurm's commands and returns what it prints."""
        variables = {**os.environ, **environment, "SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job."""
        return dict(
            word.split("=", 1) for word in self("scontrol", "show", "job", number, "--oneliner").split() if "=" in word
        )

    def wait(self, number: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Waits until a job is in one of these states."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {number} is {job['JobState']} ({job['Reason']})"
            time.sleep(0.2)
        return job


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Starts the cluster, and ends it."""
    for name in ("state", "n0", "n1"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    ports = {name: _free_port() for name in ("controller", "n0", "n1")}
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=socket.gethostname().split(".")[0], **ports))
    munge = [f"--{what}={folder}/munge{end}" for what, end in MUNGE.items()]
    daemons = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n0"],
        ["slurmd", "-D", "-N", "n1"],
    ]
    started: list[subprocess.Popen] = []
    try:
        for command in daemons:
            with (folder / f"{command[0]}{command[-1]}.log".replace("/", "")[-40:]).open("w") as log:
                program = _find(command[0])
                assert program is not None
                started.append(
                    subprocess.Popen(
                        [program, *command[1:]],
                        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
                        stdout=log,
                        stderr=log,
                    )
                )
            time.sleep(1)
        cluster = Slurm(folder)
        deadline = time.monotonic() + 60
        while cluster("sinfo", "--noheader", "--format=%t %D") != "idle 2":
            assert time.monotonic() < deadline, cluster("sinfo")
            time.sleep(0.2)
        yield cluster
    finally:
        for daemon in reversed(started):
            daemon.terminate()
        for daemon in started:
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()


MUNGE = {"key-file": ".key", "socket": ".socket", "pid-file": "d.pid", "log-file": "d.log", "seed-file": ".seed"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
