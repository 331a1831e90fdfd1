"""Durations: how long something lasts or how often it happens, in whatever unit the question is asked in.

A training length is naturally a number of tokens per parameter to one reader, of FLOPs to another and of epochs to a
third; all of them become optimizer steps once the model, the batch and the data are known (`Duration.steps`).
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from blobjax.config.errors import brief

_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_UNITS = {
    **{unit.removesuffix("s"): unit for unit in ("steps", "tokens", "flops", "epochs", *_SECONDS)},
    "tokens/param": "tokens/param",
    "token/param": "tokens/param",
    "%": "%",
    "percent": "%",
    # As people write them. Not `m`, which is a million elsewhere.
    **{"s": "seconds", "sec": "seconds", "min": "minutes", "h": "hours", "hr": "hours", "d": "days"},
}
_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
# A hundred years, in seconds: threads and timers cannot wait for much longer.
_TOO_LONG = 3.2e9
# A suffix is followed by a space: `300minutes` is not 300 million of `inutes`.
_PATTERN = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:([kKmMbBgGtT])(?=\s))?\s*([a-zA-Z%/]+)\s*$")
# `1:30:00`, which Slurm and YAML 1.1 read as a time, each in its way.
_CLOCK = re.compile(r"^\s*([0-9]{1,6}):([0-9]{2})(?::([0-9]{2}))?\s*$")


@dataclass(frozen=True)
class BatchSizes:
    """Sequences in each step of a run.

    Attributes:
      full: those of a step after the batch warm-up.
      smaller: the warm-up's stages, in the order they come: how many steps, and sequences in each of them.
    """

    full: int
    smaller: tuple[tuple[int, int], ...] = ()

    def at(self, step: int) -> int:
        """Sequences in one step; steps count from 1."""
        for many, size in self.smaller:
            if step <= many:
                return size
            step -= many
        return self.full

    def sequences(self, steps: int) -> int:
        """Sequences in the first so many steps together."""
        total = 0
        for many, size in self.smaller:
            total += min(many, steps) * size
            steps -= min(many, steps)
        return total + steps * self.full

    def steps(self, sequences: int) -> int:
        """How many first steps it takes to use up so many sequences."""
        before = 0
        for many, size in self.smaller:
            if sequences <= many * size:
                return before - -sequences // size
            before, sequences = before + many, sequences - many * size
        return before - -sequences // self.full


@dataclass(frozen=True)
class Clockwork:
    """What turns a duration into steps.

    Attributes:
      tokens_per_step: tokens in one global batch, after the batch warm-up.
      flops_per_token: model FLOPs for one training token (forward and backward).
      params: trained parameters, embeddings excluded (the N of Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022,
        with their 20 tokens/param, count embeddings too, which matters for small models with large vocabularies).
      tokens_per_epoch: distinct training tokens of the mixture, one pass over each domain.
      length: the length of the whole run in steps, for percentages; 0 where it is not known yet.
      batches: sequences in each step; one, where nobody asks.
    """

    tokens_per_step: int
    flops_per_token: float
    params: int
    tokens_per_epoch: int
    length: int = 0
    batches: BatchSizes = BatchSizes(1)


@dataclass(frozen=True)
class Duration:
    """An amount and a unit, written as in `20M tokens`.

    Attributes:
      amount: how many; suffixes k, M, B, T are applied already.
      unit: steps, tokens, flops, tokens/param, epochs, %, seconds, minutes, hours or days.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        """Reads `300 steps`, `20M tokens`, `2e15 flops`, `20 tokens/param`, `3 epochs`, `5%`, `10 minutes`.

        Raises:
          ValueError: the text is not an amount followed by a known unit.
        """
        if isinstance(text, cls):
            return text
        # Nobody writes a longer one, and the pattern takes quadratic time on many digits.
        match = _PATTERN.match(text) if isinstance(text, str) and len(text) <= 100 else None
        unit = None
        if match:
            word = match.group(3).lower()
            unit = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
        amount = float(match[1]) * _SUFFIX[(match[2] or "").lower()] if match else math.inf
        if unit is None or math.isinf(amount) or amount * _SECONDS.get(unit, 0) > _TOO_LONG:
            raise ValueError(
                "a duration such as '300 steps', '20M tokens', '2e15 flops', '20 tokens/param', '3 epochs', '5%' or "
                f"'10 minutes', not {brief(text)}{_instead(text)}"
            )
        return cls(amount, unit)

    def __str__(self) -> str:
        number = _compact(self.amount)
        if self.unit == "%":
            return f"{number}%"
        return f"{number} {self.unit.removesuffix('s') if self.amount == 1 else self.unit}"

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds, or None for a duration counted in training progress."""
        scale = _SECONDS.get(self.unit)
        return None if scale is None else self.amount * scale

    def first_steps(self, clockwork: Clockwork) -> int:
        """Steps from the start of the run: more than `steps` where a batch warm-up makes the first ones smaller.

        As many tokens, FLOPs or epochs are seen as in `steps` of full size. Raises as `steps` does.
        """
        steps, batches = self.steps(clockwork), clockwork.batches
        return steps if self.unit in ("steps", "%") else batches.steps(steps * batches.full)

    def steps(self, clockwork: Clockwork) -> int:
        """Optimizer steps of full size, rounded up; at least 1 unless the amount is 0.

        Raises:
          ValueError: the unit is wall-clock time, which is not a number of steps; or a percentage of a length that
            the clockwork does not know.
        """
        if self.unit == "%" and not clockwork.length:
            raise ValueError(f"'{self}' of a length that is not known yet")
        per_step = {
            "steps": 1.0,
            "tokens": clockwork.tokens_per_step,
            "flops": clockwork.tokens_per_step * clockwork.flops_per_token,
            "tokens/param": clockwork.tokens_per_step / max(clockwork.params, 1),
            "epochs": clockwork.tokens_per_step / max(clockwork.tokens_per_epoch, 1),
            "%": 100 / (clockwork.length or 1),
        }.get(self.unit)
        if per_step is None:
            raise ValueError(f"'{self}' is wall-clock time; give steps, tokens, flops, tokens/param, epochs or %")
        # A hair's breadth above a whole number of steps is that number: 20 tokens/param must not become one step more
        # because of a rounding in the division.
        exact = self.amount / per_step
        return max(math.ceil(exact - max(1e-9, exact * 1e-12)), 1 if self.amount else 0)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


@dataclass(frozen=True)
class Durations:
    """One duration or several, of which the first to pass counts; written as one, or as a list."""

    parts: tuple[Duration, ...]

    @classmethod
    def parse(cls, given: Any) -> "Durations":
        """Reads what `Duration.parse` reads, or a list of it. Raises as it does, and for an empty list."""
        if isinstance(given, cls):
            return given
        parts = tuple(Duration.parse(each) for each in (given if isinstance(given, list | tuple) else [given]))
        if not parts:
            raise ValueError("a duration such as '300 steps' or '10 minutes', or a list of such, not an empty list")
        return cls(parts)

    def _plain(self) -> str | list[str]:
        return str(self.parts[0]) if len(self.parts) == 1 else [str(part) for part in self.parts]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls._plain)
        )


def _instead(text: Any) -> str:
    """What to write for a time with colons, as far as it can be known what it means; else empty."""
    match = _CLOCK.match(text) if isinstance(text, str) else None
    if match is None:
        return ""
    first, second, third = (int(part or 0) for part in match.groups())
    if match[3]:
        return f"; write '{_time(first * 3600 + second * 60 + third)}'"
    minutes, seconds = _time(first * 3600 + second * 60), _time(first * 60 + second)
    return f"; write '{minutes}' (hours:minutes) or '{seconds}' (minutes:seconds)"


def _time(seconds: int) -> Duration:
    """So many seconds in the largest unit of which they are a whole number."""
    unit = next(unit for unit in reversed(_SECONDS) if seconds % _SECONDS[unit] == 0 and (seconds or unit == "seconds"))
    return Duration(seconds // _SECONDS[unit], unit)


def _compact(amount: float) -> str:
    """The shortest of `300`, `20M` and `0.1` that is read back as exactly this amount."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        text = f"{amount / scale:.15g}"
        if amount >= scale and float(text) * scale == amount and len(text) < 6:
            return f"{text}{suffix}"
    return str(int(amount)) if amount == int(amount) and amount < 1e15 else repr(amount)
