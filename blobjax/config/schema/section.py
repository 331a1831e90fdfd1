"""What every section of the schema is made of."""

from typing import Annotated, Self

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

    def as_given(self) -> Self:
        """A copy whose derived fields ask to be derived again: the base of configs that differ in what they come from.
        It is to be written down, not to be trained: nothing is derived or checked in it."""
        values = {
            name: getattr(self, name) if name in self.model_fields_set else field.default
            for name, field in type(self).model_fields.items()
        }
        return self.model_construct(
            **{name: value.as_given() if isinstance(value, Section) else value for name, value in values.items()}
        )
