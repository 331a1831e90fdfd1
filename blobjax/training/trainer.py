"""A whole training run: checks first, then state (new or restored), the loop with its hooks, and what came of it."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import jax
from rich.console import Console

import blobjax
from blobjax import data
from blobjax.compute.flops import param_count
from blobjax.compute.runtime import HEARTBEAT_SECONDS
from blobjax.compute.sharding import make_layout, unsharded
from blobjax.config import BadInputError, Config
from blobjax.config.diff import changed_maths
from blobjax.reliability.leaving import failing_in_time
from blobjax.reliability.run_directory import EventLog, RunDirectory
from blobjax.reliability.stopping import RESUMABLE, Stopping
from blobjax.reliability.stragglers import Stragglers
from blobjax.reliability.timers import Every, check_agreement
from blobjax.reliability.watchdog import Watchdog
from blobjax.training import flow_summary
from blobjax.training.batches import Position, training_batches
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.guard_watch import GuardWatch
from blobjax.training.hooks import EvaluateHook, Patient, ProfileHook, SaveHook, StopHook
from blobjax.training.inference import sample
from blobjax.training.landscape import LandscapeHook
from blobjax.training.loop import Hook, StepReport
from blobjax.training.program import Program, make_program
from blobjax.training.progress import PatientConsole
from blobjax.training.recorder import Recorder
from blobjax.training.recovery import Recovery, read_passages, windows
from blobjax.training.snapshots import SnapshotRing
from blobjax.training.stages import Stages
from blobjax.training.step import Batch

FINISHED = 0


def train(config: Config, allow_config_change: bool = False, stopping: Stopping | None = None) -> int:
    """Trains to the config's length, resuming if its run directory holds a run.

    Args:
      config: the run.
      allow_config_change: go on in a run directory whose config had other maths.
      stopping: takes the signals; None: they are left alone.

    Returns:
      The exit code: 0 finished, 75 stopped early but resumable.

    Raises:
      BadInputError: anything about the config, the data, the devices or the run directory that cannot work; nothing has
        been written into the run directory then.
    """
    if stopping is None:
        stopping = Stopping(config.reliability.grace.seconds or 0)
    stopping.join()
    limit = config.reliability.hang_limit
    with Watchdog(limit.seconds if limit else None, jax.process_index()) as watchdog:
        return _train(config, allow_config_change, stopping, watchdog)


def _train(config: Config, allow_config_change: bool, stopping: Stopping, watchdog: Watchdog) -> int:
    began = time.monotonic()
    writes = jax.process_index() == 0
    console = PatientConsole(quiet=not writes)
    directory = RunDirectory(config.logging.run_dir)
    resuming = directory.check(config, allow_config_change)
    _check_wandb(config)
    layout = make_layout(config)
    with data.show_progress() as progress:
        prepared = data.prepare(config, progress)
    stream = data.open_stream(config, prepared)
    passages = read_passages(directory.passed_over)
    stream.passed_over = windows(passages)
    _check_sample(config, stream.tokenizer)
    program = make_program(config, layout, stream.tokens_per_epoch)
    length = program.clockwork.length

    reader = Checkpointer(directory.checkpoints) if resuming else None
    saved = reader.steps() if reader else []
    # Also a barrier: no process may look at the directory while process 0 claims it.
    check_agreement(
        maths=_maths(config),
        data=prepared.fingerprint,
        checkpoints=str(saved[-1:]),
        **{"data passed over": json.dumps(passages)},
    )
    if saved and saved[-1] >= length:
        console.print(
            f"already finished: {directory.path} is at step {saved[-1]} of {length}", highlight=False, soft_wrap=True
        )
        return FINISHED
    # Not before: the others wait for the process that prepares the data, however long it takes.
    watchdog.start("compiling and restoring")
    compile_began = time.monotonic()
    sizes = program.clockwork.batches
    batch_size = sizes.at(saved[-1] + 1 if saved else 1)
    lowered = program.lower_train_step(batch_size)
    restoring = time.monotonic()
    with ThreadPoolExecutor(1) as compiler, _alone_or_in_time():
        # XLA compiles without Python's lock, so the state is made or read meanwhile.
        compiling = compiler.submit(lambda: (lowered.compile(), time.monotonic() - compile_began))
        if reader and saved:
            known = None if allow_config_change else prepared.fingerprint
            state, sequences = reader.restore(saved[-1], program.state, known)
        else:
            state, sequences = program.init(), 0
        ready = time.monotonic()
        compiled, compile_seconds = compiling.result()
    start = int(state.step)
    position = Position(start, sequences, sizes)

    with ExitStack() as stack:
        if writes:
            stack.enter_context(directory.claim(config))
        events = stack.enter_context(EventLog(directory.events if writes else None))
        watchdog.write_to(directory.path, events)
        # Made only now: it clears away unfinished saves, which before the claim might be another run's.
        checkpointer = Checkpointer(directory.checkpoints, config.checkpoint)
        events.write("start", **_facts(program))
        if resuming and not saved and directory.metrics.exists():
            console.print(f"no checkpoint in {directory.path}: starting again from step 0", highlight=False)
        if saved:
            events.write("restore", step=start, seconds=ready - restoring)
            events.write("resume", step=start)
        events.write("compile", seconds=compile_seconds, batch_size=batch_size)
        train_step = Stages(program, {batch_size: compiled}, events)
        console.print(_headline(program, start), highlight=False, soft_wrap=True)
        for line in _warnings(program):
            console.print(f"warning: {line}", highlight=False, soft_wrap=True)

        if writes and config.conditioning.probes:
            # Behind the recorder, so after it has written its last, however the run ends.
            stack.callback(_summarise_flow, directory, config, console)
        recorder = stack.enter_context(Recorder(program, stream, position, directory if writes else None, console))
        save_every = Every(config.checkpoint.every, program.clockwork)
        evaluate_every = Every(config.evaluation.every, program.clockwork)
        save = SaveHook(checkpointer, save_every, length, position, prepared.fingerprint, events)
        save.standing = bool(saved)
        stop = StopHook(stopping, config.duration.wall_clock_limit, began, save, events)
        profile = stack.enter_context(ProfileHook(config.logging.profile_steps, start, directory.profile))
        evaluation = EvaluateHook(program, stream, evaluate_every, recorder, events)
        hooks: list[Hook] = [evaluation, save, stop, profile, train_step]
        if config.conditioning.surveyed:
            hooks.append(LandscapeHook(program, stream, position, directory, recorder, events))
        guard = config.conditioning.guard
        watch = GuardWatch(guard, recorder.say, events) if guard else None
        ring = None
        if watch and guard and guard.rollback:
            ring = SnapshotRing(guard.rollback.snapshots, guard.rollback.snapshot_every, watch)
            hooks.append(ring)
        stragglers = None
        if jax.process_count() > 1 and config.reliability.stragglers_every.amount:
            every = Every(config.reliability.stragglers_every, program.clockwork)
            hooks.append(stragglers := Stragglers(every, events, recorder.say))

        def batches(steps: range) -> Iterator[Batch]:
            return training_batches(stream, position, steps, program.batch_sharding, config.data.seq_len)

        recovery = Recovery(
            program,
            stream,
            position,
            batches,
            passages,
            ring,
            checkpointer,
            save,
            recorder,
            events,
            directory,
            watchdog,
        )

        def report(done: StepReport) -> None:
            watchdog.beat(f"the step after {done.step}")
            if stragglers:
                stragglers.note(done.seconds, done.data_wait, done.device_wait)
            recorder.report(done)
            if watch:
                watch.report(done)

        try:
            try:
                if stopping.agreed():
                    stop.explain(start)
                else:
                    watchdog.beat()
                    with _alone_or_in_time():
                        state = recovery.run(train_step, state, report, [Patient(hook, watchdog) for hook in hooks])
            finally:
                # Whatever ended the loop, a save under way is worth finishing.
                with watchdog.patience("finishing the save"):
                    save.finish()
                    checkpointer.close()
        except BaseException as error:
            events.write("stop", reason=f"{type(error).__name__}: {error}"[:500].removesuffix(": "))
            raise
        stopped = int(state.step)
        finished = stopped == length
        events.write("stop", step=stopped, reason="finished" if finished else stop.reason)
    if not finished:
        kept = ", saved" if stopped > start else ""
        line = f"stopped at step {stopped} of {length} ({stop.reason}){kept}; run the same command to go on"
        console.print(line, highlight=False, soft_wrap=True)
        return RESUMABLE
    with watchdog.patience("sampling"):
        _conclude(program, state.params, stream, console, directory)
    return FINISHED


def _alone_or_in_time() -> AbstractContextManager[None]:
    """What fails here waits for a compilation or a save on its way out; one of several processes not for long."""
    return failing_in_time(HEARTBEAT_SECONDS) if jax.process_count() > 1 else nullcontext()


def _maths(config: Config) -> str:
    """What must be the same on all processes, as text."""
    return "\n".join(changed_maths(Config(), config))


def _check_sample(config: Config, tokenizer: data.Tokenizer) -> None:
    """Finds a passage that cannot be sampled before training rather than after it."""
    wanted = 1 + len(tokenizer.encode(config.evaluation.sample_prompt)) + config.evaluation.sample_tokens
    if config.evaluation.sample_prompt and wanted > config.model.max_seq_len:
        raise BadInputError(
            f"evaluation.sample_prompt and evaluation.sample_tokens {config.evaluation.sample_tokens} make {wanted} "
            f"tokens, more than model.max_seq_len {config.model.max_seq_len}; ask for fewer"
        )


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


def _warnings(program: Program) -> list[str]:
    """What works, but may not be what is wanted."""
    found = [f"{name} is whole on every device of a mesh that could split it" for name in _unsharded(program)]
    conditioning = program.config.conditioning
    if conditioning.precision == "float16" and conditioning.loss_scaling.kind == "none":
        found.append(
            "float16 without loss scaling: small gradients become 0; unless that is what you study, set "
            "conditioning.loss_scaling.kind=dynamic"
        )
    return found


def _unsharded(program: Program) -> list[str]:
    """Large parameters that no rule splits although the mesh has an axis for them."""
    leaves = jax.tree_util.tree_leaves_with_path(program.arch.shapes)
    axes = jax.tree.leaves(program.arch.axes, is_leaf=lambda node: isinstance(node, tuple))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, each)
        for (path, leaf), each in zip(leaves, axes, strict=True)
    }
    return unsharded(program.layout, named)


def _headline(program: Program, start: int) -> str:
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


def _summarise_flow(directory: RunDirectory, config: Config, console: Console) -> None:
    found = flow_summary.conclude(directory, config.model.vocab_size)
    if found is not None:
        flow_summary.show(found, console)


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
        console.print(prompt + passage, highlight=False, markup=False, soft_wrap=True)
        console.rule()
    console.print(f"run directory: {directory.path}", highlight=False, soft_wrap=True)
