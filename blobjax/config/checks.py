"""What must hold between keys. Each check is a line with full key paths, the arithmetic and what to change.

They live outside the sections' own validation so that all of them are found at once, whatever else is wrong.
"""

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from blobjax.config.closest import suggest
from blobjax.config.errors import brief
from blobjax.config.paths import url_problem
from blobjax.config.schema.conditioning import MATMUL_FORMATS

if TYPE_CHECKING:
    from blobjax.config.schema import Config, Mesh, Model

# A domain's name becomes part of the names of folders and metrics.
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PROGRESS = "steps, tokens, flops, tokens/param or epochs"


def problems(config: "Config") -> list[str]:
    """One line for each thing that does not fit together; empty when all does."""
    return [
        *_paths(config),
        *_model(config.model),
        *_mesh(config.compute.mesh),
        *_data(config),
        *_batch(config),
        *_durations(config),
        *_checkpoint(config),
        *_switches(config),
        *_faults(config),
        *_parametrisation(config),
        *_matmul_formats(config),
        *_reliability(config),
    ]


def _paths(config: "Config") -> list[str]:
    origin, sources = config.duration.start_from, config.data.sources.items()
    paths = {
        "logging.run_dir": config.logging.run_dir,
        "data.prepared_dir": config.data.prepared_dir,
        "data.tokenizer": config.data.tokenizer,
        "compute.compilation_cache": config.compute.compilation_cache,
        "duration.start_from": str(origin) if origin is not None else "",
        **{f"data.sources.{name}.path": source.path for name, source in sources},
    }
    return [problem for key, path in paths.items() if (problem := url_problem(path, key))]


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
    data, model = config.data, config.model
    found = [
        f"data.mixture: a domain's name has at most 100 letters, digits, '.', '_' and '-', a letter or digit first, "
        f"not {brief(name)}"
        for name in data.mixture
        if not _DOMAIN.fullmatch(name)
    ]
    if sum(data.mixture.values()) <= 0:
        found.append("data.mixture has no domain with a positive weight")
    if data.seq_len > model.max_seq_len:
        found.append(
            f"data.seq_len {data.seq_len} is longer than the {model.max_seq_len} tokens of model.max_seq_len that the "
            "rotary embeddings are set for; lower one or raise the other"
        )
    for name in data.mixture:
        examples = name in data.sources and data.sources[name].kind == "examples"
        if config.objective.kind == "supervised" and not examples:
            found.append(
                f"objective.kind supervised learns answers, and domain {brief(name)} has none; give prompts and "
                f"answers as data.sources.{name} of the kind examples, or set objective.kind=next_token"
            )
        if config.objective.kind != "supervised" and examples:
            found.append(
                f"data.sources.{name}.kind examples is for objective.kind supervised, not {config.objective.kind}; set "
                "objective.kind=supervised"
            )
    if data.tokenizer == "bytes" and model.vocab_size < 256:
        found.append(f"model.vocab_size {model.vocab_size} is smaller than the byte tokenizer's 256 (data.tokenizer)")
    return found


def _batch(config: "Config") -> list[str]:
    found = []
    batch, parts = config.duration.global_batch_size, config.compute.gradient_accumulation
    if batch % parts:
        found.append(
            f"duration.global_batch_size {batch} does not divide into compute.gradient_accumulation {parts} parts "
            f"({batch} / {parts} = {batch / parts:.2f})"
        )
    if not config.duration.batch_warmup.amount:
        return found
    start, halves = config.duration.batch_start, [batch]
    while halves[-1] % 2 == 0:
        halves.append(halves[-1] // 2)
    usable = " or ".join(str(half) for half in reversed(halves[1:]) if half % parts == 0)
    instead = f"start with {usable}" if usable else "set duration.batch_warmup='0 steps'"
    if start not in halves[1:]:
        found.append(
            f"duration.batch_start {start} is not duration.global_batch_size {batch} halved some times "
            f"({batch} / {start} = {batch / start:.2f}), and duration.batch_warmup doubles it; {instead}"
        )
    elif start % parts:
        found.append(
            f"duration.batch_start {start} does not divide into compute.gradient_accumulation {parts} parts "
            f"({start} / {parts} = {start / parts:.2f}); {instead}"
        )
    return found


def _durations(config: "Config") -> list[str]:
    found = []
    length, limit = config.duration.length, config.duration.wall_clock_limit
    if limit is not None and not limit.seconds:
        found.append(f"duration.wall_clock_limit '{limit}' is not a time such as '2 hours'")
    in_progress = {
        "duration.length": length,
        "duration.warmup": config.duration.warmup,
        "duration.seq_len_warmup": config.duration.seq_len_warmup,
        "duration.batch_warmup": config.duration.batch_warmup,
        "optimizer.decay": config.optimizer.decay,
        "evaluation.every": config.evaluation.every,
        "logging.every": config.logging.every,
    }
    for key, duration in in_progress.items():
        if duration.seconds is not None:
            share = "" if key in ("duration.length", "duration.batch_warmup") else ", or a percentage of the run"
            found.append(f"{key} '{duration}' is wall-clock time; give {_PROGRESS}{share}")
    saves = [("checkpoint.every", each) for each in config.checkpoint.every.parts]
    for key, duration in [*in_progress.items(), *saves]:
        may_be_zero = key.endswith("warmup") or key == "optimizer.decay"
        if not duration.amount and not may_be_zero:
            found.append(f"{key} '{duration}' must be more than 0")
        if duration.unit == "%" and duration.amount > 100:
            found.append(f"{key} '{duration}' is more than the whole run")
    if length.unit == "%":
        found.append(f"duration.length cannot be a percentage of itself; give {_PROGRESS}")
    if config.duration.batch_warmup.unit == "%":
        found.append(
            "duration.batch_warmup cannot be a percentage of the steps in duration.length, which depend on it; give "
            + _PROGRESS
        )
    origin = config.duration.start_from
    if origin is not None and origin.point.unit == "%" and origin.point.amount >= 100:
        found.append(f"duration.start_from '{origin}' is the end of this run; give a point before it, such as 80%")
    start, longest = config.duration.seq_len_start, config.data.seq_len
    if config.duration.seq_len_warmup.amount and start >= longest:
        found.append(
            f"duration.seq_len_start {start} is not below data.seq_len {longest}, so there is nothing to warm up; "
            "lower it, or set duration.seq_len_warmup='0 steps'"
        )
    first, last = config.logging.profile_steps or (0, 0)
    if config.logging.profile_steps and first >= last:
        found.append(f"logging.profile_steps: the last step {last} must come after the first {first}")
    return found


def _checkpoint(config: "Config") -> list[str]:
    found = []
    limits = {"stall_limit": config.checkpoint.stall_limit, "write_limit": config.checkpoint.write_limit}
    for key, limit in limits.items():
        if not limit.seconds:
            found.append(f"checkpoint.{key} '{limit}' is not a time such as '10 minutes'")
    best = config.checkpoint.keep_best
    if best is not None:
        names = ("cross_entropy", "perplexity", "bits_per_byte")
        known = [f"eval/{domain}/{name}" for domain in config.data.mixture for name in names]
        if best.metric not in known:
            found.append(
                f"checkpoint.keep_best.metric: '{best.metric}' is none of what is evaluated; "
                + suggest(best.metric, known)
            )
    return found


def _switches(config: "Config") -> list[str]:
    found = []
    rounding, precision = config.conditioning.parameter_rounding, config.conditioning.precision
    if rounding != "nearest" and precision != "bfloat16_params":
        found.append(
            f"conditioning.parameter_rounding {rounding} is for parameters in bfloat16, and conditioning.precision "
            f"{precision} keeps them in float32; set conditioning.precision=bfloat16_params, or leave it at nearest"
        )
    scaling = config.conditioning.loss_scaling
    if scaling.kind != "none" and precision != "float16":
        found.append(
            f"conditioning.loss_scaling.kind {scaling.kind} brings gradients into float16's range, and those of "
            f"conditioning.precision {precision} have float32's; set conditioning.precision=float16, or "
            "conditioning.loss_scaling.kind=none"
        )
    if scaling.kind == "dynamic" and scaling.floor > scaling.initial:
        found.append(
            f"conditioning.loss_scaling.floor {scaling.floor} is above conditioning.loss_scaling.initial "
            f"{scaling.initial}; lower one or raise the other"
        )
    clip = config.conditioning.qk_clip
    if clip and not config.conditioning.probe_every:
        found.append(
            f"conditioning.qk_clip {clip:g} acts on attention logits that conditioning.probe_every 0 never measures; "
            "set conditioning.probe_every=1 to act at every step, as in the paper"
        )
    if clip and config.conditioning.qk_norm:
        found.append(
            f"conditioning.qk_clip {clip:g} scales query and key weights, which conditioning.qk_norm undoes; turn one "
            "of them off"
        )
    if config.optimizer.update_clipping and config.optimizer.name == "lion":
        found.append(
            "optimizer.update_clipping measures Adam's second moment, and optimizer.name lion has none; turn it off"
        )
    if not config.optimizer.muon_bias_correction and config.optimizer.name != "muon":
        found.append(
            f"optimizer.muon_bias_correction is for optimizer.name muon, not {config.optimizer.name}; leave it out"
        )
    return found


def _faults(config: "Config") -> list[str]:
    return [
        f"faults.{kind}: the last sequence {window[1]} is excluded, so it must come after the first {window[0]}"
        for kind in ("nan", "poison")
        if (window := getattr(config.faults, kind)) is not None and window[0] >= window[1]
    ]


def _parametrisation(config: "Config") -> list[str]:
    found = []
    p, model = config.conditioning.parametrisation, config.model
    section = "conditioning.parametrisation"
    if p.kind == "standard":
        keys = ("base_width", "base_depth", "base_d_head", "base_d_ff")
        given = [f"{section}.{key}" for key in keys if getattr(p, key)]
        if given:
            found.append(
                f"{' and '.join(given)} {'say' if len(given) > 1 else 'says'} what to scale from, and {section}.kind "
                f"standard scales nothing; set {section}.kind=mup or completep, or leave it out"
            )
        return found
    if not p.base_width:
        found.append(
            f"{section}.kind {p.kind} needs {section}.base_width, the model.d_model that optimizer.learning_rate was "
            f"found at (model.d_model {model.d_model} itself if it was this one)"
        )
    if p.kind == "completep" and not p.base_depth:
        found.append(
            f"{section}.kind completep needs {section}.base_depth, the model.n_layers that optimizer.learning_rate was "
            f"found at (model.n_layers {model.n_layers} itself if it was this one)"
        )
    if p.kind == "mup" and p.base_depth:
        found.append(
            f"{section}.base_depth {p.base_depth} is given, and {section}.kind mup knows no depth; set "
            f"{section}.kind=completep, or leave it out"
        )
    if p.kind == "completep" and config.conditioning.norm_placement == "post":
        found.append(
            f"{section}.kind completep is for residual streams that are not normalised on their way, and "
            "conditioning.norm_placement post does so after each sum; set conditioning.norm_placement=pre"
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
    rounding, probed = conditioning.scale_rounding, conditioning.probe_format
    if rounding != "up" and not any(name.startswith("mx") for name in (*names, probed)):
        found.append(
            f"conditioning.scale_rounding {rounding} is for mx formats, and neither conditioning.precision "
            f"{conditioning.precision} nor conditioning.probe_format {probed} is one; leave it out"
        )
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
    can_scale = {"current": MATMUL_FORMATS, "blocks": ("int8", "fp8")}[scaling]
    found += [
        f"conditioning.matmul_scaling {scaling} is for {' and '.join(can_scale)}, and {name} has scales of its own; "
        "set conditioning.matmul_scaling=current"
        for name in names
        if name not in can_scale
    ]
    return found


def _reliability(config: "Config") -> list[str]:
    times = {"grace": config.reliability.grace, "hang_limit": config.reliability.hang_limit}
    found = [
        f"reliability.{key} '{duration}' is not a time such as '25 seconds'"
        for key, duration in times.items()
        if duration is not None and not duration.seconds
    ]
    limit = config.reliability.hang_limit
    if limit is not None and 0 < (limit.seconds or 0) < 1:
        found.append(f"reliability.hang_limit '{limit}' is shorter than a second, in which nothing starts; null: never")
    return found
