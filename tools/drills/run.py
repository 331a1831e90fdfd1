"""A run of real processes, as a drill sees it: started, watched, disturbed from outside, and read from its files.

The processes are started one by one and not by launch/local.py, which would end the others when one has failed: whether
they end by themselves is what most drills are about.
"""

import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blobjax.runs.directory import read_jsonl

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("child.py")
# What compute/runtime.py promises: a process that gives no sign of life for so long is dead to the others.
HEARTBEAT_SECONDS = 10
# The others of a dead process may take this long to end: the heartbeat, the promised 2 s, and as much again for a
# machine that is busy with other things. The seconds that were measured are in what a drill reports.
ENDED_SECONDS = HEARTBEAT_SECONDS + 2 + 12
# Starting and compiling a tiny run, or one step of it, on a machine that may be very busy.
PATIENCE_SECONDS = 300

FINISHED, FAILED, BAD_INPUT, RESUMABLE, KILLED = 0, 1, 2, 75, -signal.SIGKILL


class DrillFailedError(AssertionError):
    """The run did not do what it must."""


class CannotRunError(Exception):
    """A drill needs something that is not there; the text says what."""


@dataclass(frozen=True)
class Setup:
    """What is trained, and by how many processes.

    Attributes:
      every: steps between checkpoints.
      overrides: of the config, besides.
    """

    processes: int = 1
    devices: int = 1
    mesh: str = "{data: 1}"
    length: int = 24
    every: int = 4
    overrides: tuple[str, ...] = ()

    def but(self, *overrides: str, **changes: Any) -> "Setup":
        """The same with other values, and overrides added."""
        return replace(self, overrides=(*self.overrides, *overrides), **changes)

    def arguments(self, directory: Path) -> list[str]:
        """Everything behind `blobjax`."""
        return [
            *("train", "laptop"),
            "model={vocab_size: 256, n_layers: 2, d_model: 32, n_heads: 4, d_ff: 64, max_seq_len: 64}",
            "data.seq_len=32",
            "optimizer={name: adamw, learning_rate: 2.0e-3}",
            f"duration={{length: {self.length} steps, global_batch_size: 8, warmup: 2 steps}}",
            f"checkpoint={{every: {self.every} steps, keep: 3}}",
            "evaluation={every: 1000000 steps, sequences: 8, sample_prompt: ''}",
            f"logging={{every: 1 step, run_dir: {directory}}}",
            f"compute.mesh={self.mesh}",
            *self.overrides,
        ]


ONE = Setup()
TWO = Setup(processes=2, mesh="{data: 1, fsdp: 2}")
FOUR = Setup(processes=4, mesh="{data: 2, fsdp: 2}")


class Run:
    """One run directory and the attempts at it, one after the other. A context manager, so that no process is left."""

    def __init__(self, directory: Path, setup: Setup):
        self.directory = directory
        self.setup = setup
        self.checkpoints = directory / "checkpoints"
        self.attempts = 0
        self._logs = directory.with_name(f"{directory.name}-logs")
        self._logs.mkdir(parents=True)
        self._processes: list[subprocess.Popen] = []
        self._ended: dict[int, float] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_all()

    def start(
        self,
        fault: str = "",
        process: int = 0,
        step: int = 0,
        pace: float = 0,
        environment: Callable[[int], dict[str, str]] = lambda process: {},
        setup: Setup | None = None,
        options: tuple[str, ...] = (),
    ) -> "Run":
        """Starts an attempt: the same command as every other, perhaps inside of `child.py`.

        Args:
          fault: what happens in `process` at `step`; one of child.py's.
          pace: seconds that each step takes at least, so that a moment can be chosen.
          environment: more of it, by process.
          setup: another one, of the same maths.
          options: of the command, besides.
        """
        if setup is not None:
            self.setup = setup
        self.attempts += 1
        self._ended = {}
        program = [sys.executable, "-m", "blobjax.cli"]
        if fault or pace:
            asked = {"fault": fault, "process": process, "step": step, "pace": pace}
            program = [sys.executable, str(CHILD), json.dumps(asked)]
        coordinator = f"127.0.0.1:{_free_port()}"
        self._processes = [
            self._start(
                [*program, *self.setup.arguments(self.directory), *options], rank, coordinator, environment(rank)
            )
            for rank in range(self.setup.processes)
        ]
        return self

    def _start(self, command: list[str], rank: int, coordinator: str, more: dict[str, str]) -> subprocess.Popen:
        place = {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(self.setup.processes),
            "JAX_PROCESS_ID": str(rank),
        }
        environment = {
            **os.environ,
            **(place if self.setup.processes > 1 else {}),
            "JAX_NUM_CPU_DEVICES": str(self.setup.devices),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            # Drills compile far more than they compute, and all compile the same.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            **more,
        }
        with self._log(rank).open("w") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that what it leaves behind can be seen
            )

    def _log(self, rank: int) -> Path:
        return self._logs / f"{self.attempts}-{rank}.txt"

    def output(self, rank: int = 0) -> str:
        """What a process of this attempt has printed so far."""
        return self._log(rank).read_text(errors="replace")

    def send(self, number: signal.Signals, *ranks: int) -> float:
        """Sends a signal to these processes; returns the time, by time.monotonic()."""
        for rank in ranks:
            if self._processes[rank].poll() is None:
                os.kill(self._processes[rank].pid, number)
        return time.monotonic()

    def children(self, rank: int) -> list[int]:
        """Process numbers of what a process has started (Linux)."""
        pid = self._processes[rank].pid
        try:
            return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def kill_all(self) -> None:
        """SIGKILL to whatever is left of this attempt, children included."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def running(self) -> list[int]:
        """Processes that have not ended."""
        for rank, process in enumerate(self._processes):
            if process.poll() is not None:
                self._ended.setdefault(rank, time.monotonic())
        return [rank for rank, process in enumerate(self._processes) if process.returncode is None]

    def wait_until(self, what: str, happened: Callable[[], Any], within: float = PATIENCE_SECONDS) -> Any:
        """What `happened` returns once that is true; fails when a process ends before, or it takes too long."""
        deadline = time.monotonic() + within
        while not (found := happened()):
            if len(self.running()) < self.setup.processes:
                raise DrillFailedError(f"ended, with {self.codes()}, before {what}{self._told()}")
            if time.monotonic() > deadline:
                raise DrillFailedError(f"no {what} within {within:g} s{self._told()}")
            time.sleep(0.005)
        return found

    def wait_for_step(self, step: int) -> None:
        """Returns once metrics.jsonl has this step, of this attempt or an earlier one."""
        self.wait_until(f"step {step}", lambda: self.newest_step() >= step)

    def wait_for_start(self, before: int) -> None:
        """Returns once events.jsonl has more starts than before: metrics of this attempt are the newest now."""
        self.wait_until("start", lambda: len(self.events("start")) > before)

    def wait_for_end_of(self, rank: int, within: float) -> None:
        """Returns once this process has ended; fails when it takes too long."""
        deadline = time.monotonic() + within
        while rank in self.running():
            if time.monotonic() > deadline:
                raise DrillFailedError(f"process {rank} had not ended after {within:g} s{self._told()}")
            time.sleep(0.01)

    def end(self, within: float, *expected: int, since_a_step: bool = False) -> list[int]:
        """The processes' exit codes, once all have ended by themselves; none may need longer, or leave anything behind.

        Args:
          expected: the codes that are right, one for each process, or one for all; none: any.
          since_a_step: every step begins the time anew. How long all of them take is a matter of the machine.
        """
        deadline, newest = time.monotonic() + within, self.newest_step()
        while left := self.running():
            if since_a_step and self.newest_step() != newest:
                deadline, newest = time.monotonic() + within, self.newest_step()
            if time.monotonic() > deadline:
                told = self._told()
                self.kill_all()
                raise DrillFailedError(f"processes {left} had not ended after {within:g} s{told}")
            time.sleep(0.01)
        self._check_nothing_left()
        codes = self.codes()
        if expected and codes != list(expected * self.setup.processes if len(expected) == 1 else expected):
            raise DrillFailedError(f"exit codes {codes}, not {expected}{self._told()}")
        return codes

    def codes(self) -> list[int]:
        """Exit codes by process; the negative of a signal's number where one ended it."""
        return [process.returncode for process in self._processes]

    def seconds_since(self, mark: float, *ranks: int) -> float:
        """How long after a mark the last of these processes ended."""
        return max(self._ended[rank] for rank in ranks) - mark

    def finish(self, **start: Any) -> "Run":
        """Starts it once more and waits until it is finished."""
        self.start(**start).end(PATIENCE_SECONDS, FINISHED, since_a_step=True)
        return self

    def _check_nothing_left(self) -> None:
        deadline = time.monotonic() + 5
        for process in self._processes:
            with suppress(ProcessLookupError):
                while True:
                    os.killpg(process.pid, 0)
                    if time.monotonic() > deadline:
                        self.kill_all()
                        raise DrillFailedError(f"process {process.pid} left children behind")
                    time.sleep(0.05)

    def _told(self) -> str:
        """The end of what each process said, for whoever looks into a failure."""
        ranks = range(self.setup.processes)
        tails = [f"\n[{rank}] ".join(["", *self.output(rank).splitlines()[-15:]]) for rank in ranks]
        return "".join(tails)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """All events, or those of a name."""
        return [each for each in read_jsonl(self.directory / "events.jsonl") if name in ("", each["event"])]

    def losses(self) -> dict[int, Any]:
        """Step to loss; fails where a step stands twice."""
        found: dict[int, Any] = {}
        for line in read_jsonl(self.directory / "metrics.jsonl"):
            if "loss" in line:
                check(line["step"] not in found, f"step {line['step']} stands twice in metrics.jsonl")
                found[line["step"]] = line["loss"]
        return found

    def newest_step(self) -> int:
        """The step of the last line of metrics.jsonl; asked often, so no more than the file's end is read."""
        try:
            with (self.directory / "metrics.jsonl").open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 8192, 0))
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return 0
        whole = [line for line in lines if line.startswith(b'{"step": ') and line.endswith(b"\n")]
        return json.loads(whole[-1])["step"] if whole else 0

    def status(self) -> dict[str, Any]:
        """What `blobjax status` says of it."""
        command = [sys.executable, "-m", "blobjax.cli", "status", str(self.directory), "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        check(done.returncode == 0, f"blobjax status: exit code {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        committed = self.checkpoints.glob("*/_CHECKPOINT_METADATA")
        return sorted(int(each.parent.name) for each in committed if each.parent.name.isdigit())

    def unfinished(self) -> list[Path]:
        """Folders of saves that are being written, or that nobody cleared away."""
        return list(self.checkpoints.glob("*.orbax-checkpoint-tmp*"))

    def state(self, step: int) -> dict[str, bytes]:
        """Every array of a checkpoint by path, read by TensorStore: nothing of ours stands in between."""
        return dict(_arrays(self.checkpoints / str(step)))

    def check_same_end(self, other: "Run") -> None:
        """Fails unless every loss, and every array of the last state, is bitwise that of another run."""
        ours, theirs = self.losses(), other.losses()
        check(len(ours) == self.setup.length, f"{len(ours)} losses of {self.setup.length} steps")
        differ = [step for step in theirs if ours.get(step) != theirs[step]]
        check(not differ, f"the losses differ from step {min(differ, default=0)} on")
        mine, wanted = self.state(self.setup.length), other.state(self.setup.length)
        differ_too = [path for path in wanted.keys() | mine.keys() if mine.get(path) != wanted.get(path)]
        check(bool(wanted) and not differ_too, f"the last states differ: {differ_too[:3]}")


def check(right: bool, otherwise: str) -> None:
    """Fails the drill where something is not as it must be."""
    if not right:
        raise DrillFailedError(otherwise)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _arrays(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    import tensorstore

    for tree in ("params", "optimizer", "progress"):
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint / tree}/"}}
        keys = [key.decode() for key in tensorstore.KvStore.open(database).result().list().result()]
        for name in sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json")):
            where = {"driver": "zarr3", "kvstore": {**database, "path": f"{name}/"}}
            yield f"{tree}/{name}", tensorstore.open(where, read=True, open=True).result().read().result().tobytes()


@dataclass
class Drills:
    """What drills share: a folder, a random number generator, and runs that are trained once.

    Attributes:
      quick: fewer repetitions and processes.
      seed: of every random choice.
    """

    folder: Path
    quick: bool = False
    seed: int = 0
    _runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.reference = functools.cache(self._reference)
        self._stopped = functools.cache(self._stop)

    def run(self, setup: Setup, directory: Path | None = None) -> Run:
        """A run that has not begun, in a new directory."""
        run = Run(directory or self.folder / f"run-{len(self._runs)}" / "run", setup)
        self._runs.append(run)
        return run

    def _reference(self, setup: Setup) -> Run:
        """The run that nothing happens to; one for all drills."""
        with self.run(setup) as run:
            return run.finish()

    def stopped(self, setup: Setup) -> Run:
        """A run that was stopped at about half of its length with several checkpoints; a copy to be disturbed."""
        kept = self._stopped(setup)
        run = self.run(setup)
        shutil.copytree(kept.directory, run.directory)
        return run

    def _stop(self, setup: Setup) -> Run:
        with self.run(setup) as run:
            run.start(pace=0.1).wait_for_step(setup.length // 2)
            run.send(signal.SIGTERM, 0)
            run.end(PATIENCE_SECONDS, RESUMABLE)
        return run

    def close(self) -> None:
        """Ends whatever is left of any run."""
        for run in self._runs:
            run.kill_all()
