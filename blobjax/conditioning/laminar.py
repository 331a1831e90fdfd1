"""Where the flow of a run is laminar and where not: what its probes say, held against published thresholds.

A finding is one of three:
  laminar    within what trained models show
  watch      out of that: nothing has happened yet, and this is where it would begin
  turbulent  what the sources saw in runs that diverged or stood still, or numbers that are not finite

Thresholds without a source are ours; they say where to look, not what must be wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

LAMINAR, WATCH, TURBULENT = "laminar", "watch", "turbulent"
_RANK = {LAMINAR: 0, WATCH: 1, TURBULENT: 2}

History = Sequence[tuple[int, float]]
"""Steps, and what a probe showed there; in order of time."""


class Finding(NamedTuple):
    """What is to be said of one probe in one place."""

    verdict: str
    why: str
    """A sentence, with the number and where the threshold comes from; empty where the flow is laminar."""


def judge(name: str, history: History, vocab_size: int) -> Finding:
    """What a probe's history in one place amounts to.

    Args:
      name: the probe, without its place: `residual_rms`.
      history: at least one point.
      vocab_size: for what is measured against the entropy of a uniform guess.
    """
    broken = next((step for step, value in history if not _finite(name, value)), None)
    if broken is not None:
        return Finding(TURBULENT, f"{name} is not finite at step {broken}")
    rule = _RULES.get(name)
    return rule([value for _, value in history], vocab_size) if rule else Finding(LAMINAR, "")


def worst(verdicts: Sequence[str]) -> str:
    """The gravest of some verdicts; laminar where there is none."""
    return max(verdicts, key=_RANK.__getitem__, default=LAMINAR)


def survey(probes: Mapping[str, Mapping[str, History]], vocab_size: int) -> dict[str, Any]:
    """The whole of a run: for each place and probe its first, last and largest value and a finding.

    Args:
      probes: place (`block_00`, `embedding`, `output`, `run`) to probe to history.

    Returns:
      What flow.json holds: `verdict`, `places` in the order of the forward pass, and `sentences`, gravest first: what
      is found of one probe in several places is one sentence, about the first of them.
    """
    places: dict[str, Any] = {}
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for place in sorted(probes, key=_forward):
        rows: dict[str, dict[str, Any]] = {}
        for name, history in sorted(probes[place].items()):
            finding = judge(name, history, vocab_size)
            values = [value for _, value in history]
            finite = [value for value in values if math.isfinite(value)]
            rows[name] = {
                "first": values[0],
                "last": values[-1],
                "largest": max(finite, key=abs, default=math.nan),
                "verdict": finding.verdict,
                "why": finding.why,
            }
            if finding.why:
                said.setdefault((finding.verdict, name), []).append((place, finding.why))
        places[place] = {"verdict": worst([row["verdict"] for row in rows.values()]), "probes": rows}
    sentences = [_sentence(said[key]) for key in sorted(said, key=lambda key: -_RANK[key[0]])]
    return {
        "verdict": worst([place["verdict"] for place in places.values()]),
        "sentences": sentences,
        "places": places,
    }


def _sentence(found: list[tuple[str, str]]) -> str:
    (first, why), *others = found
    return f"{first}: {why}" + (f"; so {', '.join(place for place, _ in others)}" if others else "")


def _finite(name: str, value: float) -> bool:
    # Nothing lost at all is a ratio without bound.
    return math.isfinite(value) or (name == "weight_sqnr_db" and value == math.inf)


def _forward(place: str) -> tuple[int, str]:
    order = {"embedding": 0, "output": 2, "run": 3}
    return order.get(place, 1), place


def _above(name: str, watch: float, watch_source: str, turbulent: float, turbulent_source: str) -> Callable:
    def rule(values: list[float], _: int) -> Finding:
        top = max(values)
        if top > turbulent:
            return Finding(TURBULENT, f"{name} reached {top:.3g}, above {turbulent:g} ({turbulent_source})")
        if top > watch:
            return Finding(WATCH, f"{name} reached {top:.3g}, above {watch:g} ({watch_source})")
        return Finding(LAMINAR, "")

    return rule


def _attention_entropy(values: list[float], _: int) -> Finding:
    low = min(values)
    if low < 0.1:
        return Finding(
            WATCH,
            f"attention_entropy fell to {low:.2g} nats: heads look at one token each (collapse, Zhai et al. 2023)",
        )
    return Finding(LAMINAR, "")


def _log_z(values: list[float], vocab_size: int) -> Finding:
    # A uniform guess with logits around zero has log Z = log V; z-loss holds it at 0.
    far, drift = max(map(abs, values)), abs(values[-1] - values[len(values) // 2])
    bound = 2 * math.log(vocab_size)
    if far > bound and drift > math.log(vocab_size):
        return Finding(
            TURBULENT,
            f"log_z_mean is at {values[-1]:.3g} and moved by {drift:.3g} in the second half: output logits diverge "
            "(Wortsman et al. 2023, section 3.1.2); conditioning.z_loss=1e-4 holds it",
        )
    if far > bound:
        return Finding(
            WATCH, f"log_z_mean reached {max(values, key=abs):.3g}, beyond 2 log(vocab_size) = {bound:.3g} (ours)"
        )
    return Finding(LAMINAR, "")


def _growth(values: list[float], _: int) -> Finding:
    top = max(values)
    if top > 65504:
        return Finding(TURBULENT, f"residual_rms reached {top:.3g}, beyond what float16 can hold (ours)")
    if top > 1000:
        return Finding(
            WATCH, f"residual_rms reached {top:.3g}, above 1000: what a block adds is lost in 16 bits (ours)"
        )
    if values[0] > 0 and values[-1] > 30 * values[0]:
        return Finding(
            WATCH,
            f"residual_rms grew {values[-1] / values[0]:.0f}-fold, from {values[0]:.3g} to {values[-1]:.3g} (ours; "
            "such growth, Kim et al. 2025)",
        )
    return Finding(LAMINAR, "")


def _update_ratio(values: list[float], _: int) -> Finding:
    # Of the second half: a warm-up begins small on purpose, and the schedule ends small.
    later = sorted(values[len(values) // 2 :])
    middle = later[len(later) // 2]
    if 1e-4 <= middle <= 1e-2:
        return Finding(LAMINAR, "")
    side = "above 1e-2: steps overwrite what is known" if middle > 1e-2 else "below 1e-4: almost nothing is learnt"
    return Finding(WATCH, f"update_ratio is {middle:.2g}, {side} (rule of thumb 1e-3, Karpathy 2022)")


def _sqnr(values: list[float], _: int) -> Finding:
    low = min(values)
    if low < 20:
        return Finding(WATCH, f"weight_sqnr_db fell to {low:.0f} dB: rounding is a tenth of the weights or more (ours)")
    return Finding(LAMINAR, "")


_RULES: dict[str, Callable[[list[float], int], Finding]] = {
    "attention_logit_max": _above(
        "attention_logit_max",
        100,
        "where QK-clip begins, Kimi Team 2025, section 2.1",
        1e4,
        "beyond which runs diverge, Wortsman et al. 2023, section 3.1.1",
    ),
    "attention_entropy": _attention_entropy,
    "log_z_mean": _log_z,
    "residual_rms": _growth,
    "update_ratio": _update_ratio,
    "weight_sqnr_db": _sqnr,
    "dead_fraction": _above("dead_fraction", 0.5, "ours", 0.95, "ours"),
    "grad_flush_fraction": _above(
        "grad_flush_fraction", 0.05, "ours", 0.5, "as in the runs that loss scaling saves, Micikevicius et al. 2018"
    ),
    "grad_saturate_fraction": _above("grad_saturate_fraction", 1e-4, "ours", 0.01, "ours"),
    "edge_of_stability": _above(
        "edge_of_stability", 1.5, "Adam trains at 1, Cohen et al. 2022", 10, "ours; steps overshoot"
    ),
}
