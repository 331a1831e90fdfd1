from types import SimpleNamespace

import jax
import pytest

from blobjax.compute.accelerators import ACCELERATORS, find, peak_flops


def peak(kind: str) -> float | None:
    return peak_flops(SimpleNamespace(device_kind=kind))


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("TPU7x", 2307e12 / 2),  # two jax devices a chip
    ],
)
def test_kinds_as_jax_names_them(kind, flops):
    assert peak(kind) == flops


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H200 NVL", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090", "TPU v9", ""])
def test_an_unknown_device_has_no_peak(kind):
    assert peak(kind) is None


def test_this_cpu_has_no_peak():
    assert peak_flops(jax.devices()[0]) is None


@pytest.mark.parametrize("chip", ACCELERATORS, ids=lambda chip: chip.name)
def test_rows_are_plausible_and_sourced(chip):
    """A slipped digit shows: chips do a few hundred FLOPs a byte they can read, and read faster than they talk."""
    assert 100 < chip.bf16_flops / chip.hbm_bandwidth < 700
    assert chip.fp8_flops is None or 1.9 < chip.fp8_flops / chip.bf16_flops < 2.1
    assert 10e9 < chip.hbm_bytes < 300e9
    assert 1 < chip.hbm_bandwidth / chip.link_bandwidth < 10
    assert chip.source
    # Memories of TPUs are powers of two, but for what v5p's runtime keeps of 96 GiB.
    assert not chip.torus_dims or chip.hbm_bytes % 2**30 == 0
    # A figure of a pod or a server says nothing of the chip alone; such are not turned into one.
    assert chip.watts is None or "pod" not in chip.watts_source


def test_no_kind_stands_twice():
    kinds = [kind for chip in ACCELERATORS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(find(kind) for kind in kinds)
