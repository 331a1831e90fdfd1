"""Supervised learning: the likelihood of answers given their prompts, in nats per token of an answer.

The stream packs whole examples into rows, and its mask is 0 on prompts and padding (`data/examples.py`,
`data/windows.py`). So every mean is over the tokens of answers, each answer's end included: the loss, bits per byte,
and the held-out figures.
"""

import jax

from blobjax.objectives.next_token import NextToken
from blobjax.objectives.objective import Batch, Parts


class Supervised(NextToken):
    """Cross-entropy and z-loss of the answers."""

    def metrics(self, parts: Parts, batch: Batch, total: jax.Array) -> Parts:
        """Those of `NextToken`, and `answer_fraction`, the share of the batch's positions that are learned."""
        return super().metrics(parts, batch, total) | {"answer_fraction": total / batch["mask"].size}
