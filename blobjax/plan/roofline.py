"""How long a step takes at best: its FLOPs, bytes of memory and bytes over links, each over what the hardware can do.

Source: Williams et al. 2009; for collectives on tori and hosts, Austin et al. 2025, How to Scale Your Model. The step
takes at least the longest of the three (all else hidden behind it) and at most their sum (nothing hidden), if the
assumed efficiencies are right. They are assumptions: no run has been measured on hardware that is not there.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
from jax.sharding import Mesh

from blobjax.plan.collectives import Collective
from blobjax.plan.hardware import Machine

Groups: TypeAlias = Sequence[Sequence[jax.Device]]


@dataclass(frozen=True)
class Efficiencies:
    """What part of its peak a piece of hardware is taken to reach; typical of large matmuls and transfers."""

    compute: float = 0.75
    memory: float = 0.8
    links: float = 0.8


@dataclass(frozen=True)
class Roofline:
    """Seconds of one step.

    Attributes:
      compute, memory, links: what each alone would take.
    """

    compute: float
    memory: float
    links: float

    @property
    def bound(self) -> str:
        """The longest of the three, in words."""
        named = {"compute": self.compute, "memory": self.memory, "links": self.links}
        return max(named, key=lambda name: named[name])

    @property
    def best(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def worst(self) -> float:
        return self.compute + self.memory + self.links


def roofline(
    machine: Machine,
    mesh: Mesh,
    flops: float,
    traffic: float,
    found: Sequence[Collective],
    assumed: Efficiencies,
) -> Roofline | None:
    """The roofline of a step; None on a machine whose peak is not known.

    Args:
      flops: on all devices together.
      traffic: bytes to and from one device's memory.
      found: the step's collectives.
    """
    chip = machine.chip
    if chip is None:
        return None
    return Roofline(
        flops / mesh.size / (chip.bf16_flops / chip.devices * assumed.compute),
        traffic / (chip.hbm_bandwidth / chip.devices * assumed.memory),
        sum(link_seconds(each, machine, mesh) for each in found) / assumed.links,
    )


def link_seconds(collective: Collective, machine: Machine, mesh: Mesh) -> float:
    """Seconds that a step's collectives of one kind and group keep the links busy, at full speed.

    A group that spans several slices or hosts is served in two levels, one behind the other: within, everything;
    between, of each device the part that is its own. The slower of the two counts.
    """
    chip = machine.chip
    assert chip is not None
    groups = [[mesh.devices.flat[position] for position in group] for group in collective.groups]
    devices = max(groups, key=len)
    n, islands = len(devices), len({_island(device, machine) for device in devices})
    within = n // islands
    between = chip.network_bandwidth / chip.devices if chip.network_bandwidth else float("inf")
    if collective.kind == "collective-permute":
        # On a torus to one neighbour only.
        inside = _inside(groups, devices, machine) / (2 if machine.torus else 1)
        return collective.sent / (inside if islands == 1 else between)
    # sent = whole · (n-1)/n, whatever the kind's factor, which `whole` keeps.
    whole = collective.sent * n / (n - 1)
    if collective.kind.endswith("all-to-all"):
        # Nothing that leaves an island is the same for two devices of it, so all of it crosses.
        return max(_exchange(whole, groups, devices, machine), whole * (n - within) / n / between)
    return max(
        whole * (within - 1) / within / _inside(groups, devices, machine),
        whole / within * (islands - 1) / islands / between,
    )


def _island(device, machine: Machine) -> int:
    """What a device is joined to by the fast network: its slice, or its host."""
    return getattr(device, "slice_index", 0) if machine.torus else device.process_index


def _inside(groups: Groups, devices: Sequence, machine: Machine) -> float:
    """Bytes/s that a device of a group sends within its island, all of the group's links taken together."""
    chip = machine.chip
    assert chip is not None
    shares = _torus_shares(groups, devices, machine)
    if not shares:  # a switch, or two cores of one chip
        return chip.link_bandwidth / 2 / chip.devices
    return chip.link_bandwidth / 2 / len(machine.torus) * sum(share.links for share in shares)


def _exchange(whole: float, groups: Groups, devices: Sequence, machine: Machine) -> float:
    """Seconds of the part of an all-to-all that stays within an island, of `whole` bytes on each device.

    Over a switch each byte is sent once. Along a ring of k chips a byte goes k/4 links far on average, in the shorter
    direction; along a row that is not closed k/4 of what a chip holds crosses the middle each way, over half the links.
    Each dim has its own links, so the slowest counts (Austin et al. 2025, section 3).
    """
    chip = machine.chip
    assert chip is not None
    here = [device for device in devices if _island(device, machine) == _island(devices[0], machine)]
    stays = whole / len(devices)  # for each device of the island
    shares = _torus_shares(groups, devices, machine)
    if not shares:
        return stays * (len(here) - 1) / (chip.link_bandwidth / 2 / chip.devices)
    of_chip = stays * len(here) * len(here) / len({tuple(device.coords) for device in here})
    return max(
        of_chip * (share.chips**2 // 4) / share.chips / (chip.link_bandwidth / 2 / len(machine.torus) * share.links)
        for share in shares
    )


@dataclass(frozen=True)
class _Share:
    """What a group has of one dim of a torus.

    Attributes:
      chips: places of it along the dim.
      links: part of the dim's links, both directions together, that is the group's.
    """

    chips: int
    links: float


def _torus_shares(groups: Groups, devices: Sequence, machine: Machine) -> list[_Share]:
    """For each dim of a slice that a group spans, what it has of it; nothing where there is no torus.

    Where the dim is closed a group goes around it, and shares it with the others that do so on the same ring: where a
    mesh axis takes every fourth chip, four groups move their bytes at the same time. Where it is not closed, traffic
    must turn around at the ends, so that one half is left, shared by the groups that lie over the busiest link. A
    group may also leave a closed dim open, if it is alone on its part.
    """
    if not machine.torus:
        return []
    island = _island(devices[0], machine)
    closed = closed_dims(machine.torus)
    shares = []
    for dim in range(len(machine.torus)):
        chips = len({device.coords[dim] for device in devices if _island(device, machine) == island})
        if chips == 1:
            continue
        rows: dict[tuple, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for number, group in enumerate(groups):
            for device in group:
                if _island(device, machine) == island:
                    place = tuple(device.coords)
                    rows[place[:dim] + place[dim + 1 :]][number].add(place[dim])
        worst = 1.0
        for row in rows.values():
            spans = [(min(places), max(places)) for places in row.values() if len(places) > 1]
            if spans:
                over = max(sum(first <= link < last for first, last in spans) for link in range(machine.torus[dim]))
                worst = min(worst, max(closed[dim] / len(spans), 0.5 / over))
        shares.append(_Share(chips, worst))
    return shares


def closed_dims(torus: Sequence[int]) -> list[bool]:
    """Which dims of a slice have links from the last chip back to the first.

    v4, v5p and TPU7x are made of cubes of 4 x 4 x 4, whose faces alone are joined by optical switches: all dims where
    each is a multiple of 4, otherwise none (Google Cloud TPU documentation of v4 and v5p). v5e and v6e: a dim of 16,
    which is the pod's own (Austin et al. 2025, section 2).
    """
    if len(torus) == 3:
        return [all(size % 4 == 0 for size in torus)] * 3
    return [size == 16 for size in torus]
