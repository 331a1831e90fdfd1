"""Keeps Orbax from printing what comes to us as an exception anyway, and stands in events.jsonl and in one line."""

import gc
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# It logs every phase of every save, and a trace for each of several threads when one fails.
logging.getLogger("absl").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", r"coroutine 'PyTreeHandler\..*' was never awaited", RuntimeWarning)


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps Orbax's background tasks from printing a trace each when a load fails: the exception says it all."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    level = log.level
    sys.unraisablehook = lambda _: None
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        # What is left of them says so when it goes, and TensorStore's threads when they come back.
        _let_go(error)
        gc.collect()
        time.sleep(0.2)
        raise
    finally:
        sys.unraisablehook = hook
        log.setLevel(level)


def _let_go(error: BaseException | None) -> None:
    """Clears what the frames of an error, and of all that led to it, still hold."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
        _let_go(error.__cause__)
        if error.__context__ is not error.__cause__:
            _let_go(error.__context__)
