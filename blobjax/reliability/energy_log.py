"""What the devices of a run have drawn so far, over all processes and attempts: lost and repeated steps drew power too.

Each process keeps its own account in RUN/energy/PROCESS.json, one sum for each source: counters and estimates are never
added. Accounts need no collective, and outlive whoever is killed, up to their last ten seconds.
"""

import contextlib
import json
import socket
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from blobjax.reliability.ledger import as_float
from blobjax.reliability.run_directory import write_atomically

if TYPE_CHECKING:  # which starts jax, and those who only read accounts need none
    from blobjax.compute.energy import Meter

# Between writings of an account, and readings of the others'.
FLUSH_SECONDS = 10
# Of the time, that may go into both: where many processes share a slow file system, they happen less often.
_SHARE = 1 / 200


def read_accounts(directory: Path) -> dict[str, float]:
    """Source to joules, over all accounts of a run; what cannot be read is left out."""
    total: Counter[str] = Counter()
    for path in sorted(directory.glob("[0-9]*.json")):
        total.update(_read(path))
    return dict(total)


def _read(path: Path) -> dict[str, float]:
    if not path.is_file():  # a pipe would keep us waiting for its other end
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = {str(source): as_float(joules) for source, joules in found.items()}
        return {source: joules for source, joules in numbers.items() if 0 <= joules < float("inf")}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def account_lost(directory: Path) -> bool:
    """Whether the account of process 0, which has one in every run that is metered, is gone or says nothing."""
    return not _read(directory / "0.json")


def measured(source: str) -> bool:
    """Whether a source is a counter of the machine, and no estimate."""
    return not source.startswith("estimate")


def shown(joules: float) -> str:
    """Energy as it is read best: 12.3 J, 4.56 kJ, 1.23 kWh."""
    for unit, size in (("MWh", 3.6e9), ("kWh", 3.6e6), ("kJ", 1e3)):
        if joules >= size:
            return f"{joules / size:.3g} {unit}" if joules < 999.5 * size else f"{joules / size:,.0f} {unit}"
    return f"{joules:.3g} J"


def tokens_per_joule(accounts: dict[str, float], tokens: float) -> float | None:
    """What was made of the energy; None where nothing is known of it, or a counter and an estimate would be added.

    Args:
      accounts: source to joules.
      tokens: trained on with all of that energy: of a branch its own, not those of the run it began from.
    """
    drawn = {source: joules for source, joules in accounts.items() if joules}
    return tokens / sum(drawn.values()) if tokens and len({measured(source) for source in drawn}) == 1 else None


def energy_line(accounts: dict[str, float], tokens: float) -> str:
    """What a run drew, in a line: each source by itself, and tokens per joule; the arguments are the same."""
    drawn = {source: joules for source, joules in accounts.items() if joules}
    said = ", and ".join(f"{shown(joules)} ({source})" for source, joules in drawn.items()) or "0 J"
    rate = tokens_per_joule(accounts, tokens)
    return f"energy: {said}" + (f"; {rate:,.{0 if rate >= 100 else 2}f} tokens/J" if rate else "")


def meter_of_this_process(watts: float) -> "Meter | None":
    """The best there is; on CPUs a collective, where the first process on a machine meters it for all of them.

    Args:
      watts: rated power of one device for an estimate; 0: what is known of it.
    """
    import jax

    from blobjax.compute import energy
    from blobjax.reliability.timers import everyone

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

    def __init__(self, directory: Path, process: int, meter: "Meter"):
        self._directory = directory
        self._path = directory / f"{process}.json"
        self._meter = meter
        self._before = _read(self._path)
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
