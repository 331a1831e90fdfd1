"""Held-out loss of every domain, in nats per token and in bits per byte, which compares across tokenizers."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from blobjax.program.batches import local_rows, to_global
from blobjax.program.step import Batch, Metrics


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


Windows = dict[str, np.ndarray]
"""A domain's held-out windows: arrays of [windows, T], by their names in a batch."""
Sums = Callable[[Windows], dict[str, float]]
"""From windows to the sums over all of them that count: `nats`, `tokens` and `bytes`."""


def summing(
    eval_step: Callable[[Any, Batch], Metrics],
    params: Any,
    sharding: jax.sharding.Sharding,
    shape_BT: tuple[int, int],
) -> Sums:
    """What adds up windows with these parameters, in global batches of this shape and sharding."""

    def sums(windows: Windows) -> dict[str, float]:
        parts = jax.device_get([eval_step(params, batch) for batch in _batches(windows, sharding, shape_BT)])
        return {name: sum(float(part[name]) for part in parts) for name in ("nats", "tokens", "bytes")}

    return sums


def evaluate(sums: Sums, held_out: dict[str, Windows]) -> dict[str, float]:
    """Metrics under `eval/<domain>/`, by domain."""
    metrics: dict[str, float] = {}
    for domain, windows in held_out.items():
        found = sums(windows)
        cross_entropy = found["nats"] / found["tokens"]
        metrics |= {
            f"eval/{domain}/cross_entropy": cross_entropy,
            f"eval/{domain}/perplexity": math.exp(min(cross_entropy, 700.0)),
            f"eval/{domain}/bits_per_byte": found["nats"] / (found["bytes"] * math.log(2)),
        }
    return metrics


def by_position(sums: Sums, held_out: dict[str, Windows]) -> dict[str, float]:
    """Loss by place in the context: `eval/<domain>/cross_entropy_at/<first position>`, nats per token.

    What stands at position p is predicted from p + 1 tokens of its document. A range in which nothing counts is left
    out.
    """
    metrics: dict[str, float] = {}
    for domain, windows in held_out.items():
        for first, last in position_ranges(windows["positions"].shape[1]):
            within = (windows["positions"] >= first) & (windows["positions"] < last)
            found = sums({**windows, "mask": windows["mask"] * within})
            if found["tokens"]:
                metrics[f"eval/{domain}/cross_entropy_at/{first}"] = found["nats"] / found["tokens"]
    return metrics


def position_ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions up to a sequence's length: 0, 1, 2 to 3, 4 to 7, …; first and last, the last excluded."""
    starts = [0, *(2**power for power in range(length.bit_length()) if 2**power < length)]
    return list(zip(starts, [*starts[1:], length], strict=True))
