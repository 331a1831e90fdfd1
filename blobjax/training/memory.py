"""Whether a run fits into the memory of its devices; one that does not is refused in one line.

The state's size is known before compiling, and checked before anything is allocated. What the compiled step needs
besides (activations, gradients, logits) is the compiler's own count, and exact; it is checked before the step runs. By
then the state has been made or restored, which happens while the step compiles, and a bad checkpoint that was met on
the way has been quarantined. What else a run allocates, such as evaluation, is no larger than a step.
"""

from typing import Any

import jax

from blobjax.compute.memory import capacity
from blobjax.config import Config
from blobjax.config.sizes import in_words
from blobjax.processes.leaving import is_out_of_memory
from blobjax.program.program import Program
from blobjax.program.state import bytes_on_device


def memory_bytes(compiled: Any) -> dict[str, int]:
    """What a compiled step takes of one device, as the compiler laid it out; empty where it does not tell."""
    said = compiled.memory_analysis()
    if said is None:
        return {}
    return {"arguments": said.argument_size_in_bytes, "temporaries": said.temp_size_in_bytes}


def state_problem(program: Program) -> str:
    """Why a run's state alone does not fit, and what would help, in one line; empty if it fits."""
    device, needed = jax.local_devices()[0], bytes_on_device(program.state)
    has = capacity(device)
    if has is None or needed <= has:
        return ""
    return (
        f"parameters and optimizer state take {in_words(needed)} of each device, and {device.device_kind} has "
        f"{in_words(has)}; {_smaller_state(program.config)}"
    )


def step_problem(program: Program, batch_size: int, compiled: Any) -> str:
    """Why a compiled step does not fit, and what would help, in one line; empty if it fits.

    Args:
      batch_size: sequences of the step.
    """
    device, needed = jax.local_devices()[0], memory_bytes(compiled)
    has = capacity(device)
    if has is None or sum(needed.values()) <= has:
        return ""
    return (
        f"a step takes {in_words(sum(needed.values()))} of each device ({_parts(needed)}), and {device.device_kind} "
        f"has {in_words(has)}; {knobs(program, batch_size, needed, has)}"
    )


def ran_out(program: Program, batch_size: int, needed: dict[str, int], error: BaseException) -> str:
    """One line for an allocation that failed while a run was under way; empty if the error is another.

    Args:
      needed: `memory_bytes` of the compiled step; empty where there is none yet.
    """
    if not is_out_of_memory(error):
        return ""
    device = jax.local_devices()[0]
    has = capacity(device)
    parts = []
    if needed:
        parts.append(f"a step takes {in_words(sum(needed.values()))} of each device ({_parts(needed)})")
    if has is not None:
        parts.append(f"{device.device_kind} has {in_words(has)}, which it may share with others")
    return f"out of memory: {'; '.join([*parts, knobs(program, batch_size, needed, has)])}"


def knobs(program: Program, batch_size: int, needed: dict[str, int], has: int | None) -> str:
    """The two or three settings that would make a step smaller, those that help most first.

    The gradient accumulation among them is one that the run's batches and devices allow, and an estimate: temporaries
    are taken to be proportional to the part of the batch that is computed at once.

    Args:
      batch_size: sequences of the step.
      needed: `memory_bytes` of the step.
      has: bytes of a device; None where that is not known.
    """
    config = program.config
    temporaries, state = needed.get("temporaries", 0), needed.get("arguments", 0)
    if has is not None and state > has:
        return _smaller_state(config)
    parts = config.compute.gradient_accumulation
    if has is not None:
        wanted, ways = parts * temporaries / max(has - state, 1), program.layout.ways("batch")
        # As `sharding.check_batch` asks of the batch, and of the smaller ones before it.
        sizes = (config.duration.global_batch_size, *config.duration.smaller_batches)
        allowed = (n for n in range(parts, batch_size + 1) if not any(size % (n * ways) for size in sizes))
        parts = next((n for n in allowed if n >= wanted), 0)
    more = parts > config.compute.gradient_accumulation
    found = [f"compute.gradient_accumulation={parts} (estimated)"] if more else []
    if config.compute.remat in ("none", "attention", "dots"):
        found.append("compute.remat=full")
    tokens = batch_size * config.data.seq_len // config.compute.gradient_accumulation
    if not 0 < config.compute.loss_chunk_tokens < tokens:
        found.append("compute.loss_chunk_tokens=1024")
    found.append("a smaller duration.global_batch_size or data.seq_len")
    return f"try {', '.join(found[:2])} or {found[2]}" if len(found) > 2 else f"try {' or '.join(found)}"


def _smaller_state(config: Config) -> str:
    sgd = "" if config.optimizer.name == "lion" else ", optimizer.name=lion (one moment instead of two)"
    return f"shard it over more devices (compute.mesh.fsdp=-1){sgd} or train a smaller model (model.*, --size)"


def _parts(needed: dict[str, int]) -> str:
    return ", ".join(f"{name} {in_words(size)}" for name, size in needed.items())
