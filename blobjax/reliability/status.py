"""`blobjax status`: how a run stands, how much of its time counted, and what the rest went to. Starts no jax."""

import time
from collections import Counter
from typing import Any

from blobjax.config import BadInputError
from blobjax.reliability.ledger import Attempt, read_ledger
from blobjax.reliability.run_directory import RunDirectory, read_jsonl

_SAID = {
    "train": "steps that count",
    "lost": "steps lost, computed again",
    "data_wait": "waiting for data",
    "init": "starting",
    "restore": "making or restoring the state",
    "compile": "compiling",
    "evaluate": "evaluating",
    "save": "waiting for saves",
    "rollback": "rolling back",
    "other": "probes, snapshots, checks",
    "unaccounted": "unaccounted (killed)",
    "down": "down between attempts",
}
# Events that are worth counting, in the words for one of them.
_COUNTED = ("quarantine", "rollback", "skip", "save_failed", "save_skipped", "preempt", "hang", "corruption")


def status(run: str) -> dict[str, Any]:
    """What there is to say of a run; the keys are those of `--json`.

    Raises:
      BadInputError: there is no run.
    """
    directory = RunDirectory(run)
    if not directory.config.is_file():
        raise BadInputError(f"{run}: holds no config.yaml of a run; give a run directory, such as runs/laptop")
    events = [event for event in read_jsonl(directory.events) if "event" in event]
    ledger = read_ledger(events)
    length = next((event["length"] for event in reversed(events) if "length" in event), None)
    newest: dict[str, Any] = next(
        (line for line in reversed(list(read_jsonl(directory.metrics))) if "loss" in line), {}
    )
    saved = [event["step"] for event in events if event["event"] in ("save", "restore")]
    running = directory.in_use()
    last = ledger.attempts[-1] if ledger.attempts else None
    return {
        "run": str(directory.path),
        "state": _state(last, running),
        "reason": last.stop.get("reason", "") if last and not running else "",
        "step": max(newest.get("step", 0), last.last_step if last else 0),
        "length": length,
        "loss": newest.get("loss"),
        "newest_save": saved[-1] if saved else None,
        "last_event_seconds_ago": round(time.time() - events[-1]["time"], 1) if events else None,
        "goodput": ledger.goodput,
        "wall_seconds": ledger.wall_seconds,
        "seconds": ledger.seconds,
        "cost_most": max(
            (name for name in ledger.seconds if name != "train"), key=lambda name: ledger.seconds[name], default=None
        ),
        "attempts": [_attempt(each, running and each is last) for each in ledger.attempts],
        "events": {name: count for name in _COUNTED if (count := Counter(e["event"] for e in events)[name])},
        "straggler": next((_straggler(e) for e in reversed(events) if e["event"] == "stragglers"), None),
        "notes": ledger.notes,
    }


def _state(last: Attempt | None, running: bool) -> str:
    if running:
        return "running"
    if last is None:
        return "not begun"
    reason = last.stop.get("reason")
    if reason is None:
        return "died"
    if reason == "finished":
        return "finished"
    # A stop that names its step was saved; one that does not is an error.
    return "stopped" if "step" in last.stop else "failed"


def _attempt(attempt: Attempt, running: bool) -> dict[str, Any]:
    supervised = attempt.start.get("supervised") or {}
    return {
        "began": attempt.began,
        "seconds": attempt.ended - attempt.began,
        "first_step": attempt.first_step,
        "last_step": attempt.last_step,
        "end": "running" if running else attempt.stop.get("reason", "died"),
        "processes": attempt.start.get("processes"),
        "devices": attempt.start.get("devices"),
        "restart": supervised.get("restart"),
    }


def _straggler(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event.get(name) for name in ("step", "slowest", "host", "lag_seconds")}


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    of = f" of {found['length']:,}" if found["length"] else ""
    reason = f" ({found['reason']})" if found["reason"] not in ("", "finished") else ""
    said = [f"{found['run']}: {found['state']}{reason} at step {found['step']:,}{of}"]
    facts = []
    if isinstance(found["loss"], int | float):
        facts.append(f"loss {found['loss']:.3f}")
    if found["newest_save"] is not None:
        facts.append(f"newest save: step {found['newest_save']:,}")
    if found["last_event_seconds_ago"] is not None:
        facts.append(f"last event {_span(found['last_event_seconds_ago'])} ago")
    if facts:
        said.append("  " + ", ".join(facts))
    if found["wall_seconds"]:
        said += [
            "",
            f"goodput {found['goodput']:.1%}: of {_span(found['wall_seconds'])}, "
            f"{_span(found['seconds'].get('train', 0.0))} went into steps that count",
            "",
        ]
        for name, seconds in sorted(found["seconds"].items(), key=lambda each: -each[1]):
            if seconds < 0.05:
                continue
            share = seconds / found["wall_seconds"]
            said.append(f"  {_SAID[name]:<30} {seconds:>12,.1f} s  {share:>6.1%}  {'█' * round(share * 30)}".rstrip())
        said.append(f"  {'in all':<30} {found['wall_seconds']:>12,.1f} s  100.0%")
    if found["cost_most"]:
        cost = found["seconds"][found["cost_most"]]
        said += ["", f"what cost the most besides: {_SAID[found['cost_most']]}, {_span(cost)}"]
    if found["attempts"]:
        said.append("")
    for number, each in enumerate(found["attempts"], 1):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["began"]))
        steps = f"step {each['first_step']:,} to {each['last_step']:,}"
        by_itself = " (by the supervisor)" if each["restart"] else ""
        said.append(f"  attempt {number}  {when}  {_span(each['seconds']):>9}  {steps}: {each['end']}{by_itself}")
    if found["events"]:
        said += ["", "events: " + ", ".join(f"{name} × {count}" for name, count in found["events"].items())]
    if found["straggler"] and (found["straggler"]["lag_seconds"] or 0) > 0:
        slow = found["straggler"]
        who = f"process {slow['slowest']} ({slow['host']})"
        said.append(f"slowest at step {slow['step']}: {who}, by {slow['lag_seconds']:g} s a step")
    return [*said, *(f"note: {note}" for note in found["notes"])]


def _span(seconds: float) -> str:
    """3.2 s, 4:05, 2:03:04, 3 d 2:03:04."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{left:02d}" if hours or days else f"{minutes}:{left:02d}"
    return f"{days} d {text}" if days else text
