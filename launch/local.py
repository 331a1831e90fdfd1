"""Several processes on one machine, each with a few virtual CPU devices: how a pod is rehearsed on a laptop.

    python launch/local.py -n 2 -d 4 -- blobjax train laptop-8dev name=two-processes

Every process gets the same command and, in its environment, its place: JAX_COORDINATOR_ADDRESS on loopback,
JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_NUM_CPU_DEVICES. Output is prefixed with the process's number. When one
fails, the others are ended; the exit code is that of the first to fail. Ctrl-C, SIGTERM and SIGHUP are passed on once,
so that the processes can save and end by themselves, all with 75, which is then the exit code here too; a second one
kills.
Needs the standard library only.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

# How long the others may take to end after one has failed. They may hang in a collective that waits for the dead.
GRACE_SECONDS = 20
# How long they may take to stop after one has: longer than their own bound, `reliability.grace`.
STOPPING_SECONDS = 60


def main(arguments: list[str] | None = None) -> int:
    # What a process prints must not be lost for a terminal that cannot show it.
    sys.stdout.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--processes", type=_positive, default=2, help="how many processes (default 2)")
    parser.add_argument("-d", "--devices", type=_positive, default=1, help="CPU devices in each (default 1)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what each process runs, after --")
    options = parser.parse_args(arguments)
    coordinator = f"127.0.0.1:{_free_port()}"
    command = options.command
    if command[0] == "blobjax":  # the one of this interpreter, also where no script of that name is on the PATH
        command = [sys.executable, "-m", "blobjax.cli", *command[1:]]
    processes: list[subprocess.Popen] = []
    stop = _pass_signals_on(processes)
    try:
        for rank in range(options.processes):
            place = {
                "JAX_COORDINATOR_ADDRESS": coordinator,
                "JAX_NUM_PROCESSES": str(options.processes),
                "JAX_PROCESS_ID": str(rank),
                "JAX_NUM_CPU_DEVICES": str(options.devices),
                "JAX_PLATFORMS": "cpu",
                "PYTHONUNBUFFERED": "1",
            }
            processes.append(_start(command, place))
        printers = [_print_lines(rank, process) for rank, process in enumerate(processes)]
        code = _wait(processes)
        for printer in printers:
            printer.join(timeout=5)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "no such command" if missing else f"cannot be started: {error.strerror}"
        print(f"local.py: {error.filename}: {why}", file=sys.stderr)
        return 2
    finally:
        _signal_all(processes, signal.SIGKILL)
    return code or (128 + stop[0] if stop else 0)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(command: list[str], place: dict[str, str]) -> subprocess.Popen:
    # A session of its own: the terminal's Ctrl-C reaches only the launcher, which passes it on once, in order.
    return subprocess.Popen(
        command,
        env={**os.environ, **place},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _print_lines(rank: int, process: subprocess.Popen) -> threading.Thread:
    """Copies a process's output, line by line, behind its number."""

    def copy() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # Whatever becomes of our own output: a process whose output nobody takes would wait for ever.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stdout.write(f"[{rank}] {line.rstrip()}\n")
                sys.stdout.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _pass_signals_on(processes: list[subprocess.Popen]) -> list[int]:
    """Passes the first signal on to all processes and kills them at the second; returns those received.

    What is ignored (SIGHUP under nohup) is ignored by the processes too.
    """
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        # A terminal that is closed may send its signal twice, once itself and once by its shell.
        again = [each for each in received[1:] if each != signal.SIGHUP]
        _signal_all(processes, signal.SIGKILL if again else signal.Signals(number))

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    return received


def _signal_all(processes: list[subprocess.Popen], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it may end between the two lines
                os.killpg(process.pid, number)


def _wait(processes: list[subprocess.Popen]) -> int:
    """Waits for all; after the first failure the rest are told to end, and killed if they do not. The first's code."""
    code, deadline = 0, float("inf")
    while running := [process for process in processes if process.poll() is None]:
        ended = {rank: process.returncode for rank, process in enumerate(processes) if process.returncode}
        if not code and (failed := _first_failure(ended)) is not None:
            code, deadline = ended[failed], time.monotonic() + GRACE_SECONDS
            print(f"local.py: process {failed} {_fate(code)}; ending the others", file=sys.stderr, flush=True)
            _signal_all(running, signal.SIGTERM)
        elif ended and deadline == float("inf"):
            # 75 is a stop that all come to together, so the others are not told to; but their time is bounded.
            deadline = time.monotonic() + STOPPING_SECONDS
        if time.monotonic() > deadline:
            _signal_all(running, signal.SIGKILL)
        time.sleep(0.05)
    ended = {rank: process.returncode for rank, process in enumerate(processes) if process.returncode}
    failed = _first_failure(ended)
    code = code or (ended[failed] if failed is not None else max(ended.values(), default=0))
    return 128 - code if code < 0 else code


def _first_failure(ended: dict[int, int]) -> int | None:
    """The process that failed; of several found at once the one that a signal killed, as it took the others along."""
    failed = [rank for rank, code in ended.items() if code != 75]
    return min(failed, key=lambda rank: ended[rank], default=None)


def _fate(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
