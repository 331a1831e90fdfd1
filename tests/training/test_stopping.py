"""Real processes of one run: told to stop, failing, killed and hanging, each at the worst moment."""

import fcntl
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blobjax.config import DivergedError
from blobjax.processes.stopping import Stopping
from blobjax.runs.directory import read_jsonl
from blobjax.training import announcements, hooks, recorder, recovery, saving, trainer
from tests.tiny import TINY, tiny

# What goes wrong is put in from outside, before the command line runs as ever.
CHILD = """
import os, sys, time
from blobjax.program import program
from blobjax.training import context, hooks, trainer
RANK = int(os.environ.get("JAX_PROCESS_ID", 0))

def fail(*_):
    raise RuntimeError("boom")

{fault}
from blobjax import cli
cli.main()
"""
# So that there is time to stop it.
SLOW = """
due = hooks.StopHook.due
hooks.StopHook.due = lambda self, step: (time.sleep(0.1), due(self, step))[1]
"""
# Every process is to be down by then, whatever happened: heartbeat and grace, and a slow machine.
BOUND = 60


class Processes:
    """One command in several processes over loopback, without a launcher that would end them."""

    def __init__(self, run_dir: Path, *overrides: str, count: int, fault: str = ""):
        self.run_dir = run_dir
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = [*TINY, f"compute.mesh={{data: {count}, fsdp: 1}}", f"logging.run_dir={run_dir}", *overrides]
        command = [sys.executable, "-c", CHILD.format(fault=fault), "train", "laptop", *settings]
        self.all = []
        for rank in range(count):
            place = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
            if count > 1:
                place |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
                place["JAX_PROCESS_ID"] = str(rank)
            pipe = subprocess.PIPE
            self.all.append(
                subprocess.Popen(command, env={**os.environ, **place}, stdout=pipe, stderr=subprocess.STDOUT, text=True)
            )

    def wait_until(self, there: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 120
        while not there():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.all), self.end()
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: any(line["step"] >= step for line in read_jsonl(self.run_dir / "metrics.jsonl")))

    def end(self) -> tuple[list[int], list[str]]:
        """Exit codes and outputs; no process may take longer than the bound."""
        outputs = []
        try:
            for process in self.all:
                outputs.append(process.communicate(timeout=BOUND)[0])
        finally:
            for process in self.all:
                process.kill()
        return [process.returncode for process in self.all], outputs

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.all:
            process.kill()
            process.wait()


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_jsonl(run_dir / "metrics.jsonl") if "loss" in line]


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(run_dir / "events.jsonl") if event["event"] == name]


def test_sigterm_to_one_of_two_stops_both_at_one_step_and_nothing_is_lost(tmp_path):
    never = "checkpoint.every=1000 steps"
    with Processes(tmp_path / "run", never, "duration.length=30 steps", count=2, fault=SLOW) as run:
        run.wait_for_step(3)
        run.all[1].send_signal(signal.SIGTERM)
        codes, outputs = run.end()
    assert codes == [75, 75], outputs
    assert "blobjax: SIGTERM: stopping after this step" in outputs[1]
    (preempt,) = events(run.run_dir, "preempt")
    assert (preempt["signal"], preempt["process"]) == ("SIGTERM", 1)
    (stop,) = events(run.run_dir, "stop")
    assert (stop["step"], stop["reason"]) == (preempt["step"], "SIGTERM to process 1")
    assert 3 < stop["step"] < 30
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == [str(stop["step"])]

    for run_dir in (run.run_dir, tmp_path / "undisturbed"):
        with Processes(run_dir, never, "duration.length=30 steps", count=2) as run:
            codes, outputs = run.end()
        assert codes == [0, 0], outputs
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")


@pytest.mark.parametrize("arguments", [[], ["--restarts", "1"]], ids=["alone", "supervised"])
def test_a_terminal_that_is_closed_means_saved_and_resumable(tmp_path, arguments):
    """A broken ssh session: SIGHUP to all that the terminal controls, and nothing can be printed any more."""
    master, slave = pty.openpty()
    settings = [*TINY, f"logging.run_dir={tmp_path / 'run'}", "duration.length=100000 steps", "checkpoint.every=99%"]
    process = subprocess.Popen(
        [sys.executable, "-m", "blobjax.cli", "train", "laptop", *settings, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    deadline = time.monotonic() + 120
    try:
        while not any(line["step"] >= 3 for line in read_jsonl(tmp_path / "run" / "metrics.jsonl")):
            assert time.monotonic() < deadline
            if select.select([master], [], [], 0.05)[0]:
                os.read(master, 4096)  # as a terminal does: what is full would hold the run up
        os.close(master)
        assert process.wait(timeout=BOUND) == 75
    finally:
        process.kill()
    (preempt,) = events(tmp_path / "run", "preempt")
    assert preempt["signal"] == "SIGHUP"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [str(preempt["step"])]


def test_ctrl_c_before_the_first_step_stops_both_before_it(tmp_path):
    fault = f"""
init = program.Program.init
def slow(self):
    open({str(tmp_path)!r} + f"/{{RANK}}", "w").close()
    time.sleep(3)
    return init(self)
program.Program.init = slow
"""
    with Processes(tmp_path / "run", count=2, fault=fault) as run:
        run.wait_until((tmp_path / "0").exists)
        run.all[0].send_signal(signal.SIGINT)
        codes, outputs = run.end()
    assert codes == [75, 75], outputs
    assert "stopped at step 0 of 12 (SIGINT to process 0); run the same command to go on" in outputs[0]


# While the step compiles, which nothing can interrupt.
BEFORE_THE_LOOP = """
program.Program.init = fail
program.Program.lower_train_step = lambda *_: type("", (), {"compile": lambda _: time.sleep(1e6)})()
"""
IN_THE_LOOP = "hooks.EvaluateHook.run = fail"
DURING_A_SAVE = """
save = hooks.SaveHook.run
hooks.SaveHook.run = lambda self, step, state: (save(self, step, state), fail())
"""


@pytest.mark.parametrize(
    ("rank", "fault"),
    [(1, BEFORE_THE_LOOP), (0, IN_THE_LOOP), (1, DURING_A_SAVE)],
    ids=["1-before-the-loop", "0-in-the-loop", "1-during-a-save"],
)
def test_an_exception_in_one_process_ends_all_and_the_cause_stands_in_its_log(tmp_path, rank, fault):
    only = f"if RANK == {rank}:\n" + "".join(f"    {line}\n" for line in fault.strip().splitlines())
    with Processes(tmp_path / "run", "evaluation.every=4 steps", count=2, fault=only) as run:
        codes, outputs = run.end()
    assert codes[rank] == 1, outputs
    assert codes[1 - rank] not in (0, 75), outputs
    assert "RuntimeError: boom" in outputs[rank]
    assert "boom" not in outputs[1 - rank]


def test_a_killed_process_takes_the_others_along(tmp_path):
    with Processes(tmp_path / "run", "duration.length=1000 steps", count=2, fault=SLOW) as run:
        run.wait_for_step(3)
        run.all[1].kill()
        codes, outputs = run.end()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 1, outputs
    assert "if it lost a connection, another ended first and the cause stands in that one's log" in outputs[0]


def test_a_hang_in_the_data_source_is_written_down_by_both(tmp_path):
    fault = """
batches = context.training_batches
def hang(*arguments):
    each = batches(*arguments)
    for _ in range(5):
        yield next(each)
    if RANK == 1:
        time.sleep(1e6)
    yield from each
context.training_batches = hang
"""
    with Processes(tmp_path / "run", "reliability.hang_limit=5 seconds", count=2, fault=fault) as run:
        codes, outputs = run.end()
    assert codes == [1, 1], outputs
    assert all("no progress for 5 s in" in output for output in outputs)
    assert "in hang" in (tmp_path / "run" / "hang-1.txt").read_text()
    assert "block_until_ready" in (tmp_path / "run" / "hang-0.txt").read_text()
    (event,) = events(tmp_path / "run", "hang")
    assert event["process"] == 0


def test_a_save_that_hangs_does_not_keep_it_beyond_the_grace_period(tmp_path):
    fault = SLOW + "hooks.Saver.save_now = lambda *_: time.sleep(1e6)"
    never = "checkpoint.every=1000 steps"
    with Processes(tmp_path / "run", never, "reliability.grace=1 second", count=1, fault=fault) as run:
        run.wait_for_step(2)
        run.all[0].send_signal(signal.SIGTERM)
        (code,), (output,) = run.end()
    assert code == 1, output
    assert (
        "not stopped within 1 s of SIGTERM (reliability.grace), so it ends now; no checkpoint was saved yet" in output
    )


def test_the_time_limit_stops_all_at_one_step_and_stragglers_are_reported(tmp_path):
    settings = ("duration.wall_clock_limit=1 second", "reliability.stragglers_every=1 step")
    slow_one = SLOW.replace("0.1", "0.1 + 0.5 * RANK")
    with Processes(tmp_path / "run", *settings, "duration.length=1000 steps", count=2, fault=slow_one) as run:
        codes, outputs = run.end()
    assert codes == [75, 75], outputs
    (stop,) = events(run.run_dir, "stop")
    assert stop["reason"] == "wall-clock limit"
    assert stop["step"] >= 1
    report = events(run.run_dir, "stragglers")[-1]
    assert report["slowest"] == 1
    assert report["host_seconds"][1] > report["host_seconds"][0]
    assert "process 1 (" in outputs[0]


def said_in(place: str, of: object, stopping: Stopping, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a Ctrl-C arrives whenever this place is reached."""
    function = getattr(of, place)

    def interrupted(*arguments, **named):
        stopping._seen.clear()
        stopping._take(signal.SIGINT)
        return function(*arguments, **named)

    monkeypatch.setattr(of, place, interrupted)


@pytest.fixture
def deaf(monkeypatch):
    """A Stopping that says what a signal leads to, and lets the run go on."""
    stopping = Stopping(25)
    monkeypatch.setattr(stopping, "request", lambda reason: None)
    return stopping


def lines(capfd) -> list[str]:
    start, end = "blobjax: SIGINT: ", "; Ctrl-C again stops now"
    found = [line for line in capfd.readouterr().err.splitlines() if line.startswith(start)]
    return [line.removeprefix(start).removesuffix(end) for line in found]


def test_the_line_says_what_a_signal_leads_to_in_this_phase(deaf, monkeypatch, tmp_path, capfd):
    said_in("report", recorder.Recorder, deaf, monkeypatch)
    said_in("run", hooks.EvaluateHook, deaf, monkeypatch)
    said_in("run", hooks.SaveHook, deaf, monkeypatch)
    said_in("finish", saving.Saver, deaf, monkeypatch)
    said_in("verify", saving.Saver, deaf, monkeypatch)
    said_in("sample", announcements, deaf, monkeypatch)
    sampling = ("evaluation.sample_prompt=a", "evaluation.sample_tokens=2")
    trainer.train(
        tiny(f"logging.run_dir={tmp_path / 'run'}", "duration.length=1 step", "duration.warmup=0 steps", *sampling),
        stopping=deaf,
    )
    assert lines(capfd) == [
        "stopping after this step, saving",
        "stopping after this evaluation, saving",
        "stopping once this save is written",
        "the loop is over; ending once the last save is written",
        "no step is left; ending once the last checkpoint is verified",
        "the run is finished and saved; ending after the sample",
    ]


def test_during_the_search_for_the_first_nan_the_line_promises_no_save(deaf, monkeypatch, tmp_path, capfd):
    said_in("search", recovery.Examiner, deaf, monkeypatch)
    nan = ("duration.length=2 steps", "faults.nan=[0, 1]", "reliability.nonfinite_limit=1", "checkpoint.every=9 steps")
    with pytest.raises(DivergedError):
        trainer.train(tiny(f"logging.run_dir={tmp_path / 'run'}", *nan), stopping=deaf)
    assert lines(capfd) == ["the run is halting; ending once the first bad numbers are found"]
