"""One function a kind of study: from the results of its cells to a finding."""

from collections.abc import Callable

from blobjax.studies.analyses import (
    batch_size,
    bf16_rounding,
    data_breadth,
    data_quantity,
    final_loss,
    fp16_loss_scaling,
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

ANALYSES: dict[str, Callable[[list[Result]], Finding]] = {
    "final-loss": final_loss.analyse,
    "lr-sensitivity": lr_sensitivity.analyse,
    "fp16-loss-scaling": fp16_loss_scaling.analyse,
    "bf16-rounding": bf16_rounding.analyse,
    "mup-transfer": mup_transfer.analyse,
    "precision-ladder": precision_ladder.analyse,
    "norm-placement": norm_placement.analyse,
    "spike-recovery": spike_recovery.analyse,
    "isoflop": isoflop.analyse,
    "model-ladder": model_ladder.analyse,
    "data-quantity": data_quantity.analyse,
    "data-breadth": data_breadth.analyse,
    "training-length": training_length.analyse,
    "batch-size": batch_size.analyse,
}

PREDICTING = frozenset({"isoflop", "model-ladder"})
"""Those whose finding holds a prediction that `--confirm` can test."""
