"""XLA flags: those without which a jaxlib computes wrong results, and named bundles to choose from.

Each is here for a reason, and each exists in every jaxlib we support: XLA aborts the process on a flag that it does not
know, so a test starts jax with all of them. There is no bundle for TPUs: their flags are libtpu's own, change with its
versions and could not be tried here.
"""

from dataclasses import dataclass
from importlib import metadata

# jaxlib version to the CPU flags that it needs. 0.10.2 hands reductions to YNNPACK, which gets some float32 sums wrong:
# for rows (i, 0, 0), the jitted vmap(lambda r: sum((eye(3) @ r) ** 2)) is off by 0.8% at row 32,768 (jax issue 39103).
# Other reductions crash (40412). 0.11.0 and 0.12.0.1 are right.
_NEEDED = {"0.10.2": ("--xla_cpu_experimental_ynn_fusion_type=-reduce",)}


def needed() -> tuple[str, ...]:
    """CPU flags without which the installed jaxlib computes wrong results; no run goes without them."""
    return _NEEDED.get(metadata.version("jaxlib"), ())


@dataclass(frozen=True)
class Bundle:
    """Flags that belong together.

    Attributes:
      platform: where it means something.
      flags: what is put into XLA_FLAGS.
      why: what it is for.
      measured: whether it was measured to pay; `compute.xla_flags: auto` takes only these.
    """

    platform: str
    flags: tuple[str, ...]
    why: str
    measured: bool = False


BUNDLES = {
    "cpu-compile": Bundle(
        "cpu",
        ("--xla_backend_optimization_level=1",),
        "LLVM optimises less: the step compiles in 0.7 of the time and runs as fast (docs/performance.md)",
        measured=True,
    ),
    "gpu-overlap": Bundle(
        "gpu",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",  # collectives start early and finish late
            "--xla_gpu_enable_while_loop_double_buffering=true",  # so that scanned layers prefetch the next layer's
            "--xla_gpu_enable_pipelined_all_gather=true",  # ... parameters (fsdp)
            "--xla_gpu_enable_pipelined_reduce_scatter=true",  # ... and send off the last layer's gradients
        ),
        "communication under computation, on several GPUs (jax.dev, GPU performance tips)",
    ),
    "gpu-deterministic": Bundle(
        "gpu",
        ("--xla_gpu_exclude_nondeterministic_ops=true",),
        "bitwise equal results from run to run: no atomics in reductions and scatters; slower",
    ),
}
