"""A plan as text for a terminal."""

from collections.abc import Callable

from blobjax.plan.estimate import Plan, Range
from blobjax.plan.roofline import link_seconds

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(number: float, unit: str = "") -> str:
    """Three digits and a decimal prefix: 8.93 GB."""
    for scale, prefix in _PREFIXES:
        if abs(number) >= scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def render(plan: Plan) -> str:
    """All that is known of a plan, and what was assumed, a line each."""
    step, machine, memory = plan.step, plan.machine, plan.step.memory
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.shape.items() if size > 1) or "one device"
    slices = f", {machine.slices} slices" if machine.slices > 1 else ""
    chip = machine.chip.name if machine.chip else "CPU"
    lines = [
        f"{machine.name}{slices}: {machine.chips} x {chip}; mesh {mesh}; attention {step.attention}",
        f"parameters   {step.parameters:,}",
        f"run          {step.length:,} steps of {quantity(step.tokens)} tokens, {quantity(step.tokens_in_all)} in all",
        "",
        "memory of one device",
        *(
            f"  {name:<13} {quantity(size, 'B')}"
            for name, size in (
                ("arguments", memory.arguments),
                ("  parameters", memory.parameters),
                ("  optimizer", memory.optimizer),
                ("temporaries", memory.temporaries),
                ("  activations", memory.activations),
                ("outputs", memory.outputs),
                ("total", memory.total),
            )
        ),
    ]
    if memory.capacity is not None:
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        lines.append(f"  {'of':<13} {quantity(memory.capacity, 'B')}: {memory.total / memory.capacity:.0%}, {verdict}")
    lines += ["", *_collectives(plan), "", *_work(plan), *_time(plan), *_notes(plan)]
    return "\n".join(lines)


def _collectives(plan: Plan) -> list[str]:
    found = plan.step.collectives
    if not found:
        return ["collectives  none"]
    lines = ["collectives of one step (sent: by each device)"]
    for each in found:
        if each.sent < 1e-4 * found[0].sent:
            continue
        seconds = f"  {link_seconds(each, plan.machine, plan.step.mesh):.3g} s at full speed" if plan.roofline else ""
        lines.append(
            f"  {each.kind:<19} {' x '.join(each.axes):<14} {each.times:>6g} times  {quantity(each.payload, 'B'):>8}  "
            f"sent {quantity(each.sent, 'B'):>8}{seconds}"
        )
    step = plan.step
    if step.gradient_sent:
        lines.append(
            f"gradients    {quantity(step.gradient_sent, 'B')} of that to sum them, in {step.gradient_reduction}"
        )
    return lines


def _work(plan: Plan) -> list[str]:
    step = plan.step
    return [
        f"FLOPs        {quantity(step.model_flops)} of the model, {quantity(step.hardware_flops)} computed "
        f"({step.hardware_flops / step.model_flops:.2f} times, recomputation and masked attention included)",
        f"traffic      {quantity(step.traffic, 'B')} to and from one device's memory",
    ]


def _time(plan: Plan) -> list[str]:
    times, assumed = plan.roofline, plan.assumed
    if times is None or plan.utilization is None:
        return ["time         not estimated: no peak is known for a CPU"]
    part = assumed.efficiencies
    lines = [
        f"roofline     compute {times.compute:.3g} s, memory {times.memory:.3g} s, links {times.links:.3g} s, at "
        f"{part.compute:.0%}, {part.memory:.0%} and {part.links:.0%} of their peaks (assumed)",
        f"bound        {times.bound}",
        f"step         {_range(plan.step_seconds)} s (all else hidden behind the bound, or nothing)",
        f"MFU          {plan.utilization[0]:.1%} to {plan.utilization[1]:.1%} expected",
        f"speed        {_range(plan.tokens_per_day, quantity)} tokens a day",
        f"run          {_range(plan.days)} days",
    ]
    if plan.kwh is None:
        lines.append("energy       not estimated: the power of this chip is not published; give --watts")
    else:
        lines.append(
            f"energy       {_range(plan.kwh, quantity)} kWh, estimate: {plan.watts:g} W x {plan.machine.chips} chips x "
            f"{assumed.host_overhead:g} for hosts x PUE {assumed.pue:g}"
        )
    if plan.cost is not None:
        lines.append(f"cost         {_range(plan.cost, quantity)} at {assumed.price:g} a chip-hour")
    if plan.kg_co2e is not None:
        lines.append(f"emissions    {_range(plan.kg_co2e, quantity)} kgCO2e, estimate: {assumed.grid:g} g/kWh")
    return lines


def _range(values: Range | None, show: Callable[[float], str] = "{:.3g}".format) -> str:
    assert values is not None
    first, last = (show(value) for value in sorted(values))
    return first if first == last else f"{first} to {last}"


def _notes(plan: Plan) -> list[str]:
    return [f"note         {note}" for note in plan.step.notes]
