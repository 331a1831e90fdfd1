"""What accelerators can do at best: the denominators of model-FLOPs utilisation and of any roofline."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table is also read where no jax is started
    import jax


@dataclass(frozen=True)
class Accelerator:
    """One kind of chip, as its vendor states it, without sparsity.

    Attributes:
      name: the chip.
      kinds: what jax calls it (`device.device_kind`), exactly: `NVIDIA H200 NVL` is not an `NVIDIA H200`.
      bf16_flops: peak dense bfloat16 FLOP/s of one chip.
      fp8_flops: peak dense FP8 FLOP/s; None where the matrix units have no FP8.
      hbm_bytes: device memory, bytes.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s to other chips over NVLink or ICI, both directions together.
      source: the document the numbers are from.
      watts: power of one chip; None where its vendor does not publish it.
      watts_source: the document that is from.
      network_bandwidth: bytes/s each way, a chip's share of its host's network cards; None where that is not known.
      network_source: the document that is from.
      chips_per_host: in the vendor's usual host.
      torus_dims: dims of the ICI torus; 0 where chips of one host are joined by a switch (NVLink), or in pairs.
      devices: jax devices one chip appears as; each has that part of the chip's numbers.
    """

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float
    fp8_flops: float | None
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    source: str
    watts: float | None
    watts_source: str
    network_bandwidth: float | None
    network_source: str
    chips_per_host: int
    torus_dims: int = 0
    devices: int = 1


_TPU = "Google Cloud TPU documentation, system architecture of"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet"
_DGX_A100 = "NVIDIA DGX A100 datasheet: 8 cards of 200 Gb/s for 8 GPUs"
_DGX_H100 = "NVIDIA DGX H100 datasheet: 8 cards of 400 Gb/s for 8 GPUs"
_DGX_H200 = "NVIDIA DGX H200 datasheet: 8 cards of 400 Gb/s for 8 GPUs"
_DGX_B200 = "NVIDIA DGX B200 datasheet: 8 cards of 400 Gb/s for 8 GPUs"
_JOUPPI = "Jouppi et al. 2023, TPU v4 (table 4; six links of 50 GB/s each way)"
_UNKNOWN = "not published"

# NVIDIA's datasheets print most tensor-core numbers with sparsity; they are halved here. Their powers are the most a
# chip may draw. PCIe cards are joined in pairs by a bridge, at most.
ACCELERATORS = (
    Accelerator(
        "A100 40GB PCIe",
        ("NVIDIA A100-PCIE-40GB",),
        312e12,
        None,
        40e9,
        1555e9,
        600e9,
        _A100,
        watts=250,
        watts_source=_A100,
        network_bandwidth=None,
        network_source=_UNKNOWN,
        chips_per_host=8,
    ),
    Accelerator(
        "A100 40GB SXM",
        ("NVIDIA A100-SXM4-40GB",),
        312e12,
        None,
        40e9,
        1555e9,
        600e9,
        _A100,
        watts=400,
        watts_source=_A100,
        network_bandwidth=25e9,
        network_source=_DGX_A100,
        chips_per_host=8,
    ),
    Accelerator(
        "A100 80GB PCIe",
        ("NVIDIA A100 80GB PCIe",),
        312e12,
        None,
        80e9,
        1935e9,
        600e9,
        _A100,
        watts=300,
        watts_source=_A100,
        network_bandwidth=None,
        network_source=_UNKNOWN,
        chips_per_host=8,
    ),
    Accelerator(
        "A100 80GB SXM",
        ("NVIDIA A100-SXM4-80GB",),
        312e12,
        None,
        80e9,
        2039e9,
        600e9,
        _A100,
        watts=400,
        watts_source=_A100,
        network_bandwidth=25e9,
        network_source=_DGX_A100,
        chips_per_host=8,
    ),
    Accelerator(
        "H100 PCIe",
        ("NVIDIA H100 PCIe",),
        756e12,
        1513e12,
        80e9,
        2.0e12,
        600e9,
        _H100,
        watts=350,
        watts_source=_H100,
        network_bandwidth=None,
        network_source=_UNKNOWN,
        chips_per_host=8,
    ),
    Accelerator(
        "H100 SXM",
        ("NVIDIA H100 80GB HBM3",),
        989e12,
        1979e12,
        80e9,
        3.35e12,
        900e9,
        _H100,
        watts=700,
        watts_source=_H100,
        network_bandwidth=50e9,
        network_source=_DGX_H100,
        chips_per_host=8,
    ),
    Accelerator(
        "H200 SXM",
        ("NVIDIA H200",),
        989e12,
        1979e12,
        141e9,
        4.8e12,
        900e9,
        _H200,
        watts=700,
        watts_source=_H200,
        network_bandwidth=50e9,
        network_source=_DGX_H200,
        chips_per_host=8,
    ),
    Accelerator(
        "B200",
        ("NVIDIA B200",),
        2.25e15,
        4.5e15,
        180e9,
        8e12,
        1.8e12,
        "NVIDIA DGX B200 datasheet",
        watts=1000,
        watts_source="NVIDIA HGX B200 specification",
        network_bandwidth=50e9,
        network_source=_DGX_B200,
        chips_per_host=8,
    ),
    Accelerator(
        "GB200",
        ("NVIDIA GB200",),
        2.5e15,
        5.0e15,
        186e9,
        8e12,
        1.8e12,
        "NVIDIA GB200 NVL72 datasheet",
        watts=1200,
        watts_source="NVIDIA GB200 NVL72 datasheet",
        network_bandwidth=50e9,
        network_source="NVIDIA GB200 NVL72: a card of 400 Gb/s for each GPU",
        chips_per_host=4,
    ),
    Accelerator(
        "TPU v4",
        ("TPU v4",),
        275e12,
        None,
        32 * 2**30,
        1200e9,
        600e9,
        _JOUPPI,
        watts=192,
        watts_source="Jouppi et al. 2023, TPU v4 (the most measured in production)",
        network_bandwidth=None,
        network_source=_UNKNOWN,
        chips_per_host=4,
        torus_dims=3,
    ),
    Accelerator(
        "TPU v5e",
        ("TPU v5 lite", "TPU v5e"),
        197e12,
        None,
        16 * 2**30,  # printed as 16 GB, but libtpu itself lets a program have 15.75 GiB, which is more
        819e9,
        400e9,
        f"{_TPU} v5e",
        watts=None,
        watts_source=_UNKNOWN,
        network_bandwidth=3.125e9,
        network_source=f"{_TPU} v5e (two cards of 100 Gb/s for 8 chips)",
        chips_per_host=8,
        torus_dims=2,
    ),
    Accelerator(
        "TPU v5p",
        ("TPU v5", "TPU v5p"),
        459e12,
        None,
        95 * 2**30,
        2765e9,
        1200e9,
        f"{_TPU} v5p",
        watts=None,
        watts_source=_UNKNOWN,
        network_bandwidth=6.25e9,
        network_source=f"{_TPU} TPU7x (50 Gb/s a chip)",
        chips_per_host=4,
        torus_dims=3,
    ),
    Accelerator(
        "TPU v6e",
        ("TPU v6 lite", "TPU v6e"),
        918e12,
        None,
        32 * 2**30,
        1638e9,
        800e9,
        f"{_TPU} v6e",
        watts=None,
        watts_source=_UNKNOWN,
        network_bandwidth=12.5e9,
        network_source=f"{_TPU} v6e (four cards of 200 Gb/s for 8 chips)",
        chips_per_host=8,
        torus_dims=2,
    ),
    # Two TensorCores a chip, and unlike v4's and v5p's jax shows each as a device of its own.
    Accelerator(
        "TPU7x",
        ("TPU7x",),
        2307e12,
        4614e12,
        192 * 2**30,
        7380e9,
        1200e9,
        f"{_TPU} TPU7x (Ironwood)",
        watts=None,  # of a pod Google says nearly 10 MW, hosts and network included
        watts_source=_UNKNOWN,
        network_bandwidth=12.5e9,
        network_source=f"{_TPU} TPU7x (100 Gb/s a chip)",
        chips_per_host=4,
        torus_dims=3,
        devices=2,
    ),
)


def find(kind: str) -> Accelerator | None:
    """The accelerator that jax calls `kind`, or None for a device that is not in the table (a CPU, a new chip)."""
    return next((chip for chip in ACCELERATORS if kind in chip.kinds), None)


def peak_flops(device: "jax.Device") -> float | None:
    """Peak dense bfloat16 FLOP/s of one jax device; None where it is not known, and then no utilisation is reported."""
    chip = find(device.device_kind)
    return None if chip is None else chip.bf16_flops / chip.devices
