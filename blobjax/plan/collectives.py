"""The collectives of a compiled step: which kind, over which mesh axes, how often, and what each device sends.

What a device sends is that of a ring (Chan et al. 2007, section 4), the least any algorithm can do: of S bytes over n
devices, (n-1)/n S for an all-gather, a reduce-scatter and an all-to-all, and twice that for an all-reduce.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from blobjax.plan.hlo import Computation, Instruction, Module, array_bytes

# For each kind: bytes of its operands on one device, and devices in a group -> bytes that a device sends.
_SENT: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda size, n: size * (n - 1),
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "ragged-all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-broadcast": lambda size, n: size,
    "collective-permute": lambda size, n: size,
}


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: such as `all-gather`.
      axes: mesh axes that its groups span.
      times: how many run in one step.
      payload: bytes of the whole tensors on one device in one step: what an all-gather makes, what others are given.
      sent: bytes that one device sends in one step.
      groups: ids of the devices of each group, as positions in the mesh; for link speeds.
    """

    kind: str
    axes: tuple[str, ...]
    times: float
    payload: float
    sent: float
    groups: tuple[tuple[int, ...], ...]


def collectives(module: Module, mesh: Mesh) -> list[Collective]:
    """Those of a module that was compiled for a mesh, the most bytes first; those over one device are left out."""
    # A TPU runs one collective in pieces, behind several matmuls, some of them before the loop that it belongs to: the
    # same channel in several computations, of which the one that runs most often counts.
    once: dict[tuple, tuple[float, Computation, Instruction]] = {}
    for computation in module.computations.values():
        runs = module.runs[computation.name]
        for instruction in computation.instructions if runs else ():
            kind = _kind(instruction)
            if kind in _SENT:
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = (kind, channel[1] if channel else instruction.name)
                if key not in once or once[key][0] < runs:
                    once[key] = runs, computation, instruction
    sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (kind, _), (runs, computation, instruction) in once.items():
        groups = _across_slices(mesh) if instruction.opcode == "send" else _groups(instruction, mesh.size)
        groups = tuple(sorted(tuple(sorted(group)) for group in groups))
        size = max(len(group) for group in groups)
        if size > 1:
            given = float(sum(_operand_bytes(computation, name) for name in instruction.operands))
            of_kind = sums[kind, mesh_axes(groups, mesh), groups]
            of_kind[0] += runs
            of_kind[1] += runs * given * (size if kind == "all-gather" else 1)
            of_kind[2] += runs * _SENT[kind](given, size)
    found = [
        Collective(kind, axes, times, payload, sent, groups)
        for (kind, axes, groups), (times, payload, sent) in sums.items()
    ]
    return sorted(found, key=lambda each: -each.sent)


def sent_for_gradients(found: Sequence[Collective]) -> float:
    """Bytes that one device sends in one step to sum gradients of parameters: what is reduced over the axes that split
    the batch, and with it over those that split its sequences."""
    batch, over = {"replica", "data", "fsdp"}, {"replica", "data", "fsdp", "context"}
    return sum(
        each.sent
        for each in found
        if each.kind in ("all-reduce", "reduce-scatter") and batch & set(each.axes) and over >= set(each.axes)
    )


def _kind(instruction: Instruction) -> str:
    """A TPU's collectives between slices are sends to the host, whose runtime is told what is meant."""
    if instruction.opcode != "send":
        return instruction.opcode.removesuffix("-start")
    meant = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    return meant[1].lower().replace("_", "-") if meant else ""


def _across_slices(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Devices at the same place of each slice."""
    same: dict[tuple, list[int]] = defaultdict(list)
    for position, device in enumerate(mesh.devices.flat):
        same[(*device.coords, device.core_on_chip)].append(position)
    return tuple(tuple(group) for group in same.values())


def _operand_bytes(computation: Computation, name: str) -> int:
    operand = computation.by_name.get(name)
    return 0 if operand is None else array_bytes(operand.shape)


def _groups(instruction: Instruction, devices: int) -> tuple[tuple[int, ...], ...]:
    """Groups of partition ids, which are positions in the mesh; a permutation counts as its cycles."""
    text = instruction.rest
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        pairs = [tuple(int(n) for n in pair.split(",")) for pair in re.findall(r"\{([\d,]+)\}", found[1])]
        return _linked(pairs)
    if found := re.search(r"replica_groups=(mesh\[.*?\](?:, ?device_ids=\(.*?\))?) \{([^}]*)\}", text):
        return _mesh_groups(found[1], found[2])
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        ids = _iota(found[3]).reshape(int(found[1]), int(found[2]))
        return tuple(tuple(int(n) for n in row) for row in ids)
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", found[1]))
    # Nothing said: all devices.
    return (tuple(range(devices)),)


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: 0 to 7 as a 4 x 2 array, transposed, flattened."""
    sizes, _, order = text.partition("T")
    ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _mesh_groups(mesh: str, axes: str) -> tuple[tuple[int, ...], ...]:
    """`mesh['a'=2,'b'=4]` and `'b'`: groups along b. `'b':(2)2` is a part of b: of size 2, with 2 before it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    ids = np.arange(math.prod(sizes.values()))
    if found := re.search(r"device_ids=\((?:\[[\d,]+\]<=)?(\[[\d,]+\](?:T\([\d,]+\))?)\)", mesh):
        ids = _iota(found[1])
    grouped = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    shape: list[int] = []
    within: list[int] = []
    for name, size in sizes.items():
        before, part = grouped.get(name, (size, 1))
        if name in grouped:
            within.append(len(shape) + 1)
        shape += [before, part, size // before // part]
    others = [dim for dim in range(len(shape)) if dim not in within]
    table = ids.reshape(shape).transpose(others + within).reshape(-1, math.prod(shape[dim] for dim in within))
    return tuple(tuple(int(n) for n in row) for row in table)


def _linked(pairs: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Devices that are joined by pairs, directly or not."""
    of: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set().union(*(of.get(device, {device}) for device in pair))
        of.update(dict.fromkeys(joined, joined))
    return tuple(sorted({tuple(sorted(group)) for group in of.values()}))


def mesh_axes(groups: Sequence[tuple[int, ...]], mesh: Mesh) -> tuple[str, ...]:
    """The fewest axes along which each group lies; devices of a group differ in their places on these alone."""
    names = [name for name, size in mesh.shape.items() if size > 1]
    shape = [mesh.shape[name] for name in names]
    differ = [False] * len(names)
    for group in groups:
        places = np.stack(np.unravel_index(np.array(group), shape))
        differ = [before or len(set(row.tolist())) > 1 for before, row in zip(differ, places, strict=True)]
    return tuple(name for name, varies in zip(names, differ, strict=True) if varies)
