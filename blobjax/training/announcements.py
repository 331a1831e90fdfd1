"""What a run says of itself when it starts: to a reader of events.jsonl, and to the person watching."""

from typing import Any

import jax

import blobjax
from blobjax.compute.flops import param_count
from blobjax.compute.sharding import unsharded
from blobjax.processes.timers import Every
from blobjax.program.program import Program
from blobjax.program.state import flatten


def facts(program: Program) -> dict[str, Any]:
    """What a reader of events.jsonl wants to know of an attempt."""
    devices = jax.devices()
    return {
        "versions": {"blobjax": blobjax.__version__, "jax": jax.__version__},
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "mesh": dict(program.layout.mesh.shape),
        "length": program.clockwork.length,
        "logged_every": Every(program.config.logging.every, program.clockwork).steps,
        "tokens_per_step": program.clockwork.tokens_per_step,
        "flops_per_token": program.clockwork.flops_per_token,
    }


def headline(program: Program, start: int) -> str:
    """One line: what is trained, on what, for how long.

    Args:
      start: the step this attempt begins after.
    """
    config = program.config
    count = param_count(config.model, config.conditioning, embeddings=True)
    mesh = " ".join(f"{axis}={size}" for axis, size in program.layout.mesh.shape.items() if size > 1)
    where = f"{len(jax.devices())} × {jax.devices()[0].device_kind}" + (f" ({mesh})" if mesh else "")
    tokens = program.clockwork.batches.sequences(program.clockwork.length) * config.data.seq_len
    resumed = f", resuming at step {start}" if start else ""
    return (
        f"{config.name}: {count / 1e6:,.1f}M parameters on {where}; {program.clockwork.length:,} steps, "
        f"{f'{tokens / 1e6:,.1f}M' if tokens >= 1e6 else f'{tokens / 1e3:,.0f}k'} tokens{resumed}"
    )


def warnings(program: Program) -> list[str]:
    """What works, but may not be what is wanted."""
    found = [f"{name} is whole on every device of a mesh that could split it" for name in _unsharded(program)]
    conditioning = program.config.conditioning
    if conditioning.precision == "float16" and conditioning.loss_scaling.kind == "none":
        found.append(
            "float16 without loss scaling: small gradients become 0; unless that is what you study, set "
            "conditioning.loss_scaling.kind=dynamic"
        )
    scaled = conditioning.parametrisation
    deeper = scaled.kind == "completep" and program.config.model.n_layers != scaled.base_depth
    if deeper and program.config.optimizer.name == "muon":
        found.append(
            "completep was made for AdamW: with muon the first steps move a deeper model less "
            "(docs/conditioning.md#parametrisation); check the learning rate at this depth"
        )
    if program.config.reliability.check_every and jax.default_backend() == "gpu":
        found.append(
            "reliability.check_every compares steps bit by bit, and on GPUs some sums are made in any order: give "
            "compute.xla_flags=[gpu-deterministic] too, unless what you run is known to repeat itself"
        )
    return found


def _unsharded(program: Program) -> list[str]:
    """Large parameters that no rule splits although the mesh has an axis for them."""
    axes = jax.tree.leaves(program.arch.axes, is_leaf=lambda node: isinstance(node, tuple))
    shapes = flatten(program.arch.shapes).items()
    return unsharded(
        program.layout, {path: (leaf.shape, each) for (path, leaf), each in zip(shapes, axes, strict=True)}
    )
