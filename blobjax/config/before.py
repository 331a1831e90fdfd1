"""Runs that are older than a setting: what they computed before it existed, which may not be what its default says.

A run's record (`RUN/config.yaml`) names every setting that existed when it was written.
"""

from collections.abc import Callable
from typing import Any

from blobjax.config.schema import Config


def _mx(config: Config) -> bool:
    return any(config.conditioning.precision_of(path).startswith("mx") for path in config.model.products)


def _16_bits(config: Config) -> bool:
    formats = ("bfloat16", "bfloat16_params", "float16")
    return any(config.conditioning.precision_of(path) in formats for path in config.model.products)


# Settings with another default than what was computed before they existed: section, name, the value that reproduces
# such a run, and which runs it matters to.
_BEFORE: tuple[tuple[str, str, Any, Callable[[Config], bool]], ...] = (
    ("conditioning", "scale_rounding", "floor", _mx),
    ("compute", "gradient_reduction", "compute", _16_bits),
)
# What no value brings back: a key that runs from before it lack, which runs it matters to, and what is said of it.
_NEW: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("compute.gradient_reduction", _16_bits, "gradients of embeddings, and of a float32 head, are summed in float32"),
    ("reliability.nonfinite_limit", lambda _: True, "a run whose loss stays not finite halts"),
)


def values_before(config: Config) -> dict[str, Any]:
    """Dotted key to the value that a run had which is older than the key; only what matters to this config."""
    return {f"{section}.{name}": value for section, name, value, matters in _BEFORE if matters(config)}


def as_recorded(record: Config) -> Config:
    """A run's record with what it computed in place of the defaults of settings that it is older than."""
    return _with(record, {key: value for key, value in values_before(record).items() if not _is_set(record, key)})


def as_it_began(config: Config, record: Config) -> tuple[Config, str]:
    """The config that a run is resumed with: its record decides these settings where the config does not set them.

    Args:
      record: the run's, as its file says it.

    Returns:
      The config; and one line that says what was taken from the record, and what is not as it was when the run began.
      It is empty where all is as the config says.
    """
    had = {key: _get(as_recorded(record), key) for key in values_before(config)}
    kept = {key: value for key, value in had.items() if not _is_set(config, key) and value != _get(config, key)}
    new = [words for key, matters, words in _NEW if not _is_set(record, key) and matters(config)]
    values = ", ".join(f"{key}={value} (default now: {_get(config, key)})" for key, value in kept.items())
    parts = [f"it keeps {values}"] if kept else []
    parts += [f"not as before, {' and '.join(new)}"] if new else []
    note = f"a run from before some of today's defaults goes on: {'; '.join(parts)}" if parts else ""
    return _with(config, kept), note


def _is_set(config: Config, key: str) -> bool:
    section, name = key.split(".")
    return name in getattr(config, section).model_fields_set


def _get(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _with(config: Config, values: dict[str, Any]) -> Config:
    for key, value in values.items():
        section, name = key.split(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
    return config
