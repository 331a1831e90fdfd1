"""One function a kind of study: from the results of its cells to a finding."""

from collections.abc import Callable

from blobjax.studies.analyses import (
    bf16_rounding,
    final_loss,
    fp16_loss_scaling,
    in_context,
    lr_sensitivity,
    mup_transfer,
    norm_placement,
    precision_ladder,
    spike_recovery,
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
    "in-context": in_context.analyse,
}
