"""What there is to say of a run in numbers, read from the files it wrote, whatever became of it."""

import json
import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from blobjax.compute.accelerators import find
from blobjax.compute.flops import flops_per_token, param_count
from blobjax.config import BadInputError, Config
from blobjax.runs import mixture, outcome
from blobjax.runs import status as run_status
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.energy import read_accounts, tokens_per_joule
from blobjax.runs.ledger import Attempt, Ledger, as_float, number, read_ledger
from blobjax.runs.outcome import Outcome


@dataclass(frozen=True)
class Facts:
    """A run, and what follows from its files.

    Attributes:
      directory: where it is.
      config: what it is.
      outcome: its metrics and events.
      status: as `blobjax status --json` has it.
      undone: lines of metrics that rollbacks took back.
      energy: source to joules.
    """

    directory: RunDirectory
    config: Config
    outcome: Outcome
    status: dict[str, Any]
    undone: list[dict[str, Any]]
    energy: dict[str, float]

    @cached_property
    def ledger(self) -> Ledger:
        """Where the time went."""
        return read_ledger(self.outcome.events)

    @cached_property
    def start(self) -> dict[str, Any]:
        """The newest attempt's first event; empty of a run that has not begun."""
        return self.ledger.attempts[-1].start if self.ledger.attempts else {}

    @property
    def state(self) -> str:
        """running, finished, diverged, halted, failed, stopped, died, not begun."""
        return "diverged" if self.outcome.status == "diverged" else self.status["state"]

    @property
    def unfinished(self) -> bool:
        """Whether it could go on."""
        return self.state in ("running", "stopped", "died", "not begun")

    @property
    def params(self) -> int:
        """Trained parameters, embeddings in."""
        return param_count(self.config.model, self.config.conditioning, embeddings=True)

    @property
    def non_embedding_params(self) -> int:
        """The same without embeddings."""
        return param_count(self.config.model, self.config.conditioning, embeddings=False)

    @property
    def tokens_per_param(self) -> float:
        """Counted as in a duration of `10 tokens/param`: without embeddings."""
        return self.tokens / self.non_embedding_params

    @cached_property
    def tokens(self) -> float:
        """Trained on, by what the run's state rests on; of a branch, in the run it began from too."""
        return max((number(line.get("tokens")) for line in self.outcome.metrics), default=0.0)

    @cached_property
    def own_tokens(self) -> float:
        """Of these, what this run took: not those that were trained on in the run it began from."""
        before = outcome.sequences_before(self.outcome.events) * self.config.data.seq_len
        return max(self.tokens - before, 0.0)

    @property
    def flops(self) -> float:
        """Model FLOPs of `tokens`, forward and backward; not what was lost and computed again."""
        return self.tokens * self._flops_per_token

    @property
    def own_flops(self) -> float:
        """The same of `own_tokens`."""
        return self.own_tokens * self._flops_per_token

    @property
    def _flops_per_token(self) -> float:
        closed = flops_per_token(self.config.model, self.config.data.seq_len)
        return number(self.start.get("flops_per_token"), closed)

    @cached_property
    def epochs(self) -> dict[str, float]:
        """Domain to how often its training text has been seen."""
        return mixture.epochs(self.outcome.metrics)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Domain that is trained on to its share of the tokens."""
        return mixture.shares(self.config)

    @property
    def effective_domains(self) -> float:
        """The exponential of the mixture's entropy: as many equal domains would be as mixed."""
        return math.exp(-sum(share * math.log(share) for share in self.shares.values()))

    @property
    def unique_tokens(self) -> float:
        """Tokens seen at least once; NaN where that was not written down."""
        return mixture.unique_tokens(self.config, self.tokens, self.epochs)

    @property
    def chip_hours(self) -> float:
        """Of all attempts while they were up, lost steps and all."""
        return sum(_chips(each) * (each.ended - each.began) for each in self.ledger.attempts) / 3600

    @property
    def chips_counted(self) -> str:
        """How virtual devices count, where there were any; else nothing."""
        starts = [each.start for each in self.ledger.attempts if each.start.get("device_kind") == "cpu"]
        more = any(number(start.get("devices")) > number(start.get("processes"), 1.0) for start in starts)
        return " (a CPU is one chip, however many devices it appears as)" if more else ""

    @property
    def tokens_per_joule(self) -> float | None:
        """None where nothing is known, or counters and estimates would have to be added."""
        return tokens_per_joule(self.energy, self.own_tokens)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Tokens and values of a metric, over the run's whole history."""
        return self.tokens_of(self.outcome.metrics, name)

    def tokens_of(self, lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
        """Tokens and values of a metric in some lines."""
        chosen = [line for line in lines if line.get(name) is not None]
        return [self.tokens_at(line) for line in chosen], [as_float(line[name]) for line in chosen]

    def tokens_at(self, line: dict[str, Any]) -> float:
        """Tokens trained on at a line; of an evaluation, which does not say, those of its step."""
        return number(line.get("tokens")) or self._tokens_by_step.get(line["step"]) or self.at_step(line["step"])

    def at_step(self, step: int) -> float:
        """Tokens trained on at a step: of a run without batch warm-up exactly."""
        per_step = self.config.duration.global_batch_size * self.config.data.seq_len
        return self._tokens_by_step.get(step, step * per_step)

    @cached_property
    def _tokens_by_step(self) -> dict[int, float]:
        return {line["step"]: number(line["tokens"]) for line in self.outcome.metrics if "tokens" in line}

    def median(self, name: str) -> float:
        """Of a metric over all lines; NaN where there is none."""
        return statistics.median(self.finite(name) or [math.nan])

    def finite(self, name: str) -> list[float]:
        """The values of a metric that are finite."""
        return [value for value in self.series(name)[1] if math.isfinite(value)]


def _chips(attempt: Attempt) -> float:
    """Chips that an attempt had; a CPU is the chip of its process, however many devices it appears as."""
    kind = str(attempt.start.get("device_kind"))
    chip = find(kind)
    if kind == "cpu":
        return number(attempt.start.get("processes"), 1.0)
    return number(attempt.start.get("devices")) / (chip.devices if chip else 1)


def read(path: str | Path) -> Facts:
    """A run as it stands.

    Raises:
      BadInputError: there is no run, or its config cannot be read.
    """
    directory = RunDirectory(path)
    status = run_status.status(str(path))
    # Where the run lies now, not where it was begun.
    config = directory.resolved_config(f"logging.run_dir={json.dumps(str(directory.path))}")
    try:
        undone = [line for line in read_jsonl(directory.undone_metrics) if isinstance(line.get("step"), int)]
        found = outcome.read(directory)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.filename}: {error.strerror}") from None
    return Facts(directory, config, found, status, undone, read_accounts(directory.energy))
