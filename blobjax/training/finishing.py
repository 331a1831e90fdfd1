"""A run is finished when its last checkpoint is good on the storage, whatever its folder is called.

That is found out by reading it as a whole: before a run that ends says so, and when a run is started that looks as if
it had ended.
"""

import time

from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.config import HaltedError
from blobjax.processes.clock import Clock
from blobjax.processes.watchdog import Watchdog
from blobjax.runs.directory import EventLog
from blobjax.training.preflight import Setting
from blobjax.training.recovery import quarantined


def looks_finished(setting: Setting) -> bool:
    """Whether there is a checkpoint of the run's last step, or of a later one."""
    return bool(setting.saved) and setting.saved[-1] >= setting.length


def wrong_with_the_last(setting: Setting) -> str:
    """What is wrong with the newest checkpoint; empty where nothing is. A collective.

    Raises:
      HaltedError: it cannot be read at the moment.
    """
    return Checkpointer(setting.directory.checkpoints).check(setting.saved[-1])


def verify_the_last(checkpointer: Checkpointer, step: int, events: EventLog, watchdog: Watchdog, clock: Clock) -> None:
    """Reads the last checkpoint as a whole; a bad one goes to the quarantine. A collective.

    Raises:
      HaltedError: it is not what was saved, or cannot be read.
    """
    began = time.monotonic()
    with watchdog.patience("verifying the last checkpoint"), clock.on("save"):
        problem = checkpointer.check(step)
        moved_to = checkpointer.put_aside(step) if problem else ""
    if problem:
        quarantined(events, step, problem, moved_to)
        raise HaltedError(
            f"the last checkpoint, of step {step}, is not what was saved ({problem}): moved to {moved_to}; see to the "
            "storage, and run the same command to go on from the one before it"
        )
    events.write("verify", step=step, seconds=time.monotonic() - began)
