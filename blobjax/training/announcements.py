"""What a run says of itself when it starts and ends: to a reader of events.jsonl, and to the person watching."""

from typing import Any

import jax

import blobjax
from blobjax.checkpointing.checkpointer import Restored
from blobjax.compute.flops import param_count
from blobjax.compute.sharding import unsharded
from blobjax.processes.supervisor import restarted
from blobjax.processes.timers import Every
from blobjax.program.program import Program
from blobjax.program.state import flatten
from blobjax.runs.directory import read_jsonl
from blobjax.runs.energy import energy_line
from blobjax.runs.outcome import sequences_before
from blobjax.training.inference import sample
from blobjax.training.run import Run


def announce_start(run: Run) -> None:
    """Writes that an attempt starts, and what it starts with."""
    try:
        # A sign of life of the attempt before this one: the last, if it died.
        last_alive = run.directory.metrics.stat().st_mtime
    except OSError:
        last_alive = None
    began, supervised = run.clock.began, restarted()
    run.events.write("start", began=began, last_alive=last_alive, supervised=supervised, **facts(run.program))
    trunk = run.past.recorded.get("trunk")
    if trunk and not sequences_before(read_jsonl(run.directory.events)):
        # The event that said so is lost.
        run.events.write("branch", **trunk)


def announce_origin(run: Run, restored: Restored | None, sequences: int, seconds: float, bad: bool) -> None:
    """Writes where the state came from, and says what a reader must know of it.

    Args:
      restored: the checkpoint that it came from; None: the run's first state.
      sequences: the data stream's position there.
      seconds: that making or reading the state took.
      bad: whether a bad checkpoint was found.
    """
    first, trunk = run.past.first, run.past.trunk
    if restored:
        run.events.write("restore", step=restored.step, seconds=seconds, verified=restored.verified)
        run.events.write("resume", step=restored.step)
        if not restored.verified:
            run.say(f"checkpoint {restored.step} has no fingerprints: taken as it is, unverified")
    elif run.past.resuming and (bad or run.directory.metrics.exists()):
        none = "NO GOOD CHECKPOINT IS LEFT" if bad else "no checkpoint"
        run.say(f"{none} in {run.directory.path}: starting again from step {first}")
    if trunk and not restored:
        run.say(f"begins from step {first} of {trunk.directory.path}")
        changed = trunk.differences(run.config)
        where = {"run": str(trunk.directory.path), "sequences": sequences, "changed": changed}
        run.events.write("branch", step=first, seconds=seconds, **where)


def announce_compiled(run: Run, seconds: float) -> None:
    """Writes that the train step is compiled, and what it needs."""
    batch_size, needed = run.stages.newest
    run.events.write("compile", seconds=seconds, batch_size=batch_size, memory_bytes=needed)


def introduce(run: Run) -> None:
    """Says what is about to be trained, and what may not be what is wanted."""
    run.say(headline(run.program, run.position.start))
    for line in warnings(run.program):
        run.say(f"warning: {line}")


def conclude(run: Run, params: Any) -> None:
    """Says what a run that is finished leaves: a sampled passage, what the devices drew, and where everything is."""
    config = run.config
    prompt, tokens = config.evaluation.sample_prompt, config.evaluation.sample_tokens
    if prompt:
        with run.pause("sampling", "sample"):
            passage = sample(run.program.arch, params, run.stream.tokenizer, prompt, tokens, seed=config.seed)
        run.clock.write(run.events)
        run.console.rule("sampled")
        run.say(prompt + passage)
        run.console.rule()
    if run.energy:
        sequences = run.program.clockwork.batches.sequences(run.length)
        run.say(energy_line(run.energy.totals(), run.own_tokens(sequences)))
    run.say(f"run directory: {run.directory.path}")


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
