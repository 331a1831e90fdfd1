"""A process told to stop, without a run: what it says, when it is gone, and with which code."""

import signal
import subprocess
import sys
import time

import pytest

# The child says when it is ready, and hangs where Python runs no handler: in C, without its lock.
CHILD = """
import signal, sys
from blobjax.processes.stopping import Stopping
stopping = Stopping({grace})
{before}
stopping.listen()
{after}
print("ready", flush=True)
{hang}
print("went on", flush=True)
"""
# A mutex of zeros is an open one; taken twice it waits for ever, as a collective may.
IN_C = "import ctypes; m = bytes(128); [ctypes.CDLL(None).pthread_mutex_lock(m) for _ in range(2)]"
BEGUN = "assert not stopping.agreed()"


def child(grace=30.0, before="", after=BEGUN, hang=IN_C) -> subprocess.Popen:
    code = CHILD.format(grace=grace, before=before, after=after, hang=hang)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> tuple[int, list[str]]:
    output, errors = process.communicate(timeout=60)
    assert "went on" not in output
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_the_first_step_a_signal_ends_it_at_once_and_nothing_is_lost(number):
    process = child(after="")
    process.send_signal(number)
    code, (line,) = end(process)
    assert code == 75
    assert line == f"blobjax: {number.name} before the first step, nothing is lost; run the same command to go on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_after_sigterm_it_is_gone_within_the_grace_period_whatever_it_hangs_in(number):
    process = child(grace=1.0)
    process.send_signal(number)
    code, lines = end(process)
    assert code == 75
    assert lines == [
        f"blobjax: {number.name}: stopping after this step, saving; gone within 1 s",
        f"blobjax: not stopped within 1 s of {number.name} (reliability.grace), so it ends now; run the same command "
        "to go on",
    ]


def test_a_second_sigterm_does_not_prolong_the_grace_period():
    process = child(grace=3.0, hang="__import__('time').sleep(60)")
    process.send_signal(signal.SIGTERM)
    first = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    code, lines = end(process)
    assert code == 75
    assert "gone within 3 s" in first
    assert len(lines) == 1


def test_without_a_checkpoint_its_steps_are_lost_and_it_does_not_claim_to_be_resumable():
    process = child(grace=0.5, after=BEGUN + "; stopping.resumable = lambda: False")
    process.send_signal(signal.SIGTERM)
    code, lines = end(process)
    assert code == 1
    assert "no checkpoint was saved yet" in lines[-1]


def test_the_first_ctrl_c_speaks_at_once_and_the_second_ends_it():
    process = child()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == ("blobjax: SIGINT: stopping after this step, saving; Ctrl-C again stops now\n")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, (line,) = end(process)
    assert code == 75
    assert line.startswith("blobjax: interrupted again")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored(number):
    """A shell starts its jobs in the background so, and Ctrl-C is not meant for them; nohup is for the other."""
    process = child(
        before=f"signal.signal({int(number)}, signal.SIG_IGN)", hang="import time; time.sleep(0.5); sys.exit(7)"
    )
    process.send_signal(number)
    assert end(process) == (7, [])


def test_closed_it_leaves_the_signals_as_they_were():
    process = child(after="stopping.close()", hang="import time; time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (-signal.SIGTERM, [])


@pytest.mark.parametrize(
    ("after", "sent", "why"),
    [
        ("", ["SIGTERM"], "SIGTERM before the first step, nothing is lost"),
        (BEGUN, ["SIGINT", "SIGINT"], "interrupted again, so it ends now"),
    ],
)
def test_who_is_cut_off_is_told_why_and_may_write_it_down(tmp_path, after, sent, why):
    path = tmp_path / "why"
    process = child(
        before=f"stopping.farewell = lambda why, resumable: open({str(path)!r}, 'w').write(f'{{why}} {{resumable}}')",
        after=after,
    )
    for number in sent:
        process.send_signal(getattr(signal, number))
        time.sleep(0.3)
    assert end(process)[0] == 75
    assert path.read_text() == f"{why} True"


def test_a_farewell_that_hangs_keeps_nobody():
    process = child(before="stopping.farewell = lambda *_: __import__('time').sleep(3600)", after="")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75
