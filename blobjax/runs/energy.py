"""What the devices of a run have drawn so far, over all processes and attempts: lost and repeated steps drew power too.

Each process keeps its own account in RUN/energy/PROCESS.json, one sum for each source: counters and estimates are never
added. Accounts need no collective, and outlive whoever is killed, up to their last ten seconds.
"""

import json
from collections import Counter
from pathlib import Path

from blobjax.runs.ledger import as_float


def read_accounts(directory: Path) -> dict[str, float]:
    """Source to joules, over all accounts of a run; what cannot be read is left out."""
    total: Counter[str] = Counter()
    for path in sorted(directory.glob("[0-9]*.json")):
        total.update(read_account(path))
    return dict(total)


def read_account(path: Path) -> dict[str, float]:
    """Source to joules of one process's account; empty where it cannot be read."""
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
    return not read_account(directory / "0.json")


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
