"""A process that runs cells one after another, so that Python and jax are imported once and not for every cell.

It reads run directories from its input, one a line, each holding the config.yaml of the run to do, and answers each
with a line of JSON. What the run prints goes to log.txt in its directory. When the input ends the process ends; a run
under way is saved first. So it is too when the study's own process was killed.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from blobjax.compute import runtime
from blobjax.config import BadInputError, Config, HaltedError, load
from blobjax.processes import streams
from blobjax.processes.stopping import Stopping
from blobjax.studies import runner


def main() -> None:
    """Serves until its input ends."""
    streams.open_standard()
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            busy.set()
            orders.put(line.rstrip("\n"))
        if busy.is_set():
            # The loop takes it as a request to save and stop; before the loop it ends the process, and nothing is lost.
            os.kill(os.getpid(), signal.SIGTERM)
        orders.put("")

    threading.Thread(target=listen, daemon=True).start()
    configured = False
    while directory := orders.get():
        with (Path(directory) / "log.txt").open("a", encoding="utf-8") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        answer = run(Path(directory), configured)
        for line in answer.get("problems", ()):
            print(line, file=sys.stderr)
        configured = True
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        busy.clear()
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(answer) + "\n")


def run_one(directory: str, study: str) -> dict[str, Any]:
    """Does one run in a process of its own: a job of a cluster.

    Args:
      directory: of the run.
      study: the directory of the study, whose compiled programs are shared.
    """
    for name, value in runner.compilation_cache(Path(study)).items():
        os.environ.setdefault(name, value)
    streams.open_standard()
    # Slurm says so by this signal, through submitit, when the job's time is nearly up: then it saves and stops.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with (Path(directory) / "log.txt").open("a", encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    return run(Path(directory), configured=False)


def run(directory: Path, configured: bool) -> dict[str, Any]:
    """Does one run in this process.

    Args:
      directory: of the run, with its config.yaml.
      configured: whether jax was started as the config wants it.

    Returns:
      `code`: what `blobjax train` would have exited with; `problems`: its lines of bad input; `error`: what it failed
      for; `told`: the signal or limit that it was told to stop by, or nothing.
    """
    try:
        config = load(str(directory / "config.yaml"))
        if not configured:
            runtime.configure(config.compute)
    except BadInputError as error:
        return {"code": 2, "problems": list(error.problems), "told": ""}
    stopping = Stopping(config.reliability.grace.seconds or 0)
    stopping.listen()
    with contextlib.closing(stopping):
        return _train(config, stopping) | {"told": stopping.reason}


def _train(config: Config, stopping: Stopping) -> dict[str, Any]:
    import jax

    from blobjax.training.trainer import train

    try:
        return {"code": train(config, stopping=stopping)}
    except BadInputError as error:
        return {"code": 2, "problems": list(error.problems)}
    except HaltedError as error:
        print(error, file=sys.stderr)
        return {"code": 1}
    except Exception as error:
        traceback.print_exc()
        return {"code": 1, "error": f"{type(error).__name__}: {error}"}
    finally:
        # A cell's programs are of no use to the next one, and there may be hundreds.
        jax.clear_caches()


if __name__ == "__main__":
    main()
