"""Times from numbers small enough to reckon by hand."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from blobjax.compute.accelerators import find
from blobjax.compute.runtime import GPU_MEMORY_FRACTION
from blobjax.config import BadInputError
from blobjax.plan.collectives import Collective
from blobjax.plan.compile import Memory, Step
from blobjax.plan.estimate import Assumptions, make_plan
from blobjax.plan.hardware import Machine
from blobjax.plan.render import quantity, render
from blobjax.plan.roofline import Efficiencies, link_seconds, roofline

FULL = Efficiencies(1.0, 1.0, 1.0)
GB = 1e9


def fake_mesh(devices, **axes):
    """Only what is asked of a mesh, so that it can be of devices that jax does not know."""
    flat = np.empty(len(devices), object)
    flat[:] = devices
    return SimpleNamespace(devices=flat.reshape(list(axes.values())), shape=axes, size=len(devices))


@dataclass(frozen=True)
class Chip:
    """What is asked of a TPU's device."""

    coords: tuple[int, ...]
    slice_index: int
    device_kind: str
    core_on_chip: int = 0
    platform: str = "tpu"


def torus(kind: str, *sizes: int, slices: int = 1) -> Machine:
    places = [
        Chip((*place, 0, 0)[:3], number, find(kind).kinds[0])
        for number in range(slices)
        for place in np.ndindex(*sizes)
    ]
    return Machine("tpu", places, find(kind), sizes, slices)


def hosts(kind: str, count: int, each: int) -> Machine:
    return Machine(
        "gpu", [SimpleNamespace(process_index=i // each, platform="gpu") for i in range(count * each)], find(kind)
    )


def along_all(machine: Machine, kind: str, sent: float, *groups: Sequence[int]) -> float:
    mesh: Mesh = fake_mesh(machine.devices, all=len(machine.devices))
    ids = tuple(tuple(group) for group in groups) or (tuple(range(len(machine.devices))),)
    return link_seconds(Collective(kind, ("all",), 1, 0, sent, ids), machine, mesh)


def test_a_v5e_pod_is_a_closed_torus():
    """400 GB/s a chip, both directions together: 200 GB/s out over four links, half of them along one dim."""
    pod = torus("TPU v5 lite", 16, 16)
    assert along_all(pod, "all-gather", 200 * GB) == pytest.approx(1)
    row = list(range(16))
    assert along_all(pod, "all-gather", 200 * GB, row) == pytest.approx(2)
    # 16 x 16: an exchange is as slow as along one dim, both at the same time. 16/4 links far, 100 GB/s along one.
    assert along_all(pod, "all-to-all", 255 / 256 * 100 * GB) == pytest.approx(16 / 4)


def test_a_part_of_a_torus_is_not_closed():
    assert along_all(torus("TPU v5 lite", 4, 4), "all-gather", 200 * GB) == pytest.approx(2)
    # 16 in one dim: that one is closed.
    assert along_all(torus("TPU v5 lite", 8, 16), "all-gather", 200 * GB) == pytest.approx(1 / ((0.5 + 1) / 2))
    # v5p: whole cubes of 4 x 4 x 4 are closed in every dim, 600 GB/s out; anything else in none.
    assert along_all(torus("TPU v5", 4, 4, 8), "all-gather", 600 * GB) == pytest.approx(1)
    assert along_all(torus("TPU v5", 2, 4, 4), "all-gather", 600 * GB) == pytest.approx(2)
    assert along_all(torus("TPU v5", 2, 2, 4), "all-gather", 600 * GB) == pytest.approx(2)


def along(machine: Machine, *sizes: int) -> list[list[int]]:
    """Groups along the first axis of a mesh as jax lays it over a torus, as positions in the machine's devices."""
    laid = mesh_utils.create_device_mesh(sizes, machine.devices, allow_split_physical_axes=True)
    number = {device: position for position, device in enumerate(machine.devices)}
    return [[number[device] for device in column] for column in laid.reshape(sizes[0], -1).T]


def busiest_link(machine: Machine, groups: Sequence[Sequence[int]], moves: Callable) -> float:
    """Bytes over the link that carries most, each way counted apart, of a torus that is closed in all dims.

    Args:
      moves: from the number of chips of a group in one row to (steps to the right, bytes) that each chip sends, over
        all links between.
    """
    carried: Counter = Counter()
    for group in groups:
        places = [machine.devices[position].coords for position in group]
        (dim,) = (d for d in range(2) if len({place[d] for place in places}) > 1)
        places.sort(key=lambda place: place[dim])
        for number, place in enumerate(places):
            for steps, size in moves(len(places)):
                here, there = place[dim], places[(number + steps) % len(places)][dim]
                length = machine.torus[dim]
                for hop in range((there - here) % length if steps > 0 else (here - there) % length):
                    link = (here + hop if steps > 0 else here - hop) % length
                    carried[dim, place[1 - dim], link, steps > 0] += size
    return max(carried.values())


@pytest.mark.parametrize("parts", [2, 4, 8, 16])
def test_groups_that_lie_over_each_other_share_their_links(parts):
    """A v5e pod cut along one axis, as jax cuts it: every eighth chip of a ring, every fourth, ...; 50 GB/s a link."""
    pod = torus("TPU v5 lite", 16, 16)
    groups = along(pod, parts, 16 // parts, 16)
    whole = 16 * GB

    # An all-gather in two rings: a piece goes on to the next chip until all have it, half of it each way.
    def gather(n):
        return [(way, whole * (n - 1) / n / 2) for way in (1, -1)]

    # To each other chip its own piece, the shorter way; what is as far both ways goes half each way.
    def exchange(n):
        to_the_right = [(steps, whole / n / (2 if 2 * steps == n else 1)) for steps in range(1, n // 2 + 1)]
        return to_the_right + [(-steps, size) for steps, size in to_the_right]

    for kind, moves in (("all-gather", gather), ("all-to-all", exchange)):
        expected = busiest_link(pod, groups, moves) / (50 * GB)
        assert along_all(pod, kind, whole * (parts - 1) / parts, *groups) == pytest.approx(expected), kind


def test_neighbours_that_share_a_row_do_not_share_links():
    pod = torus("TPU v5 lite", 16, 16)
    halves = [[row * 16 + place for place in part] for row in range(16) for part in (range(8), range(8, 16))]
    assert along_all(pod, "all-gather", 50 * GB, *halves) == pytest.approx(1)  # one link out of each end, one way
    # Where nothing is closed: 0 and 2, 1 and 3 of a row of four, over the same link in the middle.
    part = torus("TPU v5 lite", 1, 4)
    assert along_all(part, "all-gather", 50 * GB, [0, 2], [1, 3]) == pytest.approx(2)
    assert along_all(part, "all-gather", 50 * GB, [0, 1], [2, 3]) == pytest.approx(1)


def test_an_exchange_crosses_the_middle_of_a_row():
    """Of 8 GB on each of four chips half belongs to the other half: 4 GB of two chips over one link of 50 GB/s."""
    row = torus("TPU v5 lite", 1, 4)
    assert along_all(row, "all-to-all", 6 * GB) == pytest.approx(2 * 4 / 50)


def test_several_slices_talk_over_their_hosts_network():
    """Two slices of four v5e: of 8 GB gathered, half of a quarter comes over 3.125 GB/s a chip: the bound."""
    machine = torus("TPU v5 lite", 2, 2, slices=2)
    assert along_all(machine, "all-gather", 7 * GB) == pytest.approx(8 / 4 / 2 / 3.125)


def test_hosts_of_gpus():
    """NVLink gives 450 GB/s each way. Of 16 GB over two hosts of 8, 14 move within; half an eighth between, at 50."""
    machine = hosts("NVIDIA H100 80GB HBM3", 2, 8)
    assert along_all(machine, "all-reduce", 450 * GB, range(8), range(8, 16)) == pytest.approx(1)
    assert along_all(machine, "all-gather", 15 * GB) == pytest.approx(max(14 / 450, 1 / 50))
    # One device of each host: nothing is shared within, all goes over the network.
    assert along_all(machine, "all-gather", 1 * GB, [0, 8]) == pytest.approx(1 / 50)


def test_all_of_an_exchange_between_hosts_crosses():
    """Of 16 GB on each of 2 x 8 GPUs 8 belong to the other host: nothing of it is the same for two GPUs."""
    machine = hosts("NVIDIA H100 80GB HBM3", 2, 8)
    assert along_all(machine, "all-to-all", 15 * GB) == pytest.approx(8 / 50)
    assert along_all(machine, "all-to-all", 450 * GB, range(8), range(8, 16)) == pytest.approx(1)
    slices = torus("TPU v5 lite", 2, 2, slices=2)
    assert along_all(slices, "all-to-all", 7 * GB) == pytest.approx(4 / 3.125)


def test_two_cores_share_a_chip():
    """600 GB/s out of a chip: each core's group has one half; a group of both has all, and the chip sends it once."""
    places = torus("TPU7x", 4, 4, 4).devices
    machine = Machine("tpu", [place for place in places for _ in range(2)], find("TPU7x"), (4, 4, 4))
    assert along_all(machine, "all-gather", 300 * GB, range(0, 128, 2), range(1, 128, 2)) == pytest.approx(1)
    assert along_all(machine, "all-gather", 600 * GB) == pytest.approx(1)


def small_step(machine: Machine, mesh) -> Step:
    gather = Collective("all-gather", ("all",), 5, 0, 4 * GB, (tuple(range(mesh.size)),))
    return Step(
        mesh=mesh,
        attention="splash",
        parameters=1000,
        length=100,
        tokens=1000,
        tokens_in_all=100_000,
        memory=Memory(4, 1, 2, 8, 3, 1, machine.chip.hbm_bytes if machine.chip else None),
        collectives=(gather,),
        model_flops=256 * 197e12,
        hardware_flops=256 * 394e12,
        traffic=819e9,
        gradient_reduction="float32",
        gradient_sent=0,
        notes=("a note",),
    )


@pytest.fixture
def plan():
    machine = torus("TPU v5 lite", 16, 16)
    assumed = Assumptions(FULL, watts=1000, host_overhead=1.5, pue=1.2, price=2.0, grid=500)
    return make_plan(small_step(machine, fake_mesh(machine.devices, all=256)), machine, assumed)


@pytest.mark.parametrize(
    ("machine", "part"),
    [(torus("TPU v5 lite", 2, 2), 0.95), (hosts("NVIDIA H100 80GB HBM3", 1, 4), GPU_MEMORY_FRACTION)],
    ids=["TPU", "GPU"],
)
def test_what_fits_is_what_the_runtime_gives(machine, part):
    """Of a GPU what jax takes (`runtime.configure` sees to it), not what the vendor counts."""
    step = small_step(machine, fake_mesh(machine.devices, all=4))
    for temporaries, fits in ((part - 0.01, True), (part + 0.01, False)):
        memory = replace(step.memory, temporaries=int(temporaries * machine.chip.hbm_bytes))
        plan = make_plan(replace(step, memory=memory), machine, Assumptions())
        assert plan.fits is fits
        assert plan.as_json()["memory_bytes"]["usable"] == part * machine.chip.hbm_bytes


def test_the_longest_is_the_bound(plan):
    times = plan.roofline
    assert (times.compute, times.memory, times.links) == pytest.approx((2, 1, 4 / 200))
    assert times.bound == "compute"
    assert plan.step_seconds == pytest.approx((2, 3.02))
    assert plan.utilization == pytest.approx((1 / 3.02, 1 / 2))


def test_efficiencies_slow_each_part(plan):
    slower = roofline(
        plan.machine, plan.step.mesh, 256 * 394e12, 819e9, plan.step.collectives, Efficiencies(0.5, 0.1, 1)
    )
    assert (slower.compute, slower.memory, slower.links) == pytest.approx((4, 10, 0.02))
    assert slower.bound == "memory"


def test_time_energy_and_money(plan):
    assert plan.tokens_per_day == pytest.approx((1000 * 86400 / 3.02, 1000 * 86400 / 2))
    assert plan.days == pytest.approx((200 / 86400, 302 / 86400))
    hours = 200 / 3600
    assert plan.kwh[0] == pytest.approx(1.0 * 256 * 1.5 * 1.2 * hours)
    assert plan.cost[0] == pytest.approx(2.0 * 256 * hours)
    assert plan.kg_co2e[0] == pytest.approx(0.5 * plan.kwh[0])


def test_what_is_not_known_is_not_made_up():
    pod = torus("TPU v5 lite", 16, 16)
    plan = make_plan(small_step(pod, fake_mesh(pod.devices, all=256)), pod, Assumptions())
    assert (plan.kwh, plan.cost, plan.kg_co2e) == (None, None, None)
    assert "give --watts" in render(plan)
    here = Machine("cpu:8", [SimpleNamespace(platform="cpu")] * 8, None)
    unknown = make_plan(small_step(here, fake_mesh(here.devices, all=8)), here, Assumptions(price=1, watts=5))
    assert (unknown.step_seconds, unknown.days, unknown.cost, unknown.fits) == (None, None, None, None)
    assert "not estimated" in render(unknown)


def test_a_plan_as_text_says_what_it_assumes(plan):
    text = render(plan)
    for part in (
        "all-gather",
        "fits",
        "bound        compute",
        "MFU",
        "\n    activations 3 B",
        "estimate: 1000 W x 256 chips x 1.5 for hosts x PUE 1.2",
        "a note",
    ):
        assert part in text


def test_wrong_assumptions_are_all_named():
    with pytest.raises(BadInputError) as error:
        Assumptions(watts=-1, pue=0.5, price=float("nan")).check()
    assert [problem.split()[0] for problem in error.value.problems] == ["--watts", "--pue", "--price"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (8.93e9, "8.93 GB"), (1.5e12, "1.5 TB")])
def test_quantities(number, text):
    assert quantity(number, "B") == text
