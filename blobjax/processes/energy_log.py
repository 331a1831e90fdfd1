"""The energy meter of a running process: what its devices draw, written to its account every few seconds.

Accounts need no collective, and outlive a killed process, up to their last ten seconds.
"""

import contextlib
import json
import socket
import sys
import time
import zlib
from pathlib import Path

import jax

from blobjax.compute import energy
from blobjax.compute.energy import Meter
from blobjax.processes.timers import everyone
from blobjax.runs.directory import write_atomically
from blobjax.runs.energy import read_account, read_accounts, tokens_per_joule

# Between writings of an account, and readings of the others'.
FLUSH_SECONDS = 10
# Of the time, that may go into both: where many processes share a slow file system, they happen less often.
_SHARE = 1 / 200


def meter_of_this_process(watts: float) -> Meter | None:
    """The best there is; on CPUs a collective, where the first process on a machine meters it for all of them.

    Args:
      watts: rated power of one device for an estimate; 0: what is known of it.
    """
    if jax.default_backend() == "cpu":
        machines = everyone([zlib.crc32(socket.gethostname().encode()) >> 1]).ravel().tolist()
        if machines.index(machines[jax.process_index()]) != jax.process_index():
            return None
    return energy.meter(watts=watts)


class EnergyLog:
    """One process's account, and the run's total; a context manager, so that the last of it is written.

    Args:
      directory: of the accounts; nothing is written before it is there.
      process: whose account it is.
      meter: of the devices of this process.
    """

    def __init__(self, directory: Path, process: int, meter: Meter):
        self._directory = directory
        self._path = directory / f"{process}.json"
        self._meter = meter
        self._before = read_account(self._path)
        self._others: dict[str, float] = {}
        self._next = 0.0
        self._joules = 0.0
        self._failed = False

    def __enter__(self) -> "EnergyLog":
        self._flush()
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def _mine(self) -> dict[str, float]:
        # A counter that fails is no reason to end a run, whatever it raises: NVML's errors are its own.
        try:
            self._joules = self._meter.joules
        except Exception as error:
            if not self._failed:
                what = f"the energy counter ({self._meter.source}) cannot be read: {type(error).__name__}: {error}"
                print(f"blobjax: {what}; what is drawn meanwhile may be missing", file=sys.stderr, flush=True)
            self._failed = True
        source = self._meter.source
        return {**self._before, source: self._before.get(source, 0.0) + self._joules}

    def _flush(self) -> None:
        began = time.monotonic()
        mine = self._mine()
        # Nor is an account that cannot be written.
        with contextlib.suppress(OSError):
            write_atomically(self._path, json.dumps(mine) + "\n")
            written = read_accounts(self._directory)
            self._others = {source: max(joules - mine.get(source, 0.0), 0.0) for source, joules in written.items()}
        now = time.monotonic()
        self._next = now + max(FLUSH_SECONDS, (now - began) / _SHARE)

    def beat(self) -> None:
        """To be called now and then: writes the account when it is due. Counters that run over are read by that."""
        if time.monotonic() >= self._next:
            self._flush()

    def totals(self) -> dict[str, float]:
        """Source to joules, of all processes and attempts so far."""
        mine = self._mine()
        return {
            source: mine.get(source, 0.0) + self._others.get(source, 0.0)
            for source in dict.fromkeys([*mine, *self._others])
        }

    def metrics(self, tokens: int) -> dict[str, float | str]:
        """What the run has drawn so far by the source this attempt has, on all processes, and what it made of it.

        Args:
          tokens: trained on so far with what was drawn.

        Returns:
          `energy_joules`, `energy_source` and, where that is known, `tokens_per_joule` of all that was drawn.
        """
        totals = self.totals()
        found: dict[str, float | str] = {
            "energy_joules": totals[self._meter.source],
            "energy_source": self._meter.source,
        }
        rate = tokens_per_joule(totals, tokens)
        return found | ({"tokens_per_joule": rate} if rate is not None else {})
