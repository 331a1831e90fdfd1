"""What must hold between keys. Each check is a line with full key paths, the arithmetic and what to change.

They live outside the sections' own validation so that all of them are found at once, whatever else is wrong.
"""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from blobjax.config.schema.conditioning import MATMUL_FORMATS

if TYPE_CHECKING:
    from blobjax.config.schema import Config, Mesh, Model

_PROGRESS = "steps, tokens, flops, tokens/param or epochs"


def problems(config: "Config") -> list[str]:
    """One line for each thing that does not fit together; empty when all does."""
    return [
        *_model(config.model),
        *_mesh(config.compute.mesh),
        *_data(config),
        *_batch(config),
        *_durations(config),
        *_switches(config),
        *_matmul_formats(config),
    ]


def _model(model: "Model") -> list[str]:
    found = []
    if not model.d_head:  # it could not be derived
        found.append(
            f"model.d_model {model.d_model} is not a multiple of model.n_heads {model.n_heads} "
            f"({model.d_model} / {model.n_heads} = {model.d_model / model.n_heads:.2f}); "
            "change one, or give model.d_head"
        )
    if model.n_heads % model.n_kv_heads:
        found.append(
            f"model.n_heads {model.n_heads} is not a multiple of model.n_kv_heads {model.n_kv_heads} "
            f"({model.n_heads} / {model.n_kv_heads} = {model.n_heads / model.n_kv_heads:.2f})"
        )
    if model.d_head % 2:
        found.append(f"model.d_head {model.d_head} is odd; rotary embeddings turn pairs of features, so make it even")
    scaling = model.rope.scaling
    if scaling is not None and scaling.high_freq_factor <= scaling.low_freq_factor:
        found.append(
            f"model.rope.scaling.high_freq_factor {scaling.high_freq_factor} must be larger than "
            f"model.rope.scaling.low_freq_factor {scaling.low_freq_factor}"
        )
    return found


def _mesh(mesh: "Mesh") -> list[str]:
    sizes = mesh.model_dump()
    found = [
        f"compute.mesh.{axis} is a positive number, or -1 for the devices that are left; not 0"
        for axis, size in sizes.items()
        if size == 0
    ]
    free = [f"compute.mesh.{axis}" for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        found.append(f"only one mesh axis may be -1 (the devices that are left), not {' and '.join(free)}")
    return found


def _data(config: "Config") -> list[str]:
    found = []
    data, model = config.data, config.model
    if sum(data.mixture.values()) <= 0:
        found.append("data.mixture has no domain with a positive weight")
    if data.seq_len > model.max_seq_len:
        found.append(
            f"data.seq_len {data.seq_len} is longer than the {model.max_seq_len} tokens of model.max_seq_len that the "
            "rotary embeddings are set for; lower one or raise the other"
        )
    if data.tokenizer == "bytes" and model.vocab_size < 256:
        found.append(f"model.vocab_size {model.vocab_size} is smaller than the byte tokenizer's 256 (data.tokenizer)")
    return found


def _batch(config: "Config") -> list[str]:
    batch, parts = config.duration.global_batch_size, config.compute.gradient_accumulation
    if batch % parts == 0:
        return []
    return [
        f"duration.global_batch_size {batch} does not divide into compute.gradient_accumulation {parts} parts "
        f"({batch} / {parts} = {batch / parts:.2f})"
    ]


def _durations(config: "Config") -> list[str]:
    found = []
    length, limit = config.duration.length, config.duration.wall_clock_limit
    if limit is not None and not limit.seconds:
        found.append(f"duration.wall_clock_limit '{limit}' is not a time such as '2 hours'")
    in_progress = {
        "duration.length": length,
        "duration.warmup": config.duration.warmup,
        "optimizer.decay": config.optimizer.decay,
        "evaluation.every": config.evaluation.every,
        "logging.every": config.logging.every,
    }
    for key, duration in in_progress.items():
        if duration.seconds is not None:
            share = "" if key == "duration.length" else ", or a percentage of the run"
            found.append(f"{key} '{duration}' is wall-clock time; give {_PROGRESS}{share}")
    for key, duration in {**in_progress, "checkpoint.every": config.checkpoint.every}.items():
        may_be_zero = key in ("duration.warmup", "optimizer.decay")
        if not duration.amount and not may_be_zero:
            found.append(f"{key} '{duration}' must be more than 0")
        if duration.unit == "%" and duration.amount > 100:
            found.append(f"{key} '{duration}' is more than the whole run")
    if length.unit == "%":
        found.append(f"duration.length cannot be a percentage of itself; give {_PROGRESS}")
    first, last = config.logging.profile_steps or (0, 0)
    if config.logging.profile_steps and first >= last:
        found.append(f"logging.profile_steps: the last step {last} must come after the first {first}")
    return found


def _switches(config: "Config") -> list[str]:
    found = []
    rounding, precision = config.conditioning.parameter_rounding, config.conditioning.precision
    if rounding != "nearest" and precision != "bfloat16_params":
        found.append(
            f"conditioning.parameter_rounding {rounding} is for parameters in bfloat16, and conditioning.precision "
            f"{precision} keeps them in float32; set conditioning.precision=bfloat16_params, or leave it at nearest"
        )
    if config.optimizer.update_clipping and config.optimizer.name == "lion":
        found.append(
            "optimizer.update_clipping measures Adam's second moment, and optimizer.name lion has none; turn it off"
        )
    return found


def _matmul_formats(config: "Config") -> list[str]:
    conditioning, paths = config.conditioning, config.model.products
    found = [
        f"conditioning.precision_overrides: '{pattern}' matches no product with weights; there are {', '.join(paths)}"
        for pattern in conditioning.precision_overrides
        if not any(fnmatchcase(path, pattern) for path in paths)
    ]
    if conditioning.float32_head and "output" in conditioning.precision_overrides:
        found.append("conditioning.float32_head and conditioning.precision_overrides both name output; leave one")
    formats = {path: conditioning.precision_of(path) for path in paths}
    formats = {path: name for path, name in formats.items() if name in MATMUL_FORMATS}
    names = [name for name in MATMUL_FORMATS if name in formats.values()]
    scaling = conditioning.matmul_scaling
    if not names:
        switches = {"simulate": conditioning.simulate, f"matmul_scaling {scaling}": scaling != "current"}
        return found + [
            f"conditioning.{switch} is for products in {', '.join(MATMUL_FORMATS)}, and conditioning.precision "
            f"{conditioning.precision} has none; choose one of these or leave conditioning.{switch.split()[0]} out"
            for switch, on in switches.items()
            if on
        ]
    if not conditioning.simulate:
        found += [
            f"conditioning.precision {name} exists in simulation only; set conditioning.simulate=true"
            for name in names
            if name not in ("int8", "fp8")
        ]
    can_scale = {"current": MATMUL_FORMATS, "blocks": ("int8", "fp8"), "delayed": ("fp8",)}[scaling]
    found += [
        f"conditioning.matmul_scaling {scaling} is for {' and '.join(can_scale)}, and {name} "
        f"{'is scaled by the current largest magnitude' if name == 'int8' else 'has scales of its own'}; "
        "set conditioning.matmul_scaling=current"
        for name in names
        if name not in can_scale
    ]
    if scaling == "delayed":
        if config.compute.loss_chunk_tokens and "output" in formats:
            found.append(
                "conditioning.matmul_scaling delayed records one largest magnitude a step, and "
                "compute.loss_chunk_tokens makes many output products of it; set compute.loss_chunk_tokens=0 or "
                "conditioning.precision_overrides.output=bfloat16"
            )
        if conditioning.precision == "bfloat16_params":
            found.append(
                "conditioning.matmul_scaling delayed keeps its scales among the parameters, which "
                "conditioning.precision bfloat16_params rounds; set conditioning.precision=bfloat16"
            )
    return found
