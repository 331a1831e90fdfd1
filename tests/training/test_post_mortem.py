"""The first bad place: in words, and where numbers really go bad in a model."""

import jax
import jax.numpy as jnp
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.objectives.objective import StreamSource
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from blobjax.training.post_mortem import Examiner, first_bad
from tests.tiny import tiny

NAN, INF = float("nan"), float("inf")
GOOD = {
    "embedding": {"param_rms": 1.0, "residual_rms": 1.0, "grad_rms": 0.1},
    "block_00": {"param_rms": 1.0, "attention_logit_max": 5.0, "residual_rms": 1.0, "grad_rms": 0.1},
    "block_01": {"param_rms": 1.0, "attention_logit_max": 5.0, "residual_rms": 1.0, "grad_rms": 0.1},
    "output": {"param_rms": 1.0, "log_z_mean": -1.0, "grad_rms": 0.1},
}


def changed(**values: float) -> dict:
    """The good probes but for some: `block_01__grad_rms=…`."""
    probes = {place: dict(each) for place, each in GOOD.items()}
    for name, value in values.items():
        place, probe = name.split("__")
        probes[place][probe] = value
    return probes


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        ({"block_00__residual_rms": INF, "block_01__attention_logit_max": NAN}, "block_00 (residual_rms is inf)"),
        ({"block_01__residual_rms": NAN, "block_01__attention_logit_max": NAN}, "block_01 (attention_logit_max is nan"),
        ({"output__log_z_mean": NAN, "embedding__grad_rms": NAN}, "output (log_z_mean is nan)"),
        ({"embedding__grad_rms": NAN, "block_00__grad_rms": NAN}, "block_00 (grad_rms is nan; the forward pass is"),
        (
            {"block_00__grad_rms": 0.5, "block_01__attention_logit_max": 500.0},
            "block_01 (attention_logit_max is 500, 100",
        ),
    ],
)
def test_the_first_place_in_words(bad, wanted):
    assert first_bad(changed(**bad), GOOD, finite=True).startswith(wanted)


def test_a_batch_that_is_not_finite_is_to_blame_for_everything():
    assert first_bad(changed(output__log_z_mean=NAN), GOOD, finite=False).startswith("the batch itself")


@pytest.fixture(scope="module")
def examined():
    """The program of a tiny run, and its examiner; the third step's batch has a NaN."""
    settings = tiny("conditioning.guard={}", "faults.nan=[40, 41]", "model.n_layers=3")
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), stream.tokens_per_epoch)

    def source(steps: range):
        batches = global_batches(stream, 16 * (steps.start - 1), program.batch_sharding, program.shape_BT)
        return StreamSource(batches)

    return program, Examiner(program, source)


def test_a_weight_that_overflows_is_found_in_its_block(examined):
    program, examiner = examined
    good, finite = examiner.probe(program.init(), 1)
    assert finite
    assert list(good) == ["embedding", "block_00", "block_01", "block_02", "output"]
    state = program.init()
    # Finite, but not what it is multiplied with.
    state.params["blocks"]["mlp"]["down"] = state.params["blocks"]["mlp"]["down"].at[1].set(1e38)
    bad, finite = examiner.probe(state, 1)
    assert finite
    assert first_bad(bad, good, finite).startswith("block_01 (")
    assert jnp.isfinite(bad["block_00"]["residual_rms"])
    assert not jnp.isfinite(bad["block_02"]["residual_rms"])


def test_a_batch_with_a_nan_is_found_out(examined):
    program, examiner = examined
    good, _ = examiner.probe(program.init(), 2)
    bad, finite = examiner.probe(program.init(), 3)
    assert first_bad(bad, good, finite).startswith("the batch itself")
