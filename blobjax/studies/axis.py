"""One dimension of a study's grid."""

from typing import Any

from pydantic import model_validator

from blobjax.config.closest import suggest
from blobjax.config.schema import Section
from blobjax.report.html import short


def label(value: Any) -> str:
    """How a value is called: 0.001, 3e-5, true, 300 steps."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short(value)
    return str(value)


class Axis(Section):
    """One dimension of the grid: named values, each of which sets some keys.

    Written out, `{small: {model.d_model: 64, model.n_heads: 4}, …}`; or, where all values set one key,
    `{key: optimizer.learning_rate, values: [1e-3, 1e-2]}`. The key `size` sets all that follows from a model's size
    (config/ladder.py), under what the command line and other keys set: `{key: size, values: [100k, 5M]}`.
    """

    values: dict[str, dict[str, Any]]
    """Label to what it sets: dotted keys and their values."""
    key: str = ""
    """The one key that all values set; empty where they are written out."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("key"), str):
            key, values = given["key"], given.get("values")
            if given.keys() != {"key", "values"} or not isinstance(values, list) or not values:
                raise ValueError("{key: dotted.key, values: [a list]}")
            labels = [label(value) for value in values]
            if repeated := [each for each in labels if labels.count(each) > 1]:
                raise ValueError(f"other values; {repeated[0]} stands there twice")
            return {"key": key, "values": dict(zip(labels, ({key: value} for value in values), strict=True))}
        written = isinstance(given, dict) and all(isinstance(value, dict) for value in given.values())
        if not written or not given:
            raise ValueError("values such as {small: {model.d_model: 64}}, or {key: dotted.key, values: [a list]}")
        return {"values": {label(name): value for name, value in given.items()}}

    def replaced(self, values: Any) -> "Axis":
        """This axis with other values: a list for its key, or of the labels that stay; or values written out."""
        if isinstance(values, dict):
            return Axis.model_validate(values)
        if not isinstance(values, list) or not values:
            raise ValueError("a list of values")
        if self.key:
            return Axis.model_validate({"key": self.key, "values": values})
        if unknown := [value for value in values if label(value) not in self.values]:
            new = {label(unknown[0]): next(iter(self.values.values()))}
            raise ValueError(
                f"labels of this axis; {label(unknown[0])} is none, {suggest(label(unknown[0]), self.values)}; new "
                f"values are written out, such as {new}"
            )
        return self.model_copy(update={"values": {label(value): self.values[label(value)] for value in values}})
