"""Times from numbers small enough to reckon by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import Mesh

from blobjax.compute.accelerators import find
from blobjax.config import BadInputError
from blobjax.scaling.plan.collectives import Collective
from blobjax.scaling.plan.compile import Memory, Step
from blobjax.scaling.plan.estimate import Assumptions, make_plan
from blobjax.scaling.plan.hardware import Machine
from blobjax.scaling.plan.render import quantity, render
from blobjax.scaling.plan.roofline import Efficiencies, link_seconds, roofline

FULL = Efficiencies(1.0, 1.0, 1.0)
GB = 1e9


def fake_mesh(devices, **axes):
    """Only what is asked of a mesh, so that it can be of devices that jax does not know."""
    flat = np.empty(len(devices), object)
    flat[:] = devices
    return SimpleNamespace(devices=flat.reshape(list(axes.values())), shape=axes, size=len(devices))


def torus(kind: str, *sizes: int, slices: int = 1) -> Machine:
    places = [
        SimpleNamespace(coords=(*place, 0, 0)[:3], slice_index=number, platform="tpu")
        for number in range(slices)
        for place in np.ndindex(*sizes)
    ]
    return Machine("tpu", places, find(kind), sizes, slices)


def hosts(kind: str, count: int, each: int) -> Machine:
    return Machine(
        "gpu", [SimpleNamespace(process_index=i // each, platform="gpu") for i in range(count * each)], find(kind)
    )


def along_all(machine: Machine, kind: str, sent: float, group: list[int] | None = None) -> float:
    ids = group or list(range(len(machine.devices)))
    mesh: Mesh = fake_mesh(machine.devices, all=len(machine.devices))
    return link_seconds(Collective(kind, ("all",), 1, 0, sent, (tuple(ids),)), machine, mesh)


def test_a_v5e_pod_is_a_closed_torus():
    """400 GB/s a chip, both directions together: 200 GB/s out over four links, half of them along one dim."""
    pod = torus("TPU v5 lite", 16, 16)
    assert along_all(pod, "all-gather", 200 * GB) == pytest.approx(1)
    row = list(range(16))
    assert along_all(pod, "all-gather", 200 * GB, row) == pytest.approx(2)


def test_a_part_of_a_torus_is_not_closed():
    assert along_all(torus("TPU v5 lite", 4, 4), "all-gather", 200 * GB) == pytest.approx(2)
    # v5p closes dims that are multiples of 4: 600 GB/s out.
    assert along_all(torus("TPU v5", 4, 4, 8), "all-gather", 600 * GB) == pytest.approx(1)
    assert along_all(torus("TPU v5", 2, 4, 4), "all-gather", 600 * GB) == pytest.approx(1 / ((0.5 + 1 + 1) / 3))


def test_several_slices_talk_over_their_hosts_network():
    """Two slices of four v5e: of 8 GB gathered, half of a quarter comes over 3.125 GB/s a chip: the bound."""
    machine = torus("TPU v5 lite", 2, 2, slices=2)
    assert along_all(machine, "all-gather", 7 * GB) == pytest.approx(8 / 4 / 2 / 3.125)


def test_hosts_of_gpus():
    """NVLink gives 450 GB/s each way. Of 16 GB over two hosts of 8, 14 move within; half an eighth between, at 50."""
    machine = hosts("NVIDIA H100 80GB HBM3", 2, 8)
    assert along_all(machine, "all-reduce", 450 * GB, list(range(8))) == pytest.approx(1)
    assert along_all(machine, "all-gather", 15 * GB) == pytest.approx(max(14 / 450, 1 / 50))
    # One device of each host: nothing is shared within, all goes over the network.
    assert along_all(machine, "all-gather", 1 * GB, [0, 8]) == pytest.approx(1 / 50)


def test_two_cores_share_a_chip():
    chip = find("TPU7x")
    machine = Machine("tpu", torus("TPU7x", 4, 4, 4).devices, chip, (4, 4, 4))
    assert along_all(machine, "all-gather", 300 * GB) == pytest.approx(1)


def small_step(machine: Machine, mesh) -> Step:
    gather = Collective("all-gather", ("all",), 5, 0, 4 * GB, (tuple(range(mesh.size)),))
    return Step(
        mesh=mesh,
        attention="splash",
        parameters=1000,
        length=100,
        tokens=1000,
        tokens_in_all=100_000,
        memory=Memory(1, 2, 4, 3, 5, 1, machine.chip.hbm_bytes if machine.chip else None),
        collectives=(gather,),
        model_flops=256 * 197e12,
        hardware_flops=256 * 394e12,
        traffic=819e9,
        notes=("a note",),
    )


@pytest.fixture
def plan():
    machine = torus("TPU v5 lite", 16, 16)
    assumed = Assumptions(FULL, watts=1000, host_overhead=1.5, pue=1.2, price=2.0, grid=500)
    return make_plan(small_step(machine, fake_mesh(machine.devices, all=256)), machine, assumed)


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
    assert plan.tokens_per_day == pytest.approx((1000 * 86400 / 2, 1000 * 86400 / 3.02))
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
