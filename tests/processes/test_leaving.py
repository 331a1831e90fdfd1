"""A process that is to end does, whatever stands in its way, and says why."""

import subprocess
import sys

import pytest

from blobjax.config import BadInputError, HaltedError
from blobjax.processes.leaving import is_out_of_memory, verdict

# What Python would wait for: a thread, and an exit handler.
IN_THE_WAY = """
import atexit, os, sys, threading, time
from blobjax.processes.leaving import failing_in_time, leave
atexit.register(time.sleep, 1e6)
threading.Thread(target=time.sleep, args=(1e6,)).start()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", IN_THE_WAY + code], capture_output=True, text=True, timeout=60)


def test_threads_and_exit_handlers_do_not_keep_it_and_nothing_it_said_is_lost():
    done = run("print('what was said', end=''); leave(75, 'last words')")
    assert (done.returncode, done.stdout, done.stderr) == (75, "what was said", "last words\n")


def test_output_that_nobody_reads_does_not_keep_it():
    code = IN_THE_WAY + "leave(1, 'x' * 10**6)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == 1


def test_output_that_was_closed_does_not_keep_it():
    assert run("os.close(1); os.close(2); leave(7, 'last words')").returncode == 7


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("RuntimeError('boom')", 1, "RuntimeError: boom"),
        ("BadInputError('seed: no')", 2, "blobjax: seed: no"),
        ("HaltedError('halted at step 3')", 1, "blobjax: halted at step 3"),
        ("SystemExit(0)", 1, "SystemExit: 0"),
    ],
)
def test_an_error_whose_way_out_is_blocked_is_said_in_time(error, code, line):
    done = run(
        "from blobjax.config import BadInputError, HaltedError\n"
        "try:\n"
        f"    with failing_in_time(0.2): raise {error}\n"
        "finally: time.sleep(1e6)\n"
    )
    assert done.returncode == code
    assert done.stderr.strip().splitlines()[-1] == line


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."), True),
        # What TensorStore says where files, not bytes of memory, are used up.
        (ValueError('RESOURCE_EXHAUSTED: Failed to open "x" [OS error 24: EMFILE Too many open files]'), False),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), False),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: Disk quota exceeded"), False),
        (HaltedError("a checkpoint cannot be read (RESOURCE_EXHAUSTED: …)"), False),
        (BadInputError("name: RESOURCE_EXHAUSTED is too long"), False),
        (RuntimeError("another"), False),
    ],
    ids=str,
)
def test_only_memory_that_ran_out_is_said_to_have(error, memory):
    assert is_out_of_memory(error) == memory
    code, words = verdict(error)
    assert ("out of memory" in words) == (memory and code == 1)


def test_without_an_error_nothing_is_ended():
    done = run("with failing_in_time(0.1): pass\ntime.sleep(0.5); leave(3)")
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("raise SystemExit(5)", 5),
        ("raise KeyboardInterrupt", 130),
        ("raise MemoryError", 1),
        ("raise typer.Exit(75)", 75),
        ("return", 0),
    ],
)
def test_the_command_line_ends_whatever_a_command_does(ends, code):
    """A module named jax is all it takes to tell a process that has used devices from one that has not."""
    done = run(
        "import types, typer\n"
        "from blobjax import cli\n"
        "from blobjax.cli import commands\n"
        "distributed = types.SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)\n"
        "sys.modules['jax'] = types.SimpleNamespace(distributed=distributed)\n"
        "@commands.app.command()\n"
        f"def ends(): {ends}\n"
        "sys.argv = ['blobjax', 'ends']\n"
        "cli.main()\n"
    )
    assert done.returncode == code, done.stderr
