"""What an objective is: the arrays of a batch, a loss over them in parts, where batches come from, how it is evaluated.

Dims: B batch, T time, C tokens of a row in one chunk.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import DTypeLike

from blobjax.config.schema import Config
from blobjax.data import Stream
from blobjax.objectives.logprobs import TokenScores

Batch = dict[str, jax.Array]
"""Arrays of a global batch by name, each [B, T]."""
Parts = dict[str, jax.Array]
"""Float32 scalars by name."""
HeldOut = dict[str, np.ndarray]
"""A domain's held-out rows: arrays [rows, T] by their names in a batch."""


class BatchSource(Protocol):
    """Where the loop's batches come from."""

    def next(self, step: int, state: Any) -> Batch:
        """The global batch of a step, which counts from 1.

        Args:
          state: the TrainState that the step starts from. A stream ignores it.
        """


class StreamSource:
    """Batches from an iterator; the state decides nothing."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches

    def next(self, step: int, state: Any) -> Batch:
        """The next one."""
        return next(self._batches)


class Context(Protocol):
    """The run as an objective sees it."""

    @property
    def config(self) -> Config:
        """The run's config."""

    @property
    def stream(self) -> Stream:
        """Its data."""

    @property
    def held_out(self) -> Mapping[str, HeldOut]:
        """Held-out rows of every domain."""

    def batches(self, steps: Iterable[int]) -> Iterator[Batch]:
        """The stream's global batches of these steps, which follow on each other."""

    def sums(self, params: Any, windows: HeldOut) -> dict[str, float]:
        """`Objective.sums`, added up over rows."""


class Objective(Protocol):
    """A loss over batches. Made from a config by `make_objective`.

    Attributes:
      arrays: name to dtype of each [B, T] array of a batch. The model reads `tokens`, `segments` and `positions`; the
        scores are those of `targets`; `mask` says which of them count.
      entropy: whether `parts` reads the entropy of the scores.
      watched: the metric that people watch beside the loss, and its label.
    """

    @property
    def arrays(self) -> Mapping[str, DTypeLike]: ...

    @property
    def entropy(self) -> bool: ...

    @property
    def watched(self) -> tuple[str, str]: ...

    def parts(self, scores: TokenScores, batch: Batch, total: jax.Array | float) -> Parts:
        """Summands of the loss, each its own metric.

        Each must be a sum over tokens divided by `total`: it is called for a part of the batch and a chunk of its
        tokens at a time, and what it returns is added up.

        Args:
          scores: of the targets, arrays [B, C].
          batch: the batch's arrays, [B, C].
          total: targets that count over the whole global batch.
        """

    def metrics(self, parts: Parts, batch: Batch, total: jax.Array) -> Parts:
        """More metrics of the whole global batch, computed in the step; `parts` are sums over all of it."""

    def derived(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """More metrics of a step, computed on the host from those of the device."""

    def sums(self, parts: Parts, batch: Batch) -> Parts:
        """What an evaluation adds up over batches; `parts` were divided by 1."""

    def source(self, context: Context, steps: Iterable[int]) -> BatchSource:
        """Where the batches of these steps come from, which follow on each other."""

    def evaluate(self, context: Context, params: Any) -> dict[str, float]:
        """Metrics of held-out data, by name."""
