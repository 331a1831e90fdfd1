"""What every section of the schema is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# Sizes and counts end up as 32-bit integers on devices; more is a slip of the finger.
_LARGEST = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
AtLeastTwo = Annotated[int, Field(ge=2, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
AxisSize = Annotated[int, Field(ge=-1, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Nonnegative = Annotated[float, Field(ge=0)]
# YAML has lists, the frozen config tuples: the only conversion allowed.
FromList = Field(strict=False)
Names = Annotated[tuple[str, ...], FromList]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # `n_layers: true` is not 1, and '12' is text
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    def _derive(self, **values: object) -> None:
        """Fills derived fields while the section is still being validated; frozen to everybody else."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def derived(self) -> dict[str, Any]:
        """The fields that were not given but derived, in the form of `model_dump(exclude=…)`: what a base of configs of
        other sizes must not say."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                if below := value.derived():
                    found[name] = below
            elif name not in self.model_fields_set and value != field.default:
                found[name] = True
        return found
