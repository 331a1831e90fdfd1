"""One function a kind of study: from the results of its cells to a finding."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from blobjax.config.closest import suggest
from blobjax.studies.analyses import (
    batch_size,
    bf16_rounding,
    data_breadth,
    data_quantity,
    final_loss,
    fp16_loss_scaling,
    in_context,
    isoflop,
    lr_sensitivity,
    model_ladder,
    mup_transfer,
    norm_placement,
    precision_ladder,
    spike_recovery,
    training_length,
)
from blobjax.studies.finding import Finding
from blobjax.studies.results import Result


@dataclass(frozen=True)
class Analysis:
    """What makes a finding of a study's cells.

    Attributes:
      analyse: the function.
      needs: axis that the grid must have to the labels that must be on it.
      of_ends: it compares what finished, and what came to another end is missing from it.
      predicts: its finding holds a prediction that `--confirm` can test.
    """

    analyse: Callable[[list[Result]], Finding]
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    of_ends: bool = False
    predicts: bool = False


ANALYSES = {
    "final-loss": Analysis(final_loss.analyse),
    "lr-sensitivity": Analysis(lr_sensitivity.analyse, {"conditioning": (), "learning_rate": ()}),
    "fp16-loss-scaling": Analysis(fp16_loss_scaling.analyse, {"precision": ("float32",)}),
    "bf16-rounding": Analysis(bf16_rounding.analyse, {"parameters": ("float32",), "learning_rate": ()}),
    "mup-transfer": Analysis(mup_transfer.analyse, {"parametrisation": (), "width": (), "learning_rate": ()}),
    "precision-ladder": Analysis(precision_ladder.analyse, {"precision": ("float32",)}),
    "norm-placement": Analysis(norm_placement.analyse, {"placement": (), "depth": (), "warmup": ()}),
    "spike-recovery": Analysis(spike_recovery.analyse, {"fault": ("none",), "guard": ("none",)}),
    "in-context": Analysis(in_context.analyse, {"layers": ()}, of_ends=True),
    "isoflop": Analysis(isoflop.analyse, of_ends=True, predicts=True),
    "model-ladder": Analysis(model_ladder.analyse, of_ends=True, predicts=True),
    "data-quantity": Analysis(data_quantity.analyse, {"size": (), "unique": ()}, of_ends=True),
    "data-breadth": Analysis(data_breadth.analyse, {"training": ()}, of_ends=True),
    "training-length": Analysis(training_length.analyse, of_ends=True),
    "batch-size": Analysis(batch_size.analyse),
}
"""By the name that a study's file gives."""


def found(name: str, results: list[Result]) -> Finding:
    """What an analysis finds, and what is missing from it."""
    analysis = ANALYSES[name]
    finding = analysis.analyse(results)
    if not analysis.of_ends or all(each.status == "finished" for each in results):
        return finding
    # Nobody knows whether what was found would have held with them.
    finding = replace(finding, reproduced=finding.reproduced and "partly")
    # Those that failed are told of whatever the analysis.
    lost = [f"{each.cell.name} ({each.status})" for each in results if each.status not in ("finished", "failed")]
    words = f"Without an end to be compared, and so missing from all of this: {', '.join(lost)}."
    return replace(finding, words=(*finding.words, words)) if lost else finding


def lacking(name: str, grid: Mapping[str, Collection[str]]) -> list[str]:
    """A line for each axis or label that an analysis needs and a grid (axis to labels) lacks."""
    problems = []
    for axis, labels in ANALYSES[name].needs.items():
        if axis not in grid:
            problems.append(f"analysis {name} needs an axis '{axis}' in the grid; {suggest(axis, grid)}")
            continue
        problems += [
            f"analysis {name} holds everything against {axis} '{label}', and the grid leaves it out; "
            f"give it in grid.{axis}"
            for label in labels
            if label not in grid[axis]
        ]
    return problems
