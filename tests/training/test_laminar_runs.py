"""What real runs amount to: good ones are laminar, and each broken one is called so, with the reason."""

import json
import random

import jax
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.conditioning.laminar import LAMINAR, STAGNANT, TURBULENT
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.runs.directory import RunDirectory
from blobjax.training import flow_summary
from blobjax.training.recorder import named
from tests.tiny import tiny

STEPS, EVERY = 100, 10
ADAM = "optimizer={name: adamw, learning_rate: 3.0e-3}"
# A small model's gradients, brought to the size of a large one's.
SMALL_GRADIENTS = ("conditioning.precision=float16", "conditioning.loss_multiplier=1e-4")
HEALTHY = {
    "float32": (ADAM,),
    "bfloat16": (ADAM, "conditioning.precision=bfloat16"),
    "muon": ("optimizer={name: muon, learning_rate: 8.0e-3}", "model.activation=relu2"),
    # Squared ReLU leaves units without a gradient, and no product flushed it.
    "mxfp8 with dead units": (
        ADAM,
        "model.activation=relu2",
        "conditioning.precision=mxfp8",
        "conditioning.simulate=true",
    ),
    "float16 with dead units": (
        ADAM,
        "model.activation=relu2",
        "conditioning.precision=float16",
        "conditioning.loss_multiplier=1000",
    ),
    "scaled float16": (ADAM, *SMALL_GRADIENTS, "conditioning.loss_scaling.kind=dynamic"),
}
BROKEN = {
    "learning rate 0.3": ((ADAM, "optimizer.learning_rate=0.3"), TURBULENT, "update_ratio reached"),
    "no QK-norm at 0.05": (
        (ADAM, "optimizer.learning_rate=0.05", "conditioning.qk_norm=false"),
        TURBULENT,
        "update_ratio reached",
    ),
    "raw float16": ((ADAM, *SMALL_GRADIENTS), TURBULENT, "grad_flush_fraction reached"),
    "bfloat16 rounded to nearest": (
        (ADAM, "optimizer.learning_rate=1e-5", "conditioning.precision=bfloat16_params"),
        STAGNANT,
        "update_lost_fraction is",
    ),
    "noise": ((ADAM,), STAGNANT, "cross_entropy stays at"),
}


def conclude(directory: RunDirectory, *overrides: str) -> dict:
    """Trains on one device and writes what a run writes of it; then what the end of a run makes of that."""
    settings = tiny(
        f"duration.length={STEPS} steps", "duration.warmup=5 steps", f"conditioning.probe_every={EVERY}", *overrides
    )
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), stream.tokens_per_epoch)
    step, state = program.lower_train_step().compile(), program.init()
    batches = global_batches(stream, 0, program.batch_sharding, program.shape_BT)
    lines = []
    for number in range(1, STEPS + 1):
        state, metrics = step(state, next(batches))
        metrics = jax.device_get(metrics)
        flow = named(metrics.pop("flow"))
        line = {"step": number} | {name: float(value) for name, value in metrics.items()}
        lines.append(line | (flow if number % EVERY == 0 else {}))
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = flow_summary.conclude(directory, settings, stream)
    assert found is not None
    return found


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_laminar(tmp_path, name):
    found = conclude(RunDirectory(tmp_path), *HEALTHY[name])
    assert found["sentences"] == []
    assert found["verdict"] == LAMINAR


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_called_so(tmp_path, name):
    overrides, verdict, reason = BROKEN[name]
    if name == "noise":
        draw = random.Random(0)
        documents = ("".join(chr(draw.randrange(33, 127)) for _ in range(200)) for _ in range(1000))
        (tmp_path / "noise.txt").write_text("\n\n".join(documents))
        source = f"data.sources={{noise: {{path: {tmp_path}/noise.txt}}}}"
        overrides += (
            source,
            "data.mixture={noise: 1.0}",
            f"data.prepared_dir={tmp_path}/prepared",
            "data.held_out_fraction=0.2",
        )
    found = conclude(RunDirectory(tmp_path), *overrides)
    assert found["verdict"] == verdict
    assert any(reason in sentence for sentence in found["sentences"])
    assert json.loads((tmp_path / "flow.json").read_text())["verdict"] == verdict
