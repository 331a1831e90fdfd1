"""Faults put into the data on purpose: what a broken source or a flipped bit might do to a run."""

import numpy as np

from blobjax.config.schema import Faults


def spoil(batch: dict[str, np.ndarray], numbers: list[int], faults: Faults, vocab_size: int, seed: int) -> None:
    """Spoils, in place, the rows of a [B, T] batch that `faults` names.

    Args:
      numbers: which sequence of the stream each row is.
      vocab_size: what noise is drawn from.
      seed: together with a sequence's number decides its noise, so that a restart meets the same.
    """
    for row, number in enumerate(numbers):
        if faults.poison and faults.poison[0] <= number < faults.poison[1]:
            length = batch["tokens"].shape[1]
            noise = np.random.default_rng((seed, number)).integers(vocab_size, size=length + 1, dtype=np.int32)
            # The documents' borders stay: what is spoilt is what stands between them.
            batch["tokens"][row], batch["targets"][row] = noise[:-1], noise[1:]
        if faults.nan and faults.nan[0] <= number < faults.nan[1]:
            # It counts the targets, so the loss and every gradient become NaN, whatever the model is.
            batch["mask"][row] = np.nan
