"""blobjax: a sharded transformer trainer whose every ingredient is a knob. Importing it imports no jax."""

__version__ = "0.1.0"
