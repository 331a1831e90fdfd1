import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from blobjax.compute import mesh as mesh_module
from blobjax.compute.mesh import AXES, make_mesh
from blobjax.config import BadInputError
from blobjax.config.schema import Mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1, 1)),
        ({"data": 8}, (1, 8, 1, 1, 1)),
        ({"fsdp": -1}, (1, 1, 8, 1, 1)),
        ({"data": 2, "fsdp": -1}, (1, 2, 4, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (1, 2, 2, 2, 1)),
        ({"data": 1, "fsdp": 4, "context": 2}, (1, 1, 4, 1, 2)),
        ({"replica": 2, "data": 2, "tensor": 2}, (2, 2, 1, 2, 1)),
        ({"data": -1, "tensor": 8}, (1, 1, 1, 8, 1)),
    ],
)
def test_sizes(sizes, shape):
    mesh = make_mesh(Mesh(**sizes))
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


def test_some_of_the_devices():
    assert make_mesh(Mesh(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (
            {"data": 2, "fsdp": 2},
            "compute.mesh: data 2 x fsdp 2 = 4 devices are asked for, there are 8; change a size, or give one axis -1 "
            "for the devices that are left",
        ),
        (
            {"data": 4, "tensor": 4},
            "compute.mesh: data 4 x tensor 4 = 16 devices are asked for, there are 8; change a size, or give one axis "
            "-1 for the devices that are left, or compute.virtual_cpu_devices=16 to try it on a CPU",
        ),
        (
            {"data": -1, "tensor": 3},
            "compute.mesh: tensor 3 does not divide the number of devices, 8; change a size, or give one axis -1 for "
            "the devices that are left",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_says_the_arithmetic(sizes, line):
    with pytest.raises(BadInputError, match=f"^{re.escape(line)}"):
        make_mesh(Mesh(**sizes))


@dataclass(frozen=True)
class Chip:
    """As much of a device as mesh building looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"

    @property
    def coords(self):
        return (self.id % 4, 0, 0)

    core_on_chip = 0


@pytest.mark.parametrize(
    ("sizes", "slices", "along"),
    [
        ({"replica": 2, "fsdp": 4}, 2, "replica"),
        ({"replica": 2, "data": 2, "fsdp": 2}, 2, "replica"),
        ({"replica": 4, "fsdp": 2}, 2, "replica"),
        ({"data": 2, "fsdp": 4}, 2, "data"),
        ({"data": 1, "fsdp": 8}, 2, "fsdp"),
    ],
)
def test_only_the_first_axis_that_can_crosses_slices(sizes, slices, along):
    chips = [Chip(i, slice_index=i * slices // 8, process_index=i * slices // 8) for i in range(8)]
    mesh = make_mesh(Mesh(**{"data": 1, **sizes}), chips)
    index = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    for position, axis in enumerate(AXES):
        crosses = bool((np.diff(index, axis=position) != 0).any())
        assert crosses == (axis == along), axis


def test_several_axes_share_the_slices_when_none_is_large_enough():
    assert mesh_module._lay_slices((2, 2, 4, 1, 1), 4) == [2, 2, 1, 1, 1]
    assert mesh_module._lay_slices((6, 1, 4, 1, 1), 4) == [2, 1, 2, 1, 1]


def test_slices_of_unequal_size_are_refused():
    chips = [Chip(i, slice_index=int(i > 2)) for i in range(8)]
    with pytest.raises(BadInputError, match=r"different numbers of devices: \{0: 3, 1: 5\}"):
        make_mesh(Mesh(replica=2, data=4), chips)
