"""An objective in one class, trained by the step that knows none by name (docs/objectives.md)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax import data
from blobjax.compute.sharding import make_layout
from blobjax.objectives import OBJECTIVES, make_objective
from blobjax.objectives.next_token import NextToken
from blobjax.program.batches import global_batches
from blobjax.program.program import make_program
from tests.tiny import tiny


class Uncertain(NextToken):
    """Cross-entropy and z-loss, less a hundredth of the entropy."""

    entropy = True

    def parts(self, scores, batch, total):
        bonus = -0.01 * jnp.sum(batch["mask"] * scores.entropy_BC) / total
        return super().parts(scores, batch, total) | {"entropy_bonus": bonus}


def one_step(objective, *overrides: str):
    """Metrics of one step and the parameters after it."""
    settings = tiny("model.n_layers=1", *overrides)
    stream = data.open_stream(settings, data.prepare(settings))
    program = make_program(settings, make_layout(settings, jax.devices()[:1]), stream.tokens_per_epoch)
    program = dataclasses.replace(program, objective=objective(settings))
    batch = next(global_batches(stream, 0, program.batch_sharding, program.shape_BT))
    state, metrics = program.lower_train_step().compile()(program.init(), batch)
    return {name: float(value) for name, value in metrics.items()}, jax.device_get(state.params)


@pytest.fixture(scope="module")
def uncertain():
    return one_step(Uncertain)


def test_a_new_part_is_a_metric_and_changes_the_gradient(uncertain):
    metrics, _ = uncertain
    plain, _ = one_step(NextToken)
    # At the start predictions are nearly uniform over 256 bytes.
    assert metrics["entropy_bonus"] == pytest.approx(-0.01 * np.log(256), rel=0.05)
    assert metrics["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=1e-6)
    assert metrics["loss"] == pytest.approx(plain["loss"] + metrics["entropy_bonus"], rel=1e-5)
    assert metrics["grad_norm"] != plain["grad_norm"]


@pytest.mark.parametrize("cut", ["compute.loss_chunk_tokens=128", "compute.gradient_accumulation=4"])
def test_a_new_part_does_not_depend_on_how_the_batch_is_cut(uncertain, cut):
    metrics, _ = uncertain
    found, _ = one_step(Uncertain, cut)
    # Sums in another order.
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, rel=1e-4)


def test_every_kind_has_an_objective():
    kinds = type(tiny().objective).model_fields["kind"].annotation.__args__
    assert set(kinds) == set(OBJECTIVES)
    assert isinstance(make_objective(tiny()), NextToken)
