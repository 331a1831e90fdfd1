"""A run's page: what it was, how it went, what its time and energy went to; whole also where the run is not."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import Any

from blobjax.config import Config
from blobjax.config.sizes import in_words
from blobjax.report import card, charts, plots
from blobjax.report.charts import Chart
from blobjax.report.facts import Facts
from blobjax.report.html import document, figure, human, number, paragraph, section, table
from blobjax.report.prices import JOULES_PER_KWH, Prices
from blobjax.report.redaction import changes, redacted
from blobjax.runs.energy import measured
from blobjax.runs.ledger import number as of_event
from blobjax.runs.mixture import HELD_OUT, held_out_loss
from blobjax.runs.status import CATEGORY_WORDS, span, when

_KINDS = {"finished": "true", "running": "partly", "stopped": "partly", "not begun": "null"}
# The flow table's columns, as at the end of a run; flow.json has all of them.
_PROBES = {
    "residual_rms": "residual RMS",
    "attention_logit_max": "logit max",
    "attention_entropy": "entropy",
    "grad_rms": "gradient RMS",
    "update_ratio": "update ratio",
    "moved_fraction": "moved",
    "dead_fraction": "dead units",
    "grad_flush_fraction": "flushed",
    "weight_sqnr_db": "SQNR dB",
    "log_z_mean": "log Z",
    "noise_scale": "noise scale",
    "hessian_top": "Hessian top",
    "edge_of_stability": "edge of stability",
}


def page(facts: Facts, prices: Prices) -> str:
    """The page, as HTML."""
    name = facts.config.name
    what = f"{human(facts.params)} parameters, {human(facts.tokens)} tokens"
    parts = [
        f'<p class="kind">Run <code>{escape(name)}</code></p><h1>{escape(name)}: {escape(what)}</h1>',
        f'<p><span class="verdict {_KINDS.get(facts.state, "false")}">{escape(facts.state)}</span></p>',
        paragraph(_standing(facts)),
        section("Ingredients", card.html(facts, prices)),
        section(
            "Loss", *_pictures((charts.loss(facts), charts.bits_per_byte(facts)), _no_curve(facts)), _domains(facts)
        ),
        section("Throughput", *_pictures((charts.speed(facts),), ""), _speed(facts)),
        section("Memory", _memory(facts)),
        section("Where the wall time went", _ledger(facts), _attempts(facts)),
        section("Stability", *_pictures((charts.gradients(facts),), ""), _trouble(facts)),
        section("Flow", _flow(facts)),
        section("Energy and cost", _energy(facts, prices)),
        section("Config", _config(facts)),
        section("Made with", _provenance(facts)),
    ]
    return document(f"{name}: {facts.state}", parts)


def _standing(facts: Facts) -> str:
    """How the run stands, in sentences."""
    at, length = facts.status["step"], facts.status["length"]
    steps = f"step {at:,}" + (f" of {length:,}" if length else "")
    reason = redacted(str(facts.status["reason"]))
    match facts.state:
        case "finished":
            return f"Trained to its length, {steps}."
        case "diverged":
            if facts.status["state"] == "diverged":
                return f"This run diverged at {steps} ({redacted(facts.outcome.reason)})."
            return f"Trained to its length, {steps}, but {facts.outcome.reason}."
        case "running":
            return f"This run is not finished: it was at {steps} when this page was written."
        case "not begun":
            return "This run has not begun: there is nothing to report yet."
        case "halted" | "failed":
            return f"This run is not finished: it {facts.state} at {steps} ({reason})."
        case state:
            how = "its process ended without a word" if state == "died" else reason
            return (
                f"This run is not finished: it {state} at {steps} ({how}). The command that began it goes on with it."
            )


def _pictures(made: Iterable[Chart | None], otherwise: str) -> list[str]:
    found = [figure(each.caption, plots.to_png(each.figure), each.seen) for each in made if each]
    return found or [paragraph(otherwise) if otherwise else ""]


def _no_curve(facts: Facts) -> str:
    losses = len(facts.series("cross_entropy")[1])
    return "No loss has been logged yet." if not losses else "Too few finite losses have been logged for a curve."


def _domains(facts: Facts) -> str:
    held_out = facts.outcome.held_out
    names = sorted({name.split("/")[1] for name in held_out} | facts.shares.keys() | facts.epochs.keys())
    if not names:
        return ""
    rows = [
        [
            escape(name),
            f"{facts.shares.get(name, 0):.1%}",
            _figure_of(facts.epochs.get(name)),
            *(
                _figure_of(held_out.get(f"eval/{name}/{metric}"))
                for metric in ("cross_entropy", "perplexity", "bits_per_byte")
            ),
        ]
        for name in names
    ]
    means = [held_out_loss(facts.config, held_out, metric) for metric in ("cross_entropy", "bits_per_byte")]
    if len(facts.shares) > 1 and not any(map(math.isnan, means)):
        rows.append([f"all: {escape(HELD_OUT)}", "", "", _figure_of(means[0]), "", _figure_of(means[1])])
    head = ["domain", "share of training", "epochs", "held-out cross-entropy", "perplexity", "bits per byte"]
    none = "" if held_out else paragraph("There has been no evaluation.")
    losses = paragraph(
        f"Training loss: {facts.outcome.initial_loss:.3f} nats per token at first, {facts.outcome.final_loss:.3f} over "
        "what was logged in the last 5% of the steps."
    )
    return losses + none + table(head, rows, frozenset(range(1, 6)))


def _figure_of(value: float | None) -> str:
    return "" if value is None else escape(number(value))


def _speed(facts: Facts) -> str:
    seconds = sorted(facts.finite("step_seconds"))
    if not seconds:
        return paragraph("No step has been logged.")
    low, high = (seconds[min(int(len(seconds) * share), len(seconds) - 1)] for share in (0.1, 0.9))
    used = facts.finite("model_flops_utilization")
    waits = facts.finite("data_wait_seconds")
    rows = [
        ["tokens per second, median", human(facts.median("tokens_per_second"))],
        ["seconds a step, median", f"{statistics.median(seconds):.4g}"],
        ["of them, from the fastest tenth to the slowest", f"{low:.4g} to {high:.4g}"],
        ["waiting for data, of a step, mean", f"{sum(waits) / sum(seconds):.1%}" if waits and sum(seconds) else ""],
        [
            "model FLOPs per second, median",
            human(facts.median("tokens_per_second") * facts.flops / max(facts.tokens, 1)),
        ],
        [
            "model-FLOPs utilisation, median",
            f"{statistics.median(used):.1%}" if used else "not known",
        ],
    ]
    return table(["logged steps", ""], rows, frozenset({1}))


def _memory(facts: Facts) -> str:
    compiled = [event for event in facts.outcome.events if event["event"] == "compile"]
    said: dict[str, Any] = next(
        (e["memory_bytes"] for e in reversed(compiled) if isinstance(e.get("memory_bytes"), dict)), {}
    )
    rows = [
        [f"the train step's {name}, each device, as compiled", in_words(of_event(said.get(name)))]
        for name in ("arguments", "temporaries")
        if name in said
    ]
    for name, words in (
        ("device_memory_peak_bytes", "the most on one device of process 0"),
        ("host_memory_peak_bytes", "the most that process 0 itself held"),
    ):
        if found := facts.finite(name):
            rows.append([words, in_words(max(found))])
    if not rows:
        return paragraph("Nothing was written down of it.")
    return table(["memory", ""], rows, frozenset({1}))


def _ledger(facts: Facts) -> str:
    ledger = facts.ledger
    if not ledger.wall_seconds:
        return paragraph("No time has been written down.")
    rows = [
        [
            escape(CATEGORY_WORDS[name]),
            f"{seconds:,.1f} s",
            f"{seconds / ledger.wall_seconds:.1%}",
            f'<span class="bar" style="width: {seconds / ledger.wall_seconds * 12:.2f}rem"></span>',
        ]
        for name, seconds in sorted(ledger.seconds.items(), key=lambda each: -each[1])
    ]
    rows.append(["in all", f"{ledger.wall_seconds:,.1f} s", "100.0%", ""])
    words = (
        f"Goodput {ledger.goodput:.1%}: of {span(ledger.wall_seconds)} from the first start to the last sign of life, "
        f"down time included, {span(ledger.seconds.get('train', 0.0))} went into steps that the run's state rests on."
    )
    notes = "".join(paragraph(f"Note: {note}.", small=True) for note in ledger.notes)
    return paragraph(words) + table(["", "seconds", "share", ""], rows, frozenset({1, 2})) + notes


def _attempts(facts: Facts) -> str:
    attempts = facts.status["attempts"]
    rows = [
        [
            str(order),
            _whole(when(each["began"])),
            _whole(span(each["seconds"])),
            _whole(f"{each['first_step']:,} to {each['last_step']:,}"),
            escape(number(each["processes"])),
            escape(number(each["devices"])),
            escape(redacted(each["end"])),
        ]
        for order, each in enumerate(attempts, 1)
    ]
    head = ["attempt", "began", "took", "steps", "processes", "devices", "end"]
    return table(head, rows, frozenset({0, 4, 5})) if attempts else ""


def _whole(text: str) -> str:
    """Text that is not broken into lines."""
    return text.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{NON-BREAKING HYPHEN}")


def _trouble(facts: Facts) -> str:
    events = facts.status["events"]
    words = ", ".join(f"{name.replace('_', ' ')} × {count}" for name, count in events.items())
    rollbacks = [
        f"Rollback at step {of_event(e.get('step')):,.0f} to step {of_event(e.get('to_step')):,.0f}: "
        f"{redacted(str(e.get('reason', '')))}."
        for e in facts.outcome.events
        if e["event"] == "rollback"
    ]
    slow = facts.status["straggler"]
    slowest = (
        f"Slowest at step {slow['step']}: process {slow['slowest']}, by {slow['lag_seconds']:g} s a step."
        if slow
        else ""
    )
    ended = "" if facts.state in ("finished", "running", "not begun") else f"{_standing(facts)}"
    told = [ended, words and f"Events: {words}.", *rollbacks, slowest, _beyond(_judged(facts))]
    nothing = "No event of trouble was written down, and no judged probe is beyond its threshold."
    if not _judged(facts):
        nothing = "No event of trouble was written down."
    return "".join(paragraph(line) for line in told if line) or paragraph(nothing)


def _beyond(judged: dict[str, Any]) -> str:
    """How many probes of the table of the flow are marked; nothing where none is."""
    counted: Counter[str] = Counter()
    for place in judged.get("places", {}).values() if isinstance(judged.get("places"), dict) else ():
        probes = place.get("probes") if isinstance(place, dict) else None
        for probe in probes.values() if isinstance(probes, dict) else ():
            counted[str(probe.get("verdict")) if isinstance(probe, dict) else ""] += 1
    words = [f"{counted[name]} {name} ({mark})" for name, mark in _MARKS.items() if counted[name]]
    return f"Probes beyond their thresholds, in the table of the flow below: {', '.join(words)}." if words else ""


_MARKS = {"turbulent": "!!", "stagnant": "!!", "watch": "!"}


def _flow(facts: Facts) -> str:
    newest = {name: each["last"] for name, each in facts.outcome.flow.items()}
    if not newest:
        return paragraph("The run was not probed; conditioning.probe_every=10 does.")
    judged = _judged(facts)
    places = sorted({name.split("/")[1] for name in newest}, key=lambda place: (_ORDER.get(place, 1), place))
    probes = [probe for probe in _PROBES if any(f"flow/{place}/{probe}" in newest for place in places)]
    rows = [[escape(place), *(_probe(newest, judged, place, probe) for probe in probes)] for place in places]
    rows = [row for row in rows if any(row[1:])]
    words = judged.get("sentences", [])
    if not judged:
        words = ["Not held against thresholds: the run has not come to an end that it could write down."]
    elif not words:
        words = ["The flow is laminar: nothing is beyond its threshold."]
    head = ["newest probe", *(_PROBES[probe] for probe in probes)]
    return table(head, rows, frozenset(range(1, len(head)))) + "".join(paragraph(str(each)) for each in words)


_ORDER = {"embedding": 0, "output": 2, "run": 3}


def _judged(facts: Facts) -> dict[str, Any]:
    """flow.json, where it is about the newest probes: it is written when an attempt ends by itself."""
    if not facts.ledger.attempts or not facts.ledger.attempts[-1].stop:
        return {}
    if not facts.directory.flow.is_file():
        return {}
    try:
        found = json.loads(facts.directory.flow.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and isinstance(found.get("sentences"), list) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _probe(newest: dict[str, float], judged: dict[str, Any], place: str, probe: str) -> str:
    value = newest.get(f"flow/{place}/{probe}")
    if value is None:
        return ""
    try:
        verdict = judged["places"][place]["probes"][probe]["verdict"]
    except (KeyError, TypeError):
        verdict = ""
    mark = _MARKS.get(verdict, "") if isinstance(verdict, str) else ""
    return f'<td class="n {verdict}">{value:.3g} {mark}</td>' if mark else f"{value:.3g}"


def _energy(facts: Facts, prices: Prices) -> str:
    rows = [
        [
            escape(source),
            "measured" if measured(source) else "estimated",
            f"{joules / JOULES_PER_KWH:.4g}",
            f"{prices.wall_kwh(joules):.4g}",
            *([f"{prices.wall_kwh(joules) * prices.grid / 1000:.4g}"] if prices.grid is not None else []),
        ]
        for source, joules in facts.energy.items()
        if joules
    ]
    head = [
        "source",
        "",
        "kWh at the chips",
        "kWh at the wall (estimate)",
        *(["kg CO2e (estimate)"] if prices.grid is not None else []),
    ]
    rate = facts.tokens_per_joule
    unknown = (
        "What this run drew is not known: no counter could be read, and no power of the device is published; "
        "compute.device_watts gives one."
    )
    hours = f"{facts.chip_hours:.4g} chip-hours while it was up{facts.chips_counted}"
    cost = (
        "; no price given (--price)."
        if prices.price is None
        else (f": {facts.chip_hours * prices.price:,.2f} at {prices.price:g} each.")
    )
    told = ["" if rows else unknown, f"{human(rate)} tokens per joule at the chips." if rate else "", hours + cost]
    grid = "no carbon intensity given (--grid)" if prices.grid is None else f"{prices.grid:g} gCO2e a kWh"
    assumed = (
        "Measured is what a counter covers: GPU boards (nvml), or a machine's processor packages and all that runs on "
        f"them (rapl). At the wall: that times {prices.host_overhead:g} for hosts and {prices.pue:g} for the building; "
        f"{grid}."
    )
    listed = table(head, rows, frozenset(range(2, len(head)))) if rows else ""
    return listed + "".join(paragraph(line) for line in told if line) + paragraph(assumed, small=True)


def _config(facts: Facts) -> str:
    # `key: default -> value`, and the default is of no interest here.
    pairs = ((line.partition(": ")[0], line.rpartition(" -> ")[2]) for line in changes(Config(), facts.config))
    listed = "\n".join(f"{key}: {value}" for key, value in pairs if value != "(absent)")
    return paragraph("What differs from the schema's defaults:", small=True) + f"<pre>{escape(listed)}</pre>"


def _provenance(facts: Facts) -> str:
    starts = [each.start for each in facts.ledger.attempts]
    versions = dict.fromkeys(f"{k} {v}" for start in starts for k, v in (start.get("versions") or {}).items())
    devices = dict.fromkeys(f"{s.get('devices', '?')} × {s.get('device_kind', '?')}" for s in starts)
    began = when(facts.ledger.attempts[0].began) if starts else ""
    return paragraph(" · ".join(each for each in (began, ", ".join(versions), ", ".join(devices)) if each), small=True)
