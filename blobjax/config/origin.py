"""Where a run begins that does not begin from nothing: `trunk@80%`, a checkpoint of another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from blobjax.config.durations import Duration
from blobjax.config.paths import expanded


@dataclass(frozen=True)
class Origin:
    """A run, and a point of the run that begins there; written as `RUN@POINT`.

    Attributes:
      run: the name of a run directory beside the beginning run's own, or a path (with a slash in it).
      point: how far the run goes on from at most: the newest checkpoint that is not after it is taken.
    """

    run: str
    point: Duration

    @classmethod
    def parse(cls, text: Any) -> "Origin":
        """Reads `trunk@80%`, `runs/trunk@400 steps`.

        Raises:
          ValueError: the text is not of that form, or its point is not counted in training progress.
        """
        if isinstance(text, cls):
            return text
        # The last one: a path may have others.
        run, at, point = text.rpartition("@") if isinstance(text, str) else ("", "", "")
        if not at or not run.strip():
            raise ValueError(f"a run and a point, such as 'trunk@80%' or 'runs/trunk@400 steps', not {text!r}")
        duration = Duration.parse(point)
        if duration.seconds is not None or not duration.amount:
            raise ValueError(f"a point after the beginning, in steps, tokens, …, or %, not '{duration}'")
        return cls(run.strip(), duration)

    def __str__(self) -> str:
        return f"{self.run}@{self.point}"

    def directory(self, run_dir: str) -> Path:
        """The run it names, seen from a run in `run_dir`."""
        beside = expanded(run_dir, "logging.run_dir").parent
        return expanded(self.run, "duration.start_from") if "/" in self.run else beside / self.run

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
