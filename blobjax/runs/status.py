"""`blobjax status`: how a run stands, how much of its time counted, and what the rest went to. Starts no jax."""

import time
from collections import Counter
from itertools import zip_longest
from typing import Any

from blobjax.config import BadInputError
from blobjax.runs import lost_lines
from blobjax.runs.energy import energy_line, read_accounts
from blobjax.runs.ledger import exit_in_words, Attempt, number, read_ledger
from blobjax.runs.outcome import sequences_before
from blobjax.runs.directory import RunDirectory, read_jsonl, read_jsonl_backwards
from blobjax.config.paths import check_readable
from blobjax.runs.ledger import Attempt, number, read_ledger

CATEGORY_WORDS = {
    "train": "steps that count",
    "lost": "steps lost, computed again",
    "data_wait": "waiting for data",
    "init": "starting",
    "restore": "making or restoring the state",
    "compile": "compiling",
    "evaluate": "evaluating",
    "save": "waiting for saves",
    "rollback": "rolling back",
    "sample": "sampling a passage at the end",
    "other": "probes, snapshots, checks",
    "unaccounted": "not written down (yet)",
    "down": "down between attempts",
}
# Events that are worth counting, in the words for one of them.
_COUNTED = ("quarantine", "rollback", "skip", "save_failed", "save_skipped", "preempt", "hang", "corruption")


def status(run: str) -> dict[str, Any]:
    """What there is to say of a run; the keys are those of `--json`.

    Raises:
      BadInputError: there is no run, or it began from another and its config cannot be read.
    """
    directory = RunDirectory(run)
    check_readable(directory.path)
    if not directory.config.is_file():
        raise BadInputError(f"{run}: holds no config.yaml of a run; give a run directory, such as runs/laptop")
    # Before the files: a run that ends in between is then said to run, and not to have died.
    running = directory.in_use()
    try:
        events = [event for event in read_jsonl(directory.events) if isinstance(event.get("event"), str)]
        lost = lost_lines.notes(directory, events)
        newest: dict[str, Any] = next((e for e in read_jsonl_backwards(directory.metrics) if "loss" in e), {})
    except OSError as error:
        raise BadInputError(f"{run}: cannot be read: {error.filename}: {error.strerror}") from None
    ledger = read_ledger(events)
    length = next((int(number(event["length"])) for event in reversed(events) if "length" in event), 0)
    # Nothing goes on from a save that is not finite.
    saves = [e for e in events if e["event"] in ("save", "restore") and e.get("finite") is not False]
    saved = [int(number(event.get("step"), -1)) for event in saves]
    times = [number(event.get("time"), -1.0) for event in events[-1:]]
    last = ledger.attempts[-1] if ledger.attempts else None
    counted = Counter(event["event"] for event in events)
    tokens = int(number(newest.get("tokens")))
    return {
        "run": str(directory.path),
        "state": _state(last, running),
        "reason": last.stop.get("reason", "") if last and not running else "",
        "since": (last.began if running else last.ended) if last else None,
        "step": max(int(number(newest.get("step"))), last.last_step if last else 0),
        "length": length or None,
        "loss": newest.get("loss"),
        "newest_save": saved[-1] if saved and saved[-1] >= 0 else None,
        "last_event_seconds_ago": round(time.time() - times[0], 1) if times and times[0] >= 0 else None,
        "goodput": ledger.goodput,
        "wall_seconds": ledger.wall_seconds,
        "seconds": ledger.seconds,
        "cost_most": max(
            (name for name in ledger.seconds if name not in ("train", "unaccounted")),
            key=lambda name: ledger.seconds[name],
            default=None,
        ),
        "attempts": [_attempt(*each, running) for each in zip_longest(ledger.attempts, ledger.attempts[1:])],
        "events": {name: counted[name] for name in _COUNTED if counted[name]},
        "energy_joules": read_accounts(directory.energy),
        "tokens": tokens,
        # Of a run that began from another, what it was trained on itself: the energy is of these.
        "own_tokens": max(tokens - _tokens_before(directory, events), 0),
        "straggler": next((_straggler(e) for e in reversed(events) if e["event"] == "stragglers"), None),
        "notes": [*lost, *ledger.notes],
    }


def _tokens_before(directory: RunDirectory, events: list[dict[str, Any]]) -> int:
    sequences = sequences_before(events)
    return sequences * directory.resolved_config().data.seq_len if sequences else 0


def _state(last: Attempt | None, running: bool) -> str:
    if running:
        return "running"
    if last is None:
        return "not begun"
    if not last.stop:
        return "died"
    reason = str(last.stop.get("reason"))
    if reason == "finished":
        return "finished"
    for error, state in (("HaltedError", "halted"), ("DivergedError", "diverged")):
        if reason.startswith(error):
            return state
    # A stop that names its step was saved, one that says so can be resumed, and what silent corruption has spoiled is
    # put aside; others are errors.
    saved = "step" in last.stop or last.stop.get("resumable") is True or reason.startswith("silent corruption")
    return "stopped" if saved else "failed"


def _attempt(attempt: Attempt, following: Attempt | None, running: bool) -> dict[str, Any]:
    restart, _ = _supervised(attempt)
    return {
        "began": attempt.began,
        "seconds": attempt.ended - attempt.began,
        "first_step": attempt.first_step,
        "last_step": attempt.last_step,
        "end": "running" if running and following is None else _end(attempt, following),
        "processes": attempt.start.get("processes"),
        "devices": attempt.start.get("devices"),
        "restart": restart,
    }


def _end(attempt: Attempt, following: Attempt | None) -> str:
    if attempt.stop:
        return str(attempt.stop.get("reason"))
    if following is not None:
        before, (restart, code) = _supervised(attempt)[0] or 0, _supervised(following)
        # Not where another came to its end in between, before it could write a word.
        if restart == before + 1 and code is not None:
            return f"died ({exit_in_words(code)})"
    return "died"


def _supervised(attempt: Attempt) -> tuple[int | None, int | None]:
    """Which restart by the supervisor it is, and the exit code before it; None where it is none."""
    said = attempt.start.get("supervised")
    restart, code = (said.get("restart"), said.get("previous_exit")) if isinstance(said, dict) else (None, None)
    return (restart if isinstance(restart, int) else None), (code if isinstance(code, int) else None)


def _straggler(event: dict[str, Any]) -> dict[str, Any]:
    lag = round(number(event.get("lag_seconds")), 4)
    return {**{name: event.get(name) for name in ("step", "slowest", "host")}, "lag_seconds": lag}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    of = f" of {found['length']:,}" if found["length"] else ""
    reason = f" ({found['reason']})" if found["reason"] not in ("", "finished") else ""
    since = (
        "" if found["since"] is None else f"{' since' if found['state'] == 'running' else ''} {when(found['since'])}"
    )
    said = [f"{found['run']}: {found['state']}{since}{reason}, at step {found['step']:,}{of}"]
    facts = []
    if isinstance(found["loss"], int | float):
        facts.append(f"loss {found['loss']:.3f}")
    if found["newest_save"] is not None:
        facts.append(f"newest save: step {found['newest_save']:,}")
    if found["last_event_seconds_ago"] is not None:
        facts.append(f"last event {span(found['last_event_seconds_ago'])} ago")
    if facts:
        said.append("  " + ", ".join(facts))
    if found["wall_seconds"]:
        said += [
            "",
            f"goodput {found['goodput']:.1%}: of {span(found['wall_seconds'])}, "
            f"{span(found['seconds'].get('train', 0.0))} went into steps that count",
            "",
        ]
        for name, seconds in sorted(found["seconds"].items(), key=lambda each: -each[1]):
            if seconds < 0.05:
                continue
            share = seconds / found["wall_seconds"]
            said.append(
                f"  {CATEGORY_WORDS[name]:<30} {seconds:>12,.1f} s  {share:>6.1%}  {'█' * round(share * 30)}".rstrip()
            )
        said.append(f"  {'in all':<30} {found['wall_seconds']:>12,.1f} s  100.0%")
    if found["cost_most"]:
        cost = found["seconds"][found["cost_most"]]
        said += ["", f"what cost the most besides: {CATEGORY_WORDS[found['cost_most']]}, {span(cost)}"]
    if found["attempts"]:
        said.append("")
    for order, each in enumerate(found["attempts"], 1):
        first, newest = each["first_step"], each["last_step"]
        steps = f"step {first:,} to {newest:,}" if newest > first else "no step written down"
        by_itself = f"; restart {each['restart']} by the supervisor" if each["restart"] else ""
        said.append(
            f"  attempt {order}  {when(each['began'])}  {span(each['seconds']):>9}  {steps}{_on(each)}: "
            f"{each['end']}{by_itself}"
        )
    if found["events"]:
        said += ["", "events: " + ", ".join(f"{name} × {count}" for name, count in found["events"].items())]
    if found["energy_joules"]:
        said += ["", energy_line(found["energy_joules"], found["own_tokens"])]
    if found["straggler"] and found["straggler"]["lag_seconds"] > 0:
        slow = found["straggler"]
        who = f"process {slow['slowest']} ({slow['host']})"
        said.append(f"slowest at step {slow['step']}: {who}, by {slow['lag_seconds']:g} s a step")
    return [*said, *(f"note: {note}" for note in found["notes"])]


def _on(attempt: dict[str, Any]) -> str:
    """Devices of all processes, and the processes; nothing where an attempt did not get so far."""
    devices, processes = (int(number(attempt[name])) for name in ("devices", "processes"))
    if not devices:
        return ""
    of = f" of {processes} processes" if processes > 1 else ""
    return f" on {devices} device{'' if devices == 1 else 's'}{of}"


def when(seconds: float) -> str:
    """A time in seconds since 1970, as the clock on the wall has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # no date of this world
        return "?"


def span(seconds: float) -> str:
    """3.2 s, 4:05, 2:03:04, 3 d 2:03:04."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{left:02d}" if hours or days else f"{minutes}:{left:02d}"
    return f"{days} d {text}" if days else text
