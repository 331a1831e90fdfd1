"""Held-out loss of every domain, in nats per token and in bits per byte, which compares across tokenizers."""

import math
from typing import Any

from blobjax.objectives.objective import Context


def by_domain(context: Context, params: Any) -> dict[str, float]:
    """Metrics under `eval/<domain>/`, from the sums `nats`, `tokens` and `bytes`."""
    metrics: dict[str, float] = {}
    for domain, windows in context.held_out.items():
        found = context.sums(params, windows)
        cross_entropy = found["nats"] / found["tokens"]
        metrics |= {
            f"eval/{domain}/cross_entropy": cross_entropy,
            f"eval/{domain}/perplexity": perplexity(cross_entropy),
            f"eval/{domain}/bits_per_byte": found["nats"] / (found["bytes"] * math.log(2)),
        }
    return metrics


def by_position(context: Context, params: Any) -> dict[str, float]:
    """Loss by place in the context: `eval/<domain>/cross_entropy_at/<first position>`, nats per token.

    The token after position p is predicted from p + 1 tokens of its document. A range in which nothing counts is left
    out.
    """
    metrics: dict[str, float] = {}
    for domain, windows in context.held_out.items():
        for first, last in position_ranges(windows["positions"].shape[1]):
            within = (windows["positions"] >= first) & (windows["positions"] < last)
            found = context.sums(params, {**windows, "mask": windows["mask"] * within})
            if found["tokens"]:
                metrics[f"eval/{domain}/cross_entropy_at/{first}"] = found["nats"] / found["tokens"]
    return metrics


def position_ranges(length: int) -> list[tuple[int, int]]:
    """Ranges of positions up to a sequence's length: 0, 1, 2 to 3, 4 to 7, …; first and last, the last excluded."""
    starts = [0, *(2**power for power in range(length.bit_length()) if 2**power < length)]
    return list(zip(starts, [*starts[1:], length], strict=True))


def perplexity(cross_entropy: float) -> float:
    """exp of it, kept within what a float holds."""
    return math.exp(min(cross_entropy, 700.0))
