"""launch/local.py: several processes that find each other, fail together and stop together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch" / "local.py"


def command(*options: str, code: str) -> list[str]:
    return [sys.executable, str(LAUNCH), *options, "--", sys.executable, "-c", code]


def launch(*options: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*options, code=code), capture_output=True, text=True, timeout=120)


@pytest.mark.smoke
def test_two_processes_sum_over_all_their_devices():
    code = (
        "from blobjax.compute import doctor, runtime\n"
        "runtime.initialize_distributed()\n"
        "[print(check.detail) for check in doctor.report('.') if check.name == 'collective']\n"
    )
    done = launch("-n", "2", "-d", "2", code=code)
    assert done.returncode == 0, done.stdout
    for rank in range(2):
        assert f"[{rank}] sum over 4 devices is 10, expected 10" in done.stdout


def test_every_process_knows_its_place():
    code = "import os; print(*(os.environ[f'JAX_{k}'] for k in ('NUM_PROCESSES', 'PROCESS_ID', 'NUM_CPU_DEVICES')))"
    done = launch("-n", "3", "-d", "5", code=code)
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] 3 {rank} 5" for rank in range(3)]


def test_one_failure_ends_all_with_its_code():
    code = "import os, sys, time; os.environ['JAX_PROCESS_ID'] == '1' and sys.exit(7); time.sleep(60)"
    start = time.monotonic()
    done = launch("-n", "3", code=code)
    assert done.returncode == 7
    assert done.stderr == "local.py: process 1 failed with exit code 7; ending the others\n"
    assert time.monotonic() - start < 30


def test_a_killed_process_counts_as_a_failure():
    code = "import os, time; os.environ['JAX_PROCESS_ID'] == '0' and os.kill(os.getpid(), 9); time.sleep(60)"
    done = launch(code=code)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr == "local.py: process 0 was killed by SIGKILL; ending the others\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_so_that_a_trainer_can_save(number):
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('saved'), sys.exit(75)))\n"
        "print('up'); time.sleep(60)\n"
    )
    with subprocess.Popen(command(code=code), stdout=subprocess.PIPE, text=True) as process:
        assert {process.stdout.readline(), process.stdout.readline()} == {"[0] up\n", "[1] up\n"}
        process.send_signal(number)
        assert sorted(process.stdout.read().splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 75


def test_under_nohup_a_closed_terminal_is_nothing_to_the_launcher_and_its_processes():
    code = (
        "import os, signal, time\nprint('up')\nos.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(0.5)\nprint('went on')\n"
    )
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command("-n", "1", code=code)]
    with subprocess.Popen(nohup, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "[0] up\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == "[0] went on\n"
    assert process.returncode == 0


def test_a_second_signal_kills():
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: print('no', os.getpid()))\n"
        "print('up', os.getpid())\n"
        "[time.sleep(0.1) for _ in range(600)]\n"
    )
    with subprocess.Popen(command("-n", "1", code=code), stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline().split()[-1])
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == f"[0] no {child}\n"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == 128 + signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--", "no-such-command"], "no-such-command: no such command"),
        (["-n", "0", "--", "true"], "'0' is not a positive number"),
        ([], "required"),
    ],
)
def test_bad_arguments(arguments, line):
    done = subprocess.run([sys.executable, str(LAUNCH), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert line in done.stderr
