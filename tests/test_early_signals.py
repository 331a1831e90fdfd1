"""A signal while Python still imports: one line, no traceback, and the exit code that the command would have."""

import signal
import subprocess
import sys

import pytest

# Stands still at an import, as a cold file system does.
CHILD = """
import signal, sys, time

class Slow:
    def find_spec(self, name, *_):
        if name == {module!r}:
            print("importing", flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt:  # what an extension's import makes of it
                raise ImportError("while initializing the extension")

sys.meta_path.insert(0, Slow())
{before}
sys.argv = ["blobjax", *{arguments!r}]
from blobjax.cli import main
main()
"""
TRAIN = ("train", "laptop")


def interrupted(number: signal.Signals, module: str, *arguments: str, before: str = "") -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr."""
    code = CHILD.format(module=module, arguments=arguments, before=before)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", TRAIN),
        ("pydantic", TRAIN),
        ("jax", TRAIN),
        ("pydantic", ("study", "lr-sensitivity")),
        ("jax", ("study", "lr-sensitivity")),
    ],
)
def test_what_can_be_resumed_ends_with_75(number, module, arguments):
    if module == "jax" and arguments != TRAIN:
        pytest.importorskip("matplotlib")
    line = f"blobjax: {number.name} before the first step, nothing is lost; run the same command to go on"
    assert interrupted(number, module, *arguments) == (75, [line])


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", ()),
        ("pydantic", ("data", "describe", "laptop")),
        ("jax", ("doctor",)),
        ("jax", ("study", "status", "x")),
    ],
)
def test_ctrl_c_ends_any_other_command_with_130(module, arguments):
    assert interrupted(signal.SIGINT, module, *arguments) == (130, ["blobjax: interrupted"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_any_other_command_as_they_end_any_program(number):
    assert interrupted(number, "jax", "doctor") == (-number, [])


def test_what_is_ignored_stays_ignored():
    """Under nohup; the SIGTERM after it is taken."""
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    code = CHILD.format(module="typer", arguments=TRAIN, before=before)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM before the first step" in process.communicate(timeout=60)[1]
    assert process.returncode == 75
