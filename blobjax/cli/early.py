"""Signals while Python imports: nothing has begun, so the process ends at once, in one line and with no traceback.

A command takes them over when it begins. `train` and `study` take SIGINT, SIGTERM and SIGHUP for as long as they run
(processes/stopping.py, processes/supervisor.py, studies/study_command.py), and end with 75 from the first moment on.
The others have nothing to save: Ctrl-C ends them with 130, and the other signals end them as they end any program.
"""

import os
import signal
from collections.abc import Sequence

RESUMABLE, INTERRUPTED = 75, 130
_received: list[int] = []


def listen(arguments: Sequence[str]) -> None:
    """Takes signals until a command does; what is ignored (nohup, a shell's job in the background) stays ignored.

    Args:
      arguments: of the command line.
    """
    resumable = arguments[:1] == ["train"] or (arguments[:1] == ["study"] and arguments[1:2] != ["status"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if resumable else (signal.SIGINT,):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_resumable if resumable else _end_interrupted)


def command_begins() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, on whose way out a command clears up."""
    if signal.getsignal(signal.SIGINT) is _end_interrupted:
        signal.signal(signal.SIGINT, _interrupt)


def interrupted() -> bool:
    """Whether Ctrl-C came since then: an extension whose import it ends makes an ImportError of it."""
    return bool(_received)


def _interrupt(number: int, frame: object) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _end_resumable(number: int, frame: object) -> None:
    name = signal.Signals(number).name
    _end(RESUMABLE, f"blobjax: {name} before the first step, nothing is lost; run the same command to go on")


def _end_interrupted(number: int, frame: object) -> None:
    _end(INTERRUPTED, "blobjax: interrupted")


def _end(code: int, line: str) -> None:
    # Python's own way out would run through half-imported modules.
    try:
        os.write(2, f"{line}\n".encode())
    finally:
        os._exit(code)
