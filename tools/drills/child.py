"""One process of a run with a fault inside: patches one function of blobjax, then is `blobjax`.

    python tools/drills/child.py '{"fault": "exception", "process": 1, "step": 9, "pace": 0.05}' train laptop …

The product has no switch for any of this. Faults: `exception` (raised in the loop), `hang` (Python waits for a lock
that nobody lets go), `data` (the data source never answers), or none, and steps only take their time.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from blobjax import cli
from blobjax.data.stream import Stream
from blobjax.training import context


def _hang() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv.pop(1))
    fault, at, pace = asked["fault"], asked["step"], asked["pace"]
    mine = os.environ.get("JAX_PROCESS_ID", "0") == str(asked["process"])
    genuine = context.training_batches

    def training_batches(
        stream: Stream, position: Any, steps: Iterable[int], sharding: Any, length: int
    ) -> Iterator[dict[str, Any]]:
        """The loop's batches, as slow as asked for, with the fault in front of one."""
        if fault == "data" and mine:
            _dry_up(stream, position.sequences(at - 1))
        steps = list(steps)
        for step, batch in zip(steps, genuine(stream, position, steps, sharding, length), strict=False):
            time.sleep(pace)
            if mine and step == at and fault == "exception":
                raise RuntimeError("the drill's exception")
            if mine and step == at and fault == "hang":
                _hang()
            yield batch

    context.training_batches = training_batches
    cli.main()


def _dry_up(stream: Stream, last: int) -> None:
    """From this sequence of the run on the stream has no answer; asked in a thread of the reader ahead."""
    genuine = stream.sequences

    def sequences(numbers: list[int]) -> Any:
        if max(numbers) >= last:
            _hang()
        return genuine(numbers)

    stream.sequences = sequences  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
