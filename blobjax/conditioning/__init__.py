"""CONDITIONING: what keeps the numbers in range, so that compute flows instead of exploding, collapsing or drifting."""

from blobjax.conditioning.soft_cap import soft_cap

__all__ = ["soft_cap"]
