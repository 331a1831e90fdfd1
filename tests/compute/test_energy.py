"""Energy: counters that run over, GPUs that CUDA renames, and estimates that say that they are."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from blobjax.compute import energy


def device(kind="cpu", platform="cpu", number=0):
    return SimpleNamespace(device_kind=kind, platform=platform, local_hardware_id=number)


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Two packages and a core zone within one of them."""
    for name, label, joules in (
        ("intel-rapl:0", "package-0", 100),
        ("intel-rapl:1", "package-1", 200),
        ("intel-rapl:0:0", "core", 50),
        ("intel-rapl:2", "psys", 900),
    ):
        zone = tmp_path / name
        zone.mkdir()
        (zone / "name").write_text(f"{label}\n")
        (zone / "energy_uj").write_text(f"{joules * 10**6}\n")
        (zone / "max_energy_range_uj").write_text(f"{1000 * 10**6}\n")
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    return tmp_path


def test_rapl_counts_packages_once_and_runs_over(powercap):
    found = energy.meter([device()])
    assert (found.source, found.joules) == ("rapl", 0)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("130000000")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("70000000")
    assert found.joules == 30
    (powercap / "intel-rapl:1" / "energy_uj").write_text("50000000")  # it was at 200 of 1000
    assert found.joules == 30 + 850


def test_without_a_readable_counter_it_is_an_estimate_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    monkeypatch.setattr(energy.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    now = [100.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    found = energy.meter([device()] * 8)
    now[0] += 10
    assert (found.source, found.joules) == ("estimate: 5 W a core", 150)
    # One of several cells of a study that share the cores.
    monkeypatch.setenv("PJRT_NPROC", "1")
    share = energy.meter([device()] * 8)
    now[0] += 2
    assert (share.source, share.joules) == ("estimate: 5 W a core", 10)
    given = energy.meter([device()] * 8, watts=20)
    now[0] += 1
    assert (given.source, given.joules) == ("estimate: 20 W a device", 160)


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_a_package_that_cannot_be_read_leaves_an_estimate(powercap, file):
    (powercap / "intel-rapl:1" / file).unlink()
    assert energy.meter([device()], watts=20).source == "estimate: 20 W a device"


def test_an_accelerators_estimate_comes_from_the_table(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    found = energy.meter([device("TPU v4", "tpu")] * 2)
    # A chip of two devices, as TPU7x is, whose power Google does not publish.
    halves = replace(energy.accelerators.find("TPU7x"), watts=500)
    monkeypatch.setattr(energy.accelerators, "find", lambda kind: halves)
    of_halves = energy.meter([device("TPU7x", "tpu")] * 4)
    now[0] += 2
    assert found.joules == 2 * 192 * 2
    assert of_halves.joules == 2 * 500 * 2


@pytest.mark.parametrize("kind", ["some other chip", "TPU v5p", "TPU7x"])  # Google publishes no power of these TPUs
def test_where_no_power_is_known_there_is_no_figure(kind):
    assert energy.meter([device(kind, "tpu")]) is None
    assert energy.meter([device(kind, "tpu")], watts=200).source == "estimate: 200 W a device"


class FakeNvml:
    """GPUs by NVML's own number and UUID; each uses 1 J a read."""

    def __init__(self):
        self.counts = {0: 0, 1: 0, 2: 0}
        self.asked = []

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByIndex(self, number):
        return number

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {b"GPU-two": 2}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.asked.append(handle)
        self.counts[handle] += 1000
        return self.counts[handle]


@pytest.mark.parametrize(("visible", "handles"), [(None, {0, 1}), ("2,0", {2, 0}), ("GPU-two,1", {2, 1})])
def test_nvml_reads_the_gpus_that_cuda_means(monkeypatch, visible, handles):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = energy.meter([device("NVIDIA H100 80GB HBM3", "gpu", number) for number in (0, 1)])
    assert (found.source, found.joules, set(nvml.asked)) == ("nvml", 2, handles)


def test_a_gpu_without_a_counter_is_estimated(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda handle: 1 / 0)
    assert energy.meter([device("NVIDIA H200", "gpu")]).source == "estimate: 700 W a H200 SXM"
