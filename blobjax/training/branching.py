"""A run that begins where another one is: `duration.start_from`.

Parameters, optimizer state, step and place in the data are read from a checkpoint of the other run, the trunk, which is
neither written to nor moved. From there on it is a run like any other: it counts steps from the start of the trunk, so
it enters a schedule of its own length in the middle. Where that schedule, and all else, was the trunk's up to there, it
is bitwise a run of that length from the start: one trunk at a constant learning rate and a decayed branch for each
length are runs of all lengths for little more than the price of the longest (Hägele et al. 2024).

What is decided at the first beginning is written down as a `branch` event and in each of the run's checkpoints, and
holds for every attempt after it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobjax.checkpointing import files
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.checkpointing.files import BadCheckpointError, Record
from blobjax.config import BadInputError, Clockwork, Config
from blobjax.config.diff import changed_maths
from blobjax.program.state import TrainState
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.passages import Passage, passages_of
from blobjax.training.inputs import windows


@dataclass(frozen=True)
class Trunk:
    """The checkpoint a run begins from.

    Attributes:
      directory: of the run it is of.
      step: optimizer steps taken by then.
    """

    directory: RunDirectory
    step: int

    def restore(self, like: TrainState, data: str | None) -> tuple[TrainState, int]:
        """The state there, on the mesh and shardings of `like`, and the data stream's position in sequences.

        It is checked against its fingerprints; a collective.

        Args:
          data: fingerprint of the data training goes on with; None: any.

        Raises:
          BadInputError: it does not fit, is of other data, or is not what was saved.
          HaltedError: it cannot be read at the moment.
        """
        try:
            return Checkpointer(self.directory.checkpoints).restore(self.step, like, data)
        except BadCheckpointError as bad:
            raise BadInputError(
                f"duration.start_from: checkpoint {self._folder} is bad ({bad}); move it away to begin from the one "
                "before it"
            ) from None

    @property
    def _folder(self) -> Path:
        return self.directory.checkpoints / str(self.step)

    def passages(self) -> list[Passage]:
        """The windows of data that rollbacks of the trunk had passed over by then, which are passed over here too.

        Raises:
          BadInputError: the checkpoint has no fingerprints, or what the trunk says of itself makes no sense.
        """
        record = self._record()
        if record.sequences is None:
            raise BadInputError(f"duration.start_from: checkpoint {self._folder} has no fingerprints to check it by")
        recorded = record.inputs
        passages = recorded["passed_over"] if recorded is not None else passages_of(self.directory)
        here = windows(passages).number(record.sequences)
        return [each for each in passages if each["first"] < here]

    def exists(self) -> bool:
        """Whether it is still there."""
        return self._folder.is_dir()

    def contents(self) -> str:
        """16 hexadecimal digits that tell what the checkpoint says it holds from what any other does.

        Raises:
          BadInputError: it does not say.
        """
        return self._record().contents()

    def _record(self) -> Record:
        try:
            return files.read_record(self._folder)
        except (BadCheckpointError, OSError) as error:
            raise BadInputError(f"duration.start_from: checkpoint {self._folder}: {error}") from None

    def differences(self, config: Config) -> list[str]:
        """What of the maths this config has other than the trunk's, a line each."""
        theirs = self.directory.previous_config()
        return changed_maths(theirs, config) if theirs is not None else []


def find(config: Config, clockwork: Clockwork, begun: bool, recorded: Any = None) -> Trunk | None:
    """The checkpoint a run begins from; None for a run that begins from nothing.

    Args:
      begun: the run has a checkpoint of its own, and will hardly need the trunk's again: it may be gone.
      recorded: what that checkpoint says of the trunk, whatever has become of the `branch` event.

    Raises:
      BadInputError: there is none such.
    """
    origin = config.duration.start_from
    if origin is None:
        return None
    ours, directory = RunDirectory(config.logging.run_dir), RunDirectory(origin.directory(config.logging.run_dir))
    decided = [recorded["step"]] if recorded else []
    decided += [event["step"] for event in read_jsonl(ours.events) if event.get("event") == "branch"]
    if begun:
        return Trunk(directory, decided[0]) if decided else None
    key = f"duration.start_from '{origin}'"
    if directory.path.resolve() == ours.path.resolve():
        raise BadInputError(f"{key} is this run itself; name another")
    if not directory.config.is_file():
        raise BadInputError(f"{key}: {directory.path} is not the directory of a run; it has no config.yaml")
    point = origin.point.first_steps(clockwork)
    if point >= clockwork.length:
        raise BadInputError(f"{key} is step {point}, and the run is only {clockwork.length} steps long")
    steps = files.committed(directory.checkpoints)
    known = ", ".join(map(str, steps)) or "none"
    if decided and decided[0] not in steps:
        raise BadInputError(f"{key}: it began from step {decided[0]}, whose checkpoint is gone; there are: {known}")
    if decided:
        return Trunk(directory, decided[0])
    usable = [step for step in steps if step <= point]
    if not usable:
        raise BadInputError(f"{key}: {directory.path} has no checkpoint up to step {point}; there are: {known}")
    return Trunk(directory, usable[-1])
