"""How a process ends: within a bound, whatever its threads, its output or the other processes do.

Python's own way out runs exit handlers and waits for threads. jax's handler is a barrier of all processes, and the
threads are those of a save that may never be done; either waits for ever where another process hangs. So a process that
has used devices says its last words and leaves by os._exit.
"""

import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from blobjax.config.errors import BadInputError, HaltedError

# Processes that are done wait for each other for so long: the first one's metrics writers may still be uploading.
# Nobody waits for the dead, whom jax's heartbeat finds.
TOGETHER_SECONDS = 120
# Output may be a pipe that nobody reads.
_LAST_WORDS_SECONDS = 2.0
# How an error reads that comes from the operating system's files.
_OF_FILES = ("OS error", "Too many open files", "No space left", "Disk quota exceeded")


def say(line: str) -> None:
    """Writes a line to stderr without Python's locks, which a stuck thread may hold."""
    # A live progress line, or the ^C that a terminal shows, may stand there already.
    start = "\r\n" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        os.write(2, f"{start}{line.rstrip()}\n".encode(encoding, "backslashreplace"))


def leave(code: int, last_words: str = "", together_seconds: float = 0) -> NoReturn:
    """Ends this process.

    Args:
      code: its exit code.
      last_words: what it has to say on stderr.
      together_seconds: how long to wait for the others to come here too; 0 where they may not come. A process that left
        without it would count as dead to those who are not done yet.
    """
    within(_LAST_WORDS_SECONDS, _speak, last_words)
    if together_seconds and "jax" in sys.modules:
        within(together_seconds, _part)
    os._exit(code)


def verdict(error: BaseException) -> tuple[int, str]:
    """The exit code of a process that an error ends, and what is to be said on stderr."""
    if isinstance(error, BadInputError):
        return 2, "\n".join(f"blobjax: {problem}" for problem in error.problems)
    if isinstance(error, HaltedError):
        return 1, f"blobjax: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "blobjax: interrupted"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return 2, f"blobjax: {str(error.filename)[:60]}… is longer than a file's name can be"
    if is_out_of_memory(error):
        return 1, f"blobjax: out of memory: {(str(error).splitlines() or ['in Python'])[0][:200]}"
    return 1, "".join(traceback.format_exception(error)) + _whose()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a device or of the host, could not be allocated.

    XLA says so with the status RESOURCE_EXHAUSTED. absl (`ErrnoToStatusCode`) gives the same status to errors of files,
    such as no space left, with the operating system's words: those are not of memory.
    """
    if isinstance(error, BadInputError | HaltedError):
        return False
    text = str(error)
    exhausted = "RESOURCE_EXHAUSTED" in text and not any(words in text for words in _OF_FILES)
    return exhausted or isinstance(error, MemoryError)


def _whose() -> str:
    """With several processes: that the error may be none of this one's."""
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized():
            return (
                "blobjax: one of several processes; if it lost a connection, another ended first and the cause stands "
                "in that one's log"
            )
    return ""


@contextlib.contextmanager
def failing_in_time(
    seconds: float, together: type[BaseException] | tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """An error that leaves this block ends the process within so long, however long its way out would be: other
    processes may wait for this one, and it for them.

    Args:
      together: errors that all processes come to together, so that none has to be ended.
    """
    try:
        yield
    except together:
        raise
    except BaseException as error:
        timer = threading.Timer(seconds, leave, verdict(error))
        timer.daemon = True
        timer.start()
        raise


def within(seconds: float, task: Callable[..., object], *arguments: object) -> None:
    """Does something that may hang, and goes on after so long whatever came of it."""
    thread = threading.Thread(target=task, args=arguments, daemon=True)
    thread.start()
    thread.join(seconds)


def _speak(last_words: str) -> None:
    if last_words:
        say(last_words)
    if os.isatty(1):
        os.write(1, b"\x1b[?25h")  # a live line hides the cursor
    for stream in (sys.stdout, sys.stderr):
        # Closed by the other end, or never open: nothing to say it to, and no reason to fail.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _part() -> None:
    import jax

    with contextlib.suppress(Exception):  # another process died meanwhile; this one is done
        jax.distributed.shutdown()
