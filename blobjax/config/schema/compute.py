"""RAW COMPUTE: the keys of devices, mesh and memory."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from blobjax.config.schema.section import AxisSize, Count, FromList, Names, Nonnegative, Positive, Section

ShardingRule = Annotated[tuple[str, str | Names | None], FromList]


class Mesh(Section):
    """Sizes of the device mesh's axes. -1 takes the devices that are left; at most one axis may (data gives way)."""

    replica: AxisSize = 1
    """Data parallelism across slices (slow network): parameters are replicated, gradients all-reduced."""
    data: AxisSize = -1
    """Data parallelism within a slice: parameters are replicated, gradients all-reduced."""
    fsdp: AxisSize = 1
    """Data parallelism with parameters, gradients and optimizer state sharded (Rajbhandari et al. 2020)."""
    tensor: AxisSize = 1
    """Heads, MLP hidden width and vocabulary split across devices (Shoeybi et al. 2019)."""
    context: AxisSize = 1
    """The sequence split across devices."""

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        # `fsdp: -1` alone is clear enough: data's own -1 is only a default.
        if "data" not in self.model_fields_set and -1 in (self.replica, self.fsdp, self.tensor, self.context):
            self._derive(data=1)
        return self


class Compute(Section):
    """RAW COMPUTE: on which devices, how split, and what is recomputed."""

    mesh: Mesh = Mesh()
    """The device mesh."""
    sharding_rules: Annotated[tuple[ShardingRule, ...], FromList] = ()
    """Ordered (logical axis, mesh axis or axes) pairs put before the built-in rules; the first usable match wins."""
    remat: Literal["none", "full", "dots", "attention", "offload"] = "none"
    """What the backward pass recomputes instead of keeping: nothing; all of a layer but its input; all but matmul
    outputs; the attention weights only; or all of a layer but its input, which waits in host memory."""
    scan_layers: Literal["auto"] | bool = "auto"
    """Compile one layer and loop over it (compile time flat in depth), or unroll. auto: unroll shallow models on
    CPU."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention implementation. auto: cudnn on NVIDIA GPUs and splash on TPUs where their limits allow, xla
    elsewhere."""
    loss_chunk_tokens: Count = 0
    """Compute the output logits and their cross-entropy this many tokens at a time, so that the full logits never
    live in memory; 0: all at once."""
    gradient_accumulation: Positive = 1
    """Parts the global batch is computed in, one after the other; the update is that of the whole batch."""
    gradient_reduction: Literal["float32", "compute"] = "float32"
    """Format in which the gradients of weights leave their products, and so are summed over devices. compute: that of
    conditioning.precision's activations, which in 16 bits is half the bytes, each partial sum rounded to it. What is
    added up afterwards is float32 either way, and so are the gradients of embeddings and norms, and of weights whose
    products are of a narrower format (int8 to nvfp4)."""
    virtual_cpu_devices: Count = 0
    """Run on the CPU and make it appear as this many devices; 0: not. JAX_NUM_CPU_DEVICES in the environment wins."""
    cpu_threads: Count = 0
    """Threads that XLA computes with on a CPU (its variable PJRT_NPROC). Their number decides in which parts a sum is
    made, and so the last bits of every result; there may be more threads than cores. 0: PJRT_NPROC where it is set,
    else one for each core, so the last bits depend on the machine."""
    xla_flags: Literal["auto"] | Names = "auto"
    """Names of XLA flag bundles (blobjax/compute/xla_flags.py). auto: those measured to pay on this platform."""
    device_watts: Nonnegative = 0
    """Power of one device in watts, for an estimate of the energy where the machine does not count it; 0: what its
    vendor publishes, or 5 W a core of a CPU."""
    compilation_cache: str = ""
    """Directory in which compiled programs are kept between runs; empty: not kept."""
