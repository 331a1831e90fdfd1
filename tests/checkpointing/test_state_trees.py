"""The trees of a state that are empty for most objectives: saved where they hold arrays, absent where they do not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.checkpointing import stored
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.checkpointing.files import read_record
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError
from blobjax.config.schema import Checkpoint
from blobjax.program.program import make_program
from tests.tiny import tiny


@pytest.fixture(scope="module")
def program():
    settings = tiny("model.n_layers=1")
    return make_program(settings, make_layout(settings, jax.devices()[:1]), tokens_per_epoch=10_000)


@pytest.fixture(scope="module")
def state(program):
    """A state with a frozen copy of its parameters and a round of three rollouts."""
    state = program.init()
    frozen = {"reference": jax.tree.map(lambda p: p + 1, state.params)}
    return replace(state, frozen=frozen, round={"rewards": jnp.array([0.5, 1.0, -1.0])})


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(directory, state):
    directory.mkdir(parents=True)
    checkpointer = Checkpointer(directory, Checkpoint())
    checkpointer.save(state, step=1, sequences=16, data="text")
    checkpointer.close()
    return directory


def test_frozen_and_round_come_back_bit_for_bit(tmp_path, state):
    directory = save(tmp_path / "run" / "checkpoints", state)
    restored, _ = Checkpointer(directory).restore(1, abstract(state), data="text")
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert stored.verify(directory / "1")
    leaves = read_record(directory / "1").leaves
    assert {path.partition("/")[0] for path in leaves} == {"params", "optimizer", "frozen", "round", "progress"}
    assert "round/rewards" in leaves


def test_empty_trees_are_not_in_a_checkpoint_and_no_argument_of_the_step(tmp_path, program):
    state = program.init()
    directory = save(tmp_path / "run" / "checkpoints", state)
    assert {each.name for each in (directory / "1").iterdir() if each.is_dir()} == {"params", "optimizer", "progress"}
    assert stored.verify(directory / "1")
    arguments = len(jax.tree.leaves(program.lower_train_step().args_info))
    params_and_moments = 1 + len(jax.tree.leaves((state.params, state.opt_state)))
    assert arguments == params_and_moments + len(program.objective.arrays)


@pytest.mark.parametrize("there", [True, False], ids=["only there", "only here"])
def test_a_state_with_other_trees_is_refused(tmp_path, program, state, there):
    saved, like = (state, program.state) if there else (program.init(), abstract(state))
    directory = save(tmp_path / "run" / "checkpoints", saved)
    with pytest.raises(BadInputError, match=r"does not fit this config: reference/.* absent"):
        Checkpointer(directory).restore(1, like, data="text")
