"""One function a kind of study: from the results of its cells to a finding."""

from collections.abc import Callable

from blobjax.studies.analyses import final_loss, lr_sensitivity
from blobjax.studies.finding import Finding
from blobjax.studies.results import Result

ANALYSES: dict[str, Callable[[list[Result]], Finding]] = {
    "final-loss": final_loss.analyse,
    "lr-sensitivity": lr_sensitivity.analyse,
}
