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

_UNITS = {
    "step": "steps",
    "token": "tokens",
    "flop": "flops",
    "tokens/param": "tokens/param",
    "token/param": "tokens/param",
    "epoch": "epochs",
    "%": "%",
    "percent": "%",
    "second": "seconds",
    "minute": "minutes",
    "hour": "hours",
    "day": "days",
}
_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_PATTERN = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?:([kKmMbBgGtT])(?=\s))?\s*([a-zA-Z%/]+)\s*$")


@dataclass(frozen=True)
class Clockwork:
    """What turns a duration into steps.

    Attributes:
      tokens_per_step: tokens in one global batch.
      flops_per_token: model FLOPs for one training token (forward and backward).
      params: trained parameters, embeddings excluded (Hoffmann et al. 2022 count them so for `tokens/param`).
      tokens_per_epoch: distinct training tokens of the mixture, one pass over each domain.
      length: the length of the whole run in steps, for percentages; 0 where it is not known yet.
    """

    tokens_per_step: int
    flops_per_token: float
    params: int
    tokens_per_epoch: int
    length: int = 0


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
        match = _PATTERN.match(text) if isinstance(text, str) else None
        unit = None
        if match:
            word = match.group(3).lower()
            unit = _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or _UNITS.get(word.replace("tokens", "token"))
        if not match or unit is None:
            raise ValueError(
                "a duration such as '300 steps', '20M tokens', '2e15 flops', '20 tokens/param', '3 epochs', '5%' or "
                f"'10 minutes', not {text!r}"
            )
        return cls(float(match.group(1)) * _SUFFIX[(match.group(2) or "").lower()], unit)

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) and self.amount < 1e6 else self.amount
        return f"{amount:g}%" if self.unit == "%" else f"{amount} {self.unit}"

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds, or None for a duration counted in training progress."""
        scale = _SECONDS.get(self.unit)
        return None if scale is None else self.amount * scale

    def steps(self, clockwork: Clockwork) -> int:
        """Optimizer steps, rounded up; at least 1 unless the amount is 0.

        Raises:
          ValueError: the unit is wall-clock time, which is not a number of steps.
        """
        per_step = {
            "steps": 1.0,
            "tokens": clockwork.tokens_per_step,
            "flops": clockwork.tokens_per_step * clockwork.flops_per_token,
            "tokens/param": clockwork.tokens_per_step / max(clockwork.params, 1),
            "epochs": clockwork.tokens_per_step / max(clockwork.tokens_per_epoch, 1),
            "%": 100 / max(clockwork.length, 1),
        }.get(self.unit)
        if per_step is None:
            raise ValueError(f"'{self}' is wall-clock time; give steps, tokens, flops, tokens/param, epochs or %")
        # A hair's breadth below a whole number of steps is that number: 20 tokens/param must not become one step more
        # because of a rounding in the division.
        return math.ceil(self.amount / per_step - 1e-9)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
