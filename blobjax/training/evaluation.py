"""Held-out loss of every domain, in nats per token and in bits per byte, which compares across tokenizers."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from blobjax.training.batches import local_rows, to_global
from blobjax.training.step import Batch, Metrics


def _batches(
    windows: dict[str, np.ndarray], sharding: jax.sharding.Sharding, shape_BT: tuple[int, int]
) -> Iterator[Batch]:
    """Cuts held-out windows into global batches; the last is filled up with padding, which the mask leaves out."""
    count = len(windows["tokens"])
    rows = local_rows(sharding, shape_BT)
    for first in range(0, count, shape_BT[0]):
        wanted = first + rows
        real = wanted < count
        local = {}
        for name, array in windows.items():
            part = array[np.where(real, wanted, 0)]
            part[~real] = 0
            local[name] = part
        yield to_global(local, rows, sharding, shape_BT)


def evaluate(
    eval_step: Callable[[Any, Batch], Metrics],
    params: Any,
    held_out: dict[str, dict[str, np.ndarray]],
    sharding: jax.sharding.Sharding,
    shape_BT: tuple[int, int],
) -> dict[str, float]:
    """Metrics under `eval/<domain>/`.

    Args:
      held_out: for each domain, its windows as arrays of [windows, T].
      shape_BT: the batch they are evaluated in.
    """
    metrics: dict[str, float] = {}
    for domain, windows in held_out.items():
        sums = {"nats": 0.0, "tokens": 0.0, "bytes": 0.0}
        parts = [eval_step(params, batch) for batch in _batches(windows, sharding, shape_BT)]
        for part in jax.device_get(parts):
            sums = {name: sums[name] + float(part[name]) for name in sums}
        cross_entropy = sums["nats"] / sums["tokens"]
        metrics |= {
            f"eval/{domain}/cross_entropy": cross_entropy,
            f"eval/{domain}/perplexity": math.exp(min(cross_entropy, 700.0)),
            f"eval/{domain}/bits_per_byte": sums["nats"] / (sums["bytes"] * math.log(2)),
        }
    return metrics
