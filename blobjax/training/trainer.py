"""A whole training run: checks first, then state (new or restored), the loop with its hooks, and what came of it."""

import math
import time
from typing import Any

import jax
from rich.console import Console

import blobjax
from blobjax import data
from blobjax.compute import accelerators
from blobjax.compute.flops import param_count
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, Config
from blobjax.training.batches import Position, global_batches
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.hooks import EvaluateHook, LimitHook, ProfileHook, SaveHook
from blobjax.training.inference import sample
from blobjax.training.loop import Hook, StepReport, host, run
from blobjax.training.metrics import make_writers
from blobjax.training.program import Program, make_program
from blobjax.training.progress import ProgressLine
from blobjax.training.run_directory import EventLog, RunDirectory
from blobjax.training.timers import Every

FINISHED = 0
RESUMABLE = 75


def train(config: Config, allow_config_change: bool = False) -> int:
    """Trains to the config's length, resuming if its run directory holds a run.

    Args:
      config: the run.
      allow_config_change: go on in a run directory whose config had other maths.

    Returns:
      The exit code: 0 finished, 75 stopped early but resumable.

    Raises:
      BadInputError: anything about the config, the data, the devices or the run directory that cannot work; nothing has
        been written into the run directory then.
    """
    writes = jax.process_index() == 0
    console = Console(quiet=not writes)
    directory = RunDirectory(config.logging.run_dir)
    resuming = directory.check(config, allow_config_change)
    layout = make_layout(config)
    with data.show_progress() as progress:
        prepared = data.prepare(config, progress)
    stream = data.open_stream(config, prepared)
    program = make_program(config, layout, stream.tokens_per_epoch)
    _check_wandb(config)

    length = program.clockwork.length
    if writes:
        directory.claim(config)
    events = EventLog(directory.events if writes else None)
    try:
        events.write("start", **_facts(program))
        checkpointer = Checkpointer(directory.checkpoints, config.checkpoint)
        saved = checkpointer.steps() if resuming else []
        if saved:
            began = time.perf_counter()
            state, sequences = checkpointer.restore(
                saved[-1], program.state, None if allow_config_change else prepared.fingerprint
            )
            events.write("restore", step=saved[-1], seconds=time.perf_counter() - began)
            events.write("resume", step=saved[-1])
        else:
            state, sequences = program.init(), 0
        start = int(state.step)
        position = Position(start, sequences, config.duration.global_batch_size)
        console.print(_headline(program, start), highlight=False, soft_wrap=True)
        if start >= length:
            console.print(f"already finished: {directory.path} is at step {start} of {length}", highlight=False)
            events.write("stop", step=start, reason="finished")
            return FINISHED

        began = time.perf_counter()
        train_step = program.lower_train_step().compile()
        events.write("compile", seconds=time.perf_counter() - began)

        writers = make_writers(config, directory, start) if writes else []
        line = ProgressLine(length, start, console)
        log_every = Every(config.logging.every, program.clockwork)

        def record(step: int, metrics: dict[str, Any]) -> None:
            for writer in writers:
                writer.write(step, metrics)

        def report(done: StepReport) -> None:
            if log_every.due(done.step) or done.step == length:
                metrics = _derive(program, stream, position, done)
                record(done.step, metrics)
                line.update(done.step, metrics)

        save = SaveHook(
            checkpointer,
            Every(config.checkpoint.every, program.clockwork),
            length,
            position,
            prepared.fingerprint,
            events,
        )
        limit = LimitHook(config.duration.wall_clock_limit, save)
        hooks: list[Hook] = [
            EvaluateHook(program, stream, Every(config.evaluation.every, program.clockwork), record, line, events),
            save,
            limit,
            ProfileHook(config.logging.profile_steps, directory.profile),
        ]
        batches = global_batches(stream, sequences, program.batch_sharding, program.shape_BT)
        try:
            state = run(train_step, state, batches, range(start + 1, length + 1), report, hooks)
            checkpointer.close()
        finally:
            line.close()
            for writer in writers:
                writer.close()
        stopped = int(state.step)
        if stopped < length:
            events.write("stop", step=stopped, reason="wall-clock limit")
            console.print(f"stopped at step {stopped} of {length}: the wall-clock limit; run the same command to go on")
            return RESUMABLE
        events.write("stop", step=stopped, reason="finished")
        _conclude(program, state.params, stream, console, directory)
        return FINISHED
    finally:
        events.close()


def _check_wandb(config: Config) -> None:
    """Finds a missing W&B before the run directory is touched."""
    from importlib.util import find_spec

    if config.logging.wandb is not None and find_spec("wandb") is None:
        raise BadInputError("logging.wandb is set but wandb is not installed; pip install 'blobjax[wandb]'")


def _facts(program: Program) -> dict[str, Any]:
    """What a reader of events.jsonl wants to know of an attempt."""
    devices = jax.devices()
    return {
        "versions": {"blobjax": blobjax.__version__, "jax": jax.__version__},
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "mesh": dict(program.layout.mesh.shape),
        "length": program.clockwork.length,
        "tokens_per_step": program.clockwork.tokens_per_step,
        "flops_per_token": program.clockwork.flops_per_token,
    }


def _headline(program: Program, start: int) -> str:
    config = program.config
    count = param_count(config.model, config.conditioning, embeddings=True)
    mesh = " ".join(f"{axis}={size}" for axis, size in program.layout.mesh.shape.items() if size > 1)
    where = f"{len(jax.devices())} × {jax.devices()[0].device_kind}" + (f" ({mesh})" if mesh else "")
    tokens = program.clockwork.length * program.clockwork.tokens_per_step
    resumed = f", resuming at step {start}" if start else ""
    return (
        f"{config.name}: {count / 1e6:,.1f}M parameters on {where}; {program.clockwork.length:,} steps, "
        f"{tokens / 1e6:,.1f}M tokens{resumed}"
    )


def _derive(program: Program, stream: data.Stream, position: Position, done: StepReport) -> dict[str, Any]:
    """A step's metrics as the run directory's readers know them."""
    metrics = host(done.metrics)
    clockwork = program.clockwork
    rate = clockwork.tokens_per_step / done.seconds
    peak = accelerators.peak_flops(jax.devices()[0])
    sequences = position.sequences(done.step)
    return {
        **metrics,
        "perplexity": math.exp(min(metrics["cross_entropy"], 700.0)),
        "tokens": sequences * program.config.data.seq_len,
        "tokens_per_second": rate,
        # None where the chip's peak is not in the table (a CPU): no figure is better than a wrong one.
        "model_flops_utilization": rate * clockwork.flops_per_token / (peak * len(jax.devices())) if peak else None,
        "step_seconds": done.seconds,
        "data_wait_seconds": done.data_wait,
        **{f"data/{domain}/epochs": epochs for domain, epochs in stream.epochs(sequences).items()},
    }


def _conclude(program: Program, params: Any, stream: data.Stream, console: Console, directory: RunDirectory) -> None:
    """The sampled passage and where everything is."""
    prompt = program.config.evaluation.sample_prompt
    if prompt:
        passage = sample(
            program.arch,
            params,
            stream.tokenizer,
            prompt,
            program.config.evaluation.sample_tokens,
            seed=program.config.seed,
        )
        console.rule("sampled")
        console.print(prompt + passage, highlight=False, markup=False)
        console.rule()
    console.print(f"run directory: {directory.path}", highlight=False)
