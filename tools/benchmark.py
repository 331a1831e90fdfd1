"""Measures the train step of a named config on synthetic batches and prints JSON. Needs neither Grain nor a corpus.

    python tools/benchmark.py laptop
    python tools/benchmark.py laptop compute.scan_layers=true --steps 50 --label scanned

The loop, the step and the checkpointer are the ones a run uses; only the batches are made up.
"""

import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from blobjax.config import BadInputError, load  # noqa: E402
from blobjax.processes import streams  # noqa: E402


def main() -> int:
    streams.open_standard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a path or a name in configs/")
    parser.add_argument("overrides", nargs="*", help="dotted.key=value")
    parser.add_argument("--steps", type=int, default=30, help="timed steps (default 30)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those (default 3)")
    parser.add_argument("--label", default="", help="copied into the output")
    arguments = parser.parse_intermixed_args()
    if arguments.steps < 2 or arguments.warmup < 1:
        parser.error("--steps must be at least 2 and --warmup at least 1")
    try:
        # Standard output is for the JSON alone.
        with contextlib.redirect_stdout(io.StringIO()):
            result = measure(arguments.config, arguments.overrides, arguments.steps, arguments.warmup)
    except BadInputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 2
    print(json.dumps({"label": arguments.label, **result}, indent=2))
    return 0


def measure(name: str, overrides: list[str], steps: int, warmup: int) -> dict:
    """Figures of one config.

    Args:
      name: config to measure.
      overrides: dotted overrides.
      steps: timed steps.
      warmup: untimed steps before them.

    Returns:
      JSON-able figures; seconds, bytes and tokens per second.
    """
    config = load(name, overrides)
    from blobjax.compute import accelerators, runtime

    runtime.configure(config.compute)
    import jax
    import numpy as np

    from blobjax.checkpointing.checkpointer import Checkpointer
    from blobjax.compute.flops import param_count
    from blobjax.compute.sharding import make_layout
    from blobjax.program.batches import local_rows, to_global
    from blobjax.program.program import make_program
    from blobjax.training.loop import StepReport, run

    imported = time.perf_counter()
    # An epoch has no meaning here; durations in epochs come out as if the data were one batch.
    layout = make_layout(config)
    program = make_program(config, layout, config.duration.global_batch_size * config.data.seq_len)
    began = time.perf_counter()
    state = jax.block_until_ready(program.init())
    init_seconds = time.perf_counter() - began
    began = time.perf_counter()
    lowered = program.lower_train_step()
    lower_seconds = time.perf_counter() - began
    began = time.perf_counter()
    train_step = lowered.compile()
    compile_seconds = time.perf_counter() - began

    B, T = program.shape_BT
    rows = local_rows(program.batch_sharding, (B, T))
    random = np.random.default_rng(0)

    def batches():
        while True:
            tokens = random.integers(1, config.model.vocab_size, (len(rows), T + 1), dtype=np.int32)
            ones = np.ones((len(rows), T), np.int32)
            local = {
                "tokens": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "segments": ones,
                "positions": np.broadcast_to(np.arange(T, dtype=np.int32), ones.shape),
                "mask": ones.astype(np.float32),
                "target_bytes": ones,
            }
            yield to_global(local, rows, program.batch_sharding, (B, T))

    reports: list[StepReport] = []
    state = run(train_step, state, batches(), range(1, 2), reports.append, [])
    first_step = time.perf_counter()
    state = run(train_step, state, batches(), range(2, warmup + 1), reports.append, [])
    reports.clear()
    wall, cpu = time.perf_counter(), time.thread_time()
    state = run(train_step, state, batches(), range(warmup + 1, warmup + steps + 1), reports.append, [])
    # Processor time of the loop's own thread: dispatch, batches and bookkeeping, not the waiting for the device.
    python_seconds = (time.thread_time() - cpu) / steps
    wall = (time.perf_counter() - wall) / steps

    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder), config.checkpoint)
        # As a run does at its start, beside its first steps.
        checkpointer.prepare(state)
        checkpointer.probe(None)  # behind it in the same queue
        began = time.perf_counter()
        checkpointer.save(state, warmup + steps, 0, "benchmark")
        stall = time.perf_counter() - began
        checkpointer.close()
        commit = time.perf_counter() - began

    # The first report after a start counts from the loop's beginning, so it is a step like any other.
    seconds = np.array([report.seconds for report in reports])
    median = float(np.median(seconds))
    device = jax.devices()[0]
    peak = accelerators.peak_flops(device)
    tokens_per_second = B * T / median
    memory = [d.memory_stats() for d in jax.local_devices()] if device.platform != "cpu" else []
    return {
        "config": name,
        "overrides": overrides,
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "mesh": {axis: size for axis, size in layout.mesh.shape.items() if size > 1},
        "python": platform.python_version(),
        "jax": jax.__version__,
        "params": param_count(config.model, config.conditioning, embeddings=True),
        "tokens_per_step": B * T,
        "tokens_per_second": tokens_per_second,
        "model_flops_per_second": tokens_per_second * program.clockwork.flops_per_token,
        "model_flops_utilization": (
            tokens_per_second * program.clockwork.flops_per_token / (peak * len(jax.devices())) if peak else None
        ),
        "step_seconds": {
            "min": float(seconds.min()),
            "p10": float(np.quantile(seconds, 0.1)),
            "median": median,
            "p90": float(np.quantile(seconds, 0.9)),
            "max": float(seconds.max()),
        },
        "wall_seconds_per_step": wall,
        "python_seconds_per_step": python_seconds,
        "import_seconds": imported - BEGAN,
        "init_seconds": init_seconds,
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "first_step_seconds": first_step - BEGAN,
        "checkpoint_stall_seconds": stall,
        "checkpoint_commit_seconds": commit,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_bytes": max((m["peak_bytes_in_use"] for m in memory if m), default=None),
    }


if __name__ == "__main__":
    sys.exit(main())
