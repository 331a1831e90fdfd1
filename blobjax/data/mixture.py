"""Mixtures: which domain each sequence comes from, in exact proportions, in closed form.

Weights are taken as the decimal numbers they are written as and become integers w_d of sum W. Of any W sequences in
a row from a multiple of W, exactly w_d are of domain d; of the first n, n w_d / W to within the number of domains.
The domain of sequence n is arithmetic on n: nothing is drawn, nothing is kept, so a run can start anywhere.
"""

import math
from fractions import Fraction


class Mixture:
    """Sequences apportioned to domains.

    Args:
      weights: domain to weight; those of weight 0 get no sequence. The order of the keys does not matter.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        exact = {name: Fraction(str(weight)) for name, weight in sorted(weights.items()) if weight > 0}
        scale = math.lcm(*(weight.denominator for weight in exact.values()))
        whole = [int(weight * scale) for weight in exact.values()]
        shared = math.gcd(*whole)
        self.names = tuple(exact)
        self.weights = tuple(weight // shared for weight in whole)
        """Integers in the weights' proportions, without a common factor; their sum is the period W."""

    def counts(self, sequences: int) -> tuple[int, ...]:
        """How many of the first `sequences` sequences each domain of `names` has.

        From the last domain to the first, the domains before d share floor(n C_d / C_{d+1}) of the n sequences that
        are left, C being cumulative weights. Such a floor grows by 0 or 1 when its n grows by 1, so exactly one count
        grows with each sequence; plain rounding of n w_d / W would not have that.
        """
        counts = []
        left, total = sequences, sum(self.weights)
        for weight in reversed(self.weights):
            below = left * (total - weight) // total
            counts.append(left - below)
            left, total = below, total - weight
        return tuple(reversed(counts))

    def locate(self, sequence: int) -> tuple[int, int]:
        """The domain (index into `names`) of a sequence, and which of that domain's sequences it is, from 0."""
        before, after = self.counts(sequence), self.counts(sequence + 1)
        domain = next(d for d, count in enumerate(before) if after[d] != count)
        return domain, before[domain]
