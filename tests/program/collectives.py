"""Reads compiled HLO: which collectives there are, and over which axes of the mesh each of them speaks."""

import re
from collections import Counter

import jax
import numpy as np

_KIND = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")  # {{0,1},{2,3}}
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")  # [4,2]<=[2,4]T(1,0)
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]+)\] \{([^}]*)\}")  # mesh['a'=4,'b'=2] {'b'}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _first_group(line: str, devices: int) -> list[int] | None:
    """Device numbers of the first group of a collective, or None where there are no groups (collective-permute)."""
    if match := _LISTED.search(line):
        return _numbers(re.findall(r"\{([\d,]+)\}", match.group(1))[0])
    if match := _IOTA.search(line):
        order = np.arange(devices).reshape(_numbers(match.group(2)))
        order = order.transpose(_numbers(match.group(3))) if match.group(3) else order
        return order.reshape(_numbers(match.group(1)))[0].tolist()
    if match := _NAMED.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        over = re.findall(r"'(\w+)'", match.group(2))
        index = tuple(slice(None) if name in over else 0 for name in sizes)
        return np.arange(devices).reshape([int(size) for size in sizes.values()])[index].ravel().tolist()
    return None


def collectives(text: str, mesh: jax.sharding.Mesh) -> Counter[tuple[str, frozenset[str]]]:
    """How many collectives of each kind there are over each set of mesh axes."""
    places = {device.id: np.argwhere(mesh.device_ids == device.id)[0] for device in mesh.devices.flat}
    found: Counter[tuple[str, frozenset[str]]] = Counter()
    for line in text.splitlines():
        kind = _KIND.search(line)
        group = _first_group(line, mesh.size) if kind else None
        if kind and group:
            spread = np.ptp([places[number] for number in group], axis=0)
            axes = frozenset(name for name, width in zip(mesh.axis_names, spread, strict=True) if width)
            found[kind.group(1), axes] += 1
    return found
