"""What time and energy come to in money and emissions: assumptions that whoever asks for a report gives."""

from dataclasses import dataclass

from blobjax.config import BadInputError

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """What a report takes for granted; as in `blobjax plan`.

    Attributes:
      price: of one chip-hour, in any currency; None: no cost.
      grid: gCO2e of one kWh; None: no emissions.
      host_overhead: power of whole hosts over that of what was metered.
      pue: power of the building over that of its hosts.
    """

    price: float | None = None
    grid: float | None = None
    host_overhead: float = 1.5
    pue: float = 1.1

    def __post_init__(self) -> None:
        problems = []
        for flag, value, least in (
            ("--price", self.price, 0),
            ("--grid", self.grid, 0),
            ("--host-overhead", self.host_overhead, 1),
            ("--pue", self.pue, 1),
        ):
            if value is not None and not least <= value < float("inf"):
                problems.append(f"{flag} {value:g} must be a number of at least {least}")
        if problems:
            raise BadInputError(*problems)

    def wall_kwh(self, joules: float) -> float:
        """What the building drew for energy that was metered at the chips; an estimate."""
        return joules / JOULES_PER_KWH * self.host_overhead * self.pue
