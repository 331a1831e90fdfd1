"""How long a step takes at best: its FLOPs, bytes of memory and bytes over links, each over what the hardware can do.

Source: Williams et al. 2009; for collectives on tori and hosts, Austin et al. 2025, How to Scale Your Model. The step
takes at least the longest of the three (all else hidden behind it) and at most their sum (nothing hidden), if the
assumed efficiencies are right. They are assumptions: no run has been measured on hardware that is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from blobjax.scaling.plan.collectives import Collective
from blobjax.scaling.plan.hardware import Machine


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
    devices = [mesh.devices.flat[position] for position in max(collective.groups, key=len)]
    islands = {_island(device, machine) for device in devices}
    within = len(devices) // len(islands)
    # sent = whole · (n-1)/n, whatever the kind's factor, which `whole` keeps.
    n = len(devices)
    whole = collective.sent if collective.kind == "collective-permute" else collective.sent * n / (n - 1)
    inside = chip.link_bandwidth / 2 / chip.devices
    if machine.torus:
        inside *= _torus_share([d for d in devices if _island(d, machine) == _island(devices[0], machine)], machine)
        if collective.kind == "collective-permute":
            inside /= 2  # to one neighbour only
    if len(islands) == 1:
        return collective.sent / inside
    between = chip.network_bandwidth / chip.devices if chip.network_bandwidth else float("inf")
    if collective.kind == "collective-permute":
        return whole / between
    return max(
        whole * (within - 1) / within / inside,
        whole / within * (len(islands) - 1) / len(islands) / between,
    )


def _island(device, machine: Machine) -> int:
    """What a device is joined to by the fast network: its slice, or its host."""
    return getattr(device, "slice_index", 0) if machine.torus else device.process_index


def _torus_share(devices: Sequence, machine: Machine) -> float:
    """Part of a chip's ICI that a group of one slice can use: links along the dims it spans, and of those in which the
    torus is not closed one half, since traffic must turn around at the ends.

    v4, v5p and TPU7x close a dim that is a multiple of 4, v5e and v6e one of 16 (Google Cloud TPU documentation).
    """
    coordinates = np.array([device.coords for device in devices])
    spanned = [dim for dim in range(len(machine.torus)) if len(set(coordinates[:, dim])) > 1]
    if not spanned:  # two cores of one chip
        return 1.0
    closed_at = 4 if len(machine.torus) == 3 else 16
    closed = [
        machine.torus[dim] % closed_at == 0 and len(set(coordinates[:, dim])) == machine.torus[dim] for dim in spanned
    ]
    return sum(1.0 if each else 0.5 for each in closed) / len(machine.torus)
