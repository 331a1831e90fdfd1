"""CONFIG: one frozen schema for a whole run, read from YAML and dotted overrides. Imports no jax."""

from blobjax.config.durations import BatchSizes, Clockwork, Duration, Durations
from blobjax.config.errors import BadInputError, DivergedError, HaltedError
from blobjax.config.load import dump, load
from blobjax.config.schema import Config

__all__ = [
    "BadInputError",
    "BatchSizes",
    "Clockwork",
    "Config",
    "DivergedError",
    "Duration",
    "Durations",
    "HaltedError",
    "dump",
    "load",
]
