"""The schema of a whole run: the one place that declares each key, with its type, default, unit and meaning.

A config is frozen and closed: an unknown key is an error. A `0` where a count is expected means "derive it"; the
derived value stands in the resolved config, so that a run directory says what really ran.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from blobjax.config import checks
from blobjax.config.schema.compute import Compute, Mesh
from blobjax.config.schema.conditioning import (
    AGC,
    AdaGC,
    Conditioning,
    Guard,
    LossScaling,
    Parametrisation,
    Rollback,
    Sustained,
    ZClip,
)
from blobjax.config.schema.data import Data, Source
from blobjax.config.schema.model import Model, Rope, RopeScaling
from blobjax.config.schema.reliability import Reliability
from blobjax.config.schema.section import Section
from blobjax.config.schema.training import (
    Checkpoint,
    Evaluation,
    Faults,
    KeepBest,
    Logging,
    Objective,
    Optimizer,
    Training,
)

__all__ = [
    "AGC",
    "AdaGC",
    "Checkpoint",
    "Compute",
    "Conditioning",
    "Config",
    "Data",
    "Evaluation",
    "Faults",
    "Guard",
    "KeepBest",
    "Logging",
    "LossScaling",
    "Mesh",
    "Model",
    "Objective",
    "Optimizer",
    "Parametrisation",
    "Reliability",
    "Rollback",
    "Rope",
    "RopeScaling",
    "Section",
    "Source",
    "Sustained",
    "Training",
    "ZClip",
]


class Config(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run and its directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides initial weights and data order."""
    model: Model = Model()
    compute: Compute = Compute()
    data: Data = Data()
    duration: Training = Training()
    objective: Objective = Objective()
    conditioning: Conditioning = Conditioning()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    reliability: Reliability = Reliability()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()
    faults: Faults = Faults()

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        if found := checks.problems(self):
            raise ValueError("\n".join(found))
        if not self.logging.run_dir:
            self._derive(logging=self.logging.model_copy(update={"run_dir": f"runs/{self.name}"}))
        return self
