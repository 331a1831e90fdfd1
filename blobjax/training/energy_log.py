"""What a run has drawn from the wall so far, over all processes and attempts: lost and repeated steps drew power too.

Each process keeps its own account in RUN/energy/PROCESS.json, one sum for each source: counters and estimates are never
added. Accounts need no collective, and outlive whoever is killed, up to the last half minute.
"""

import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import jax

from blobjax.compute.energy import Meter
from blobjax.reliability.run_directory import write_atomically

# Between writings of an account, and readings of the others'.
FLUSH_SECONDS = 30


def read_accounts(directory: Path) -> dict[str, float]:
    """Source to joules, over all accounts of a run; what cannot be read is left out."""
    total: Counter[str] = Counter()
    for path in sorted(directory.glob("[0-9]*.json")):
        total.update(_read(path))
    return dict(total)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(source): float(joules) for source, joules in found.items() if float(joules) >= 0}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


class EnergyLog:
    """This process's account, and the run's total; a context manager, so that the last of it is written."""

    def __init__(self, directory: Path, meter: Meter):
        self._directory = directory
        self._path = directory / f"{jax.process_index()}.json"
        self._meter = meter
        self._before = _read(self._path)
        self._others = 0.0
        self._next = 0.0

    def __enter__(self) -> "EnergyLog":
        self._flush()
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def _mine(self) -> float:
        return self._before.get(self._meter.source, 0.0) + self._meter.joules

    def _flush(self) -> None:
        self._next = time.monotonic() + FLUSH_SECONDS
        # An account that cannot be written is no reason to end a run.
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            mine = {**self._before, self._meter.source: self._mine()}
            write_atomically(self._path, json.dumps(mine) + "\n")
            written = read_accounts(self._directory).get(self._meter.source, 0.0)
            self._others = max(written - mine[self._meter.source], 0.0)

    def metrics(self, tokens: int) -> dict[str, float | str]:
        """What the run has drawn so far by the source this attempt has, on all processes, and what it made of it.

        Args:
          tokens: trained on so far.

        Returns:
          `energy_joules`, `energy_source` and `tokens_per_joule`.
        """
        if time.monotonic() >= self._next:
            self._flush()
        joules = self._mine() + self._others
        found: dict[str, float | str] = {"energy_joules": joules, "energy_source": self._meter.source}
        return found | ({"tokens_per_joule": tokens / joules} if joules else {})
