"""MODEL: the transformer, in plain Flax NNX."""

from blobjax.model.transformer import Transformer, logical_axes

__all__ = ["Transformer", "logical_axes"]
