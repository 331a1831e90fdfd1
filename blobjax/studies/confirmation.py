"""A study's prediction and the run that tests it: an ordinary run beside the cells, never run twice.

It is made by `--confirm`, resumed by the same command, and read again whenever the study concludes.
"""

import math
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from blobjax.laws import text
from blobjax.report.html import paragraph, section, table
from blobjax.report.redaction import redacted
from blobjax.runs import mixture
from blobjax.studies.finding import Finding, Prediction, Verdict
from blobjax.studies.results import Result, read
from blobjax.studies.study import Cell, ResolvedStudy, one_more


@dataclass(frozen=True)
class Tested:
    """A prediction beside what was measured.

    Attributes:
      prediction: of the study.
      result: of the run, which may not have begun.
      measured: its held-out loss, nats per token; NaN where it has not finished.
    """

    prediction: Prediction
    result: Result
    measured: float

    def held(self, law: str) -> bool | None:
        """Whether the measured loss lies within a law's interval of a single run; None where either is not known."""
        low, high = (self.prediction.expected[law][name] for name in ("run_low", "run_high"))
        if math.isnan(self.measured) or low is None or high is None:
            return None
        return bool(low <= self.measured <= high)

    @property
    def holds(self) -> bool | None:
        """Whether the prediction of the first law held."""
        return self.held(next(iter(self.prediction.expected)))


def cell(plan: ResolvedStudy, prediction: Prediction) -> Cell:
    """The run that tests a prediction."""
    return one_more(plan, prediction.name, prediction.settings, plan.directory / "confirm")


def look(plan: ResolvedStudy, finding: Finding) -> Tested | None:
    """The prediction of a finding and how its run stands; None where nothing was predicted."""
    if finding.prediction is None:
        return None
    result = read(cell(plan, finding.prediction))
    finished = result.status == "finished"
    measured = mixture.held_out_loss(result.cell.config, result.held_out) if finished else math.nan
    return Tested(finding.prediction, result, measured)


def weighed(finding: Finding, tested: Tested | None) -> Finding:
    """The finding with what came of its prediction: a sentence, and a claim more for the verdict."""
    if tested is None:
        return finding
    law, expected = next(iter(tested.prediction.expected.items()))
    said = f"{law} predicts {expected['value']:.4f} for {tested.prediction.what}"
    if expected["run_low"] is not None:
        said += f", a single run between {expected['run_low']:.4f} and {expected['run_high']:.4f}"
    if math.isnan(tested.measured):
        why = "has not been run; --confirm runs it" if tested.result.status == "waiting" else tested.result.status
        return replace(finding, words=(*finding.words, f"{said}. The run that tests it: {why}."))
    off = expected["value"] / tested.measured - 1
    inside = {True: "inside of that", False: "outside of that", None: "there is no interval to hold it against"}
    words = f"{said}. Measured: {tested.measured:.4f}, {inside[tested.holds]}; the prediction is off by {off:+.2%}."
    return replace(finding, words=(*finding.words, words), reproduced=_with(finding.reproduced, tested.holds))


def _with(reproduced: Verdict, holds: bool | None) -> Verdict:
    """A verdict and one claim more; without a verdict there remains none."""
    if reproduced is None or holds is None:
        return reproduced
    return reproduced if reproduced == holds else "partly"


def record(tested: Tested) -> dict[str, Any]:
    """What summary.json says of it."""
    prediction = tested.prediction
    return {
        "what": prediction.what,
        "settings": prediction.settings,
        "expected": {law: each | {"held": tested.held(law)} for law, each in prediction.expected.items()},
        "status": tested.result.status,
        "measured": None if math.isnan(tested.measured) else tested.measured,
        "run_dir": f"confirm/{prediction.name}",
    }


def html(tested: Tested | None) -> list[str]:
    """The section of the page; nothing where nothing was predicted."""
    if tested is None:
        return []
    measured = tested.measured
    rows = []
    for law, each in tested.prediction.expected.items():
        spans = [
            f"{text.number(each[low])} to {text.number(each[high])}"
            for low, high in (("low", "high"), ("run_low", "run_high"))
        ]
        known = not math.isnan(measured)
        error = f"{each['value'] / measured - 1:+.2%}" if known else ""
        held = {True: "inside", False: "outside", None: ""}[tested.held(law)]
        seen = f"{measured:.4f}" if known else escape(tested.result.status)
        rows.append([escape(law), f"{each['value']:.4f}", *spans, seen, error, held])
    head = ("law", "predicted loss", "interval of the law", "of a single run", "measured", "error", "")
    settings = ", ".join(redacted(f"{key}={value}") for key, value in tested.prediction.settings.items())
    return [
        section(
            "Predicted, and tested",
            paragraph(f"For {tested.prediction.what}. Measured is the held-out loss of that run."),
            table(head, rows, frozenset({1, 4, 5})),
            f'<p class="small"><code>{escape(settings)}</code></p>',
        )
    ]
