"""From a compiled step to time, energy and money. All of it is an estimate, and says on what assumptions."""

from dataclasses import asdict, dataclass, field
from typing import Any

from blobjax.compute.runtime import GPU_MEMORY_FRACTION
from blobjax.config import BadInputError
from blobjax.plan.compile import Step
from blobjax.plan.hardware import Machine
from blobjax.plan.roofline import Efficiencies, Roofline, link_seconds, roofline

_DAY = 86400
# What a program can have of a TPU's memory: the runtime takes some (libtpu's own limit on v5e is 98%), fragments more.
_USABLE = 0.95


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted.

    Attributes:
      efficiencies: parts of the peaks that are reached.
      watts: power of one chip; None: that of the accelerator table.
      host_overhead: power of whole hosts (processors, memory, cards, fans) over that of their chips. 1.5 lies between a
        DGX H100's 10.2 kW over eight GPUs of 700 W (1.8, the most it may draw: datasheet) and lighter TPU hosts.
      pue: power of the building over that of its hosts; 1.1 is a large operator's (Google's fleet: 1.09 in 2024,
        Environmental Report 2025).
      price: of one chip-hour, in any currency; None: no cost.
      grid: gCO2e of one kWh; None: no emissions.
    """

    efficiencies: Efficiencies = field(default_factory=Efficiencies)
    watts: float | None = None
    host_overhead: float = 1.5
    pue: float = 1.1
    price: float | None = None
    grid: float | None = None

    def check(self) -> None:
        """Raises BadInputError for what cannot be."""
        problems = []
        for flag, value, least in (
            ("--watts", self.watts, 0),
            ("--host-overhead", self.host_overhead, 1),
            ("--pue", self.pue, 1),
            ("--price", self.price, 0),
            ("--grid", self.grid, 0),
        ):
            if value is not None and not least <= value < float("inf"):
                problems.append(f"{flag} {value:g} must be a number of at least {least}")
        if problems:
            raise BadInputError(*problems)


Range = tuple[float, float]
"""The best and the worst case, the lower number first."""


@dataclass(frozen=True)
class Plan:
    """A step on a machine, and what follows. Ranges are None where a peak, power or price is not known."""

    machine: Machine
    step: Step
    assumed: Assumptions
    roofline: Roofline | None

    @property
    def fits(self) -> bool | None:
        usable = self.usable
        return None if usable is None else self.step.memory.total <= usable

    @property
    def usable(self) -> float | None:
        """Bytes of a device's memory that a program can have: on a GPU what jax takes of it (compute/runtime.py)."""
        capacity, chip = self.step.memory.capacity, self.machine.chip
        if capacity is None or chip is None:
            return None
        return capacity * (_USABLE if chip.torus_dims else GPU_MEMORY_FRACTION)

    @property
    def step_seconds(self) -> Range | None:
        return None if self.roofline is None else (self.roofline.best, self.roofline.worst)

    @property
    def utilization(self) -> Range | None:
        """Model-FLOPs utilisation, from worst to best."""
        chip = self.machine.chip
        if self.step_seconds is None or chip is None:
            return None
        peak = chip.bf16_flops * self.machine.chips
        return tuple(self.step.model_flops / seconds / peak for seconds in reversed(self.step_seconds))  # type: ignore[return-value]

    @property
    def tokens_per_day(self) -> Range | None:
        """From worst to best."""
        seconds = self.step_seconds
        return None if seconds is None else tuple(self.step.tokens * _DAY / each for each in reversed(seconds))  # type: ignore[return-value]

    @property
    def days(self) -> Range | None:
        speeds = self.tokens_per_day
        return None if speeds is None else tuple(self.step.tokens_in_all / each for each in reversed(speeds))  # type: ignore[return-value]

    @property
    def watts(self) -> float | None:
        """Of one chip."""
        chip = self.machine.chip
        return self.assumed.watts if self.assumed.watts is not None else chip.watts if chip else None

    @property
    def kwh(self) -> Range | None:
        if self.days is None or self.watts is None:
            return None
        kilowatts = self.watts / 1000 * self.machine.chips * self.assumed.host_overhead * self.assumed.pue
        return tuple(kilowatts * 24 * days for days in self.days)  # type: ignore[return-value]

    @property
    def cost(self) -> Range | None:
        price = self.assumed.price
        if self.days is None or price is None:
            return None
        return tuple(price * self.machine.chips * 24 * days for days in self.days)  # type: ignore[return-value]

    @property
    def kg_co2e(self) -> Range | None:
        grid = self.assumed.grid
        return None if self.kwh is None or grid is None else tuple(grid / 1000 * kwh for kwh in self.kwh)  # type: ignore[return-value]

    def as_json(self) -> dict[str, Any]:
        """All of it, in bytes, seconds and FLOPs; the keys that outsiders may rely on."""
        step, chip, memory = self.step, self.machine.chip, self.step.memory
        return {
            "on": self.machine.name,
            "slices": self.machine.slices,
            "chips": self.machine.chips,
            "devices": step.mesh.size,
            "chip": chip.name if chip else None,
            "mesh": {axis: size for axis, size in step.mesh.shape.items()},
            "attention": step.attention,
            "parameters": step.parameters,
            "steps": step.length,
            "tokens_per_step": step.tokens,
            "tokens": step.tokens_in_all,
            "memory_bytes": asdict(memory) | {"total": memory.total, "usable": self.usable},
            "fits": self.fits,
            "collectives": [
                {
                    "kind": each.kind,
                    "axes": list(each.axes),
                    "times": each.times,
                    "payload_bytes": each.payload,
                    "sent_bytes": each.sent,
                    "seconds": link_seconds(each, self.machine, step.mesh) if chip else None,
                }
                for each in step.collectives
            ],
            "gradient_reduction": {"format": step.gradient_reduction, "sent_bytes": step.gradient_sent},
            "model_flops": step.model_flops,
            "hardware_flops": step.hardware_flops,
            "memory_traffic_bytes": step.traffic,
            "roofline_seconds": asdict(self.roofline) if self.roofline else None,
            "bound": self.roofline.bound if self.roofline else None,
            "step_seconds": self.step_seconds,
            "model_flops_utilization": self.utilization,
            "tokens_per_day": self.tokens_per_day,
            "days": self.days,
            "kwh_estimate": self.kwh,
            "cost": self.cost,
            "kg_co2e_estimate": self.kg_co2e,
            "assumed": asdict(self.assumed) | {"watts": self.watts},
            "notes": list(step.notes),
        }


def make_plan(step: Step, machine: Machine, assumed: Assumptions) -> Plan:
    """What a compiled step comes to on the machine it was compiled for."""
    times = roofline(machine, step.mesh, step.hardware_flops, step.traffic, step.collectives, assumed.efficiencies)
    return Plan(machine, step, assumed, times)
