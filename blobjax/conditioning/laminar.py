"""Where the flow of a run is laminar and where not: what its probes and its loss say, held against thresholds.

A finding is one of four:
  laminar    within what trained models show
  watch      out of that: nothing has happened yet, and this is where it would begin
  stagnant   the run learns nothing: no gradients, updates that change no weight, or a loss that context does not lower
  turbulent  steps or numbers so large that training broke or is about to, or numbers that are not finite

Thresholds without a source are ours; they say where to look, not what must be wrong.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from statistics import fmean, median, pstdev
from typing import Any, NamedTuple

LAMINAR, WATCH, STAGNANT, TURBULENT = "laminar", "watch", "stagnant", "turbulent"
_RANK = {LAMINAR: 0, WATCH: 1, STAGNANT: 2, TURBULENT: 3}

# Fewer losses are too few to tell a collapse: an eighth of them would be a few batches.
_FEW = 32

History = Sequence[tuple[int, float]]
"""Steps, and what a probe showed there; in order of time."""


class Known(NamedTuple):
    """What is known of a run besides its probes."""

    vocab_size: int
    unigram: float | None = None
    """Entropy of the training tokens' frequencies, nats: the loss of a model that sees no context."""
    loss_scaled: bool = False
    """Whether loss scaling keeps what `grad_flush_fraction` says would be lost."""


class Judgement(NamedTuple):
    """What is to be said of one probe in one place."""

    verdict: str
    why: str
    """A sentence, with the number and where the threshold comes from; empty where the flow is laminar."""


_FINE = Judgement(LAMINAR, "")


def judge(name: str, history: History, known: Known, place: str = "") -> Judgement:
    """What a probe's history in one place amounts to.

    Args:
      name: the probe, without its place: `residual_rms`; or `cross_entropy`, the loss of the steps that were taken.
      history: at least one point.
      place: `block_00`, `embedding`, `output`, `run`.
    """
    broken = next((step for step, value in history if not _finite(name, value)), None)
    if broken is not None:
        return Judgement(TURBULENT, f"{name} is not finite at step {broken}")
    rule = _RULES.get(name)
    return rule([value for _, value in history], known, place) if rule else _FINE


def worst(verdicts: Sequence[str]) -> str:
    """The gravest of some verdicts; laminar where there is none."""
    return max(verdicts, key=_RANK.__getitem__, default=LAMINAR)


def survey(probes: Mapping[str, Mapping[str, History]], known: Known) -> dict[str, Any]:
    """The whole of a run: for each place and probe its first, last and largest value and a finding.

    Args:
      probes: place (`block_00`, `embedding`, `output`, `run`) to probe to history; the loss is `run`'s `cross_entropy`.

    Returns:
      What flow.json holds: `verdict`, `places` in the order of the forward pass, and `sentences`, gravest first: what
      is found of one probe in several places is one sentence, about the first of them.
    """
    places: dict[str, Any] = {}
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for place in sorted(probes, key=_forward):
        rows: dict[str, dict[str, Any]] = {}
        for name, history in sorted(probes[place].items()):
            finding = judge(name, history, known, place)
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
    def rule(values: list[float], known: Known, place: str) -> Judgement:
        top = max(values)
        if top > turbulent:
            return Judgement(TURBULENT, f"{name} reached {top:.3g}, above {turbulent:g} ({turbulent_source})")
        if top > watch:
            return Judgement(WATCH, f"{name} reached {top:.3g}, above {watch:g} ({watch_source})")
        return _FINE

    return rule


def _later(values: list[float]) -> float:
    """Median of the second half: a warm-up begins small on purpose."""
    return median(values[len(values) // 2 :])


def _attention_entropy(values: list[float], known: Known, place: str) -> Judgement:
    low = min(values)
    if low < 0.25:
        return Judgement(
            TURBULENT if low < 0.1 else WATCH,
            f"attention_entropy fell to {low:.2g} nats: heads look at one token each (collapse, Zhai et al. 2023; "
            "the number is ours)",
        )
    return _FINE


def _log_z(values: list[float], known: Known, place: str) -> Judgement:
    # A uniform guess with logits around zero has log Z = log V; z-loss holds it at 0.
    far, drift = max(map(abs, values)), abs(values[-1] - values[len(values) // 2])
    bound = 2 * math.log(known.vocab_size)
    if far > bound and drift > math.log(known.vocab_size):
        return Judgement(
            TURBULENT,
            f"log_z_mean is at {values[-1]:.3g} and moved by {drift:.3g} in the second half: output logits diverge "
            "(Wortsman et al. 2023, section 3.1.2; the numbers are ours); conditioning.z_loss=1e-4 holds it",
        )
    if far > bound:
        return Judgement(
            WATCH, f"log_z_mean reached {max(values, key=abs):.3g}, beyond 2 log(vocab_size) = {bound:.3g} (ours)"
        )
    return _FINE


def _growth(values: list[float], known: Known, place: str) -> Judgement:
    reached = _REACHED(values, known, place)
    if reached is _FINE and values[0] > 0 and values[-1] > 100 * values[0]:
        return Judgement(
            WATCH,
            f"residual_rms grew {values[-1] / values[0]:.0f}-fold, from {values[0]:.3g} to {values[-1]:.3g} (ours; "
            "such growth, Kim et al. 2025)",
        )
    return reached


def _update_ratio(values: list[float], known: Known, place: str) -> Judgement:
    middle, top = _later(values), max(values)
    if place.startswith("block") and top > 0.05:
        # Not of the embedding: it starts so small that healthy first steps are a tenth of it.
        return Judgement(
            TURBULENT,
            f"update_ratio reached {top:.2g}: a step changed more than a twentieth of the block's weights (ours; rule "
            "of thumb 1e-3, Karpathy 2022); the learning rate is too high",
        )
    if middle > 0.03:
        return Judgement(
            WATCH,
            f"update_ratio is {middle:.2g}, above 3e-2 (ours; rule of thumb 1e-3, Karpathy 2022): steps overwrite",
        )
    # Not of the output, most of whose parameters may be gains around one, which move by as little as the rate.
    if place == "output" or middle >= 1e-4:
        return _FINE
    if middle < 1e-6:
        return Judgement(STAGNANT, f"update_ratio is {middle:.2g}, below 1e-6 (ours): the weights do not move")
    return Judgement(
        WATCH,
        f"update_ratio is {middle:.2g}, below 1e-4 (ours; rule of thumb 1e-3, Karpathy 2022): almost nothing is learnt",
    )


def _update_lost(values: list[float], known: Known, place: str) -> Judgement:
    lost = _later(values)
    if lost <= 0.5:
        return _FINE
    return Judgement(
        STAGNANT if lost > 0.9 else WATCH,
        f"update_lost_fraction is {lost:.2g}, above {0.9 if lost > 0.9 else 0.5} (ours): rounding to the parameters' "
        "format undoes the updates; conditioning.parameter_rounding=stochastic or kahan keeps them",
    )


def _zero_gradients(values: list[float], known: Known, place: str) -> Judgement:
    if _later(values) < 1:
        return _FINE
    return Judgement(STAGNANT, "grad_zero_fraction is 1: every gradient is zero, and nothing here learns")


def _flushed(values: list[float], known: Known, place: str) -> Judgement:
    # With loss scaling the probe says what would be lost without.
    return _FINE if known.loss_scaled else _FLUSHED(values, known, place)


def _sqnr(values: list[float], known: Known, place: str) -> Judgement:
    low = min(values)
    if low < 20:
        return Judgement(
            WATCH, f"weight_sqnr_db fell to {low:.0f} dB: rounding is a tenth of the weights or more (ours)"
        )
    return _FINE


def _cross_entropy(values: list[float], known: Known, place: str) -> Judgement:
    """What the loss itself says. All numbers are ours."""
    if len(values) < 8:
        return _FINE  # too few to tell a trend from a batch
    quarter = len(values) // 4
    start = max(values[:3])
    before, end = values[-2 * quarter : -quarter], values[-quarter:]
    noise = pstdev(end)
    limit = start + max(0.02 * start, 3 * noise)
    if fmean(end) > limit:
        return Judgement(
            TURBULENT, f"cross_entropy ends at {fmean(end):.3g}, above the {start:.3g} where it began (ours)"
        )
    highest = [min(three) for three in zip(values, values[1:], values[2:], strict=False)]
    if max(highest) > limit:
        return Judgement(
            TURBULENT,
            f"cross_entropy rose to {max(values):.3g} on the way, above the {start:.3g} it began at (ours)",
        )
    if len(values) >= _FEW and (collapse := _collapse(values)):
        return Judgement(TURBULENT, collapse)
    uniform = math.log(known.vocab_size)
    blind, what = min((known.unigram or math.inf, "the frequencies of the tokens"), (uniform, "a uniform guess"))
    error = math.hypot(pstdev(before), noise) / math.sqrt(quarter)
    fell = fmean(before) - fmean(end)
    # Flat only where batches differ so little that a slow fall would show.
    if min(fmean(before), fmean(end)) > 0.99 * blind and fell + 2 * error < 0.02 * fmean(before):
        return Judgement(
            STAGNANT,
            f"cross_entropy stays at {fmean(end):.3g}, no better than the {blind:.3g} of {what} (ours): nothing is "
            "learnt from context",
        )
    return _FINE


def _collapse(values: list[float]) -> str:
    """Where an eighth of the losses lies above an eighth before it: at the end, or on the way. Empty where none does.

    It lies above if it does by a tenth, or by three standard deviations of single losses where these are more.
    """
    eighth, half = len(values) // 8, values[len(values) // 2 :]
    # From neighbours: a trend adds nothing, and one jump among many losses little.
    noise = math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(half)) / 2)
    means = _means(values, eighth)
    lowest = list(accumulate(means, min))
    margin = lambda low: max(0.1 * low, 3 * noise)  # noqa: E731
    if means[-1] > lowest[-1] + margin(lowest[-1]):
        return f"cross_entropy ends at {means[-1]:.3g} and had been at {lowest[-1]:.3g} (ours)"
    # Of three neighbours the smallest: one or two bad batches are no collapse.
    later = _means([min(three) for three in zip(values, values[1:], values[2:], strict=False)], eighth)
    for high, low in zip(later[eighth:], lowest, strict=False):
        if high > low + margin(low):
            return f"cross_entropy rose to {high:.3g} on the way and had been at {low:.3g} (ours)"
    return ""


def _means(values: list[float], n: int) -> list[float]:
    """Means of every n neighbours."""
    sums = [0.0, *accumulate(values)]
    return [(b - a) / n for a, b in zip(sums, sums[n:], strict=False)]


_FLUSHED = _above(
    "grad_flush_fraction",
    0.05,
    "ours",
    0.5,
    "ours; gradients that loss scaling saves, Micikevicius et al. 2018, section 3.2",
)

_REACHED = _above(
    "residual_rms",
    1000,
    "ours; what a block adds is lost in 16 bits",
    65504,
    "ours; beyond what float16 can hold",
)

_RULES: dict[str, Callable[[list[float], Known, str], Judgement]] = {
    "attention_logit_max": _above(
        "attention_logit_max",
        100,
        "where QK-clip begins, Kimi Team 2025, section 2.1",
        1e4,
        "ours; growth in runs that diverge, Wortsman et al. 2023, section 3.1.1",
    ),
    "attention_entropy": _attention_entropy,
    "log_z_mean": _log_z,
    "residual_rms": _growth,
    "update_ratio": _update_ratio,
    "update_lost_fraction": _update_lost,
    "weight_sqnr_db": _sqnr,
    # In good runs with squared ReLU half of the units are dead to a small batch.
    "dead_fraction": _above("dead_fraction", 0.9, "ours", 0.99, "ours"),
    "grad_zero_fraction": _zero_gradients,
    "grad_flush_fraction": _flushed,
    "grad_saturate_fraction": _above("grad_saturate_fraction", 1e-4, "ours", 0.01, "ours"),
    "edge_of_stability": _above(
        "edge_of_stability", 1.5, "ours; Adam trains at 1, Cohen et al. 2022", 10, "ours; steps overshoot"
    ),
    "cross_entropy": _cross_entropy,
}
