"""What is saved comes back bit for bit, on any mesh, and what does not fit is refused."""

import shutil

import jax
import numpy as np
import pytest

from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError
from blobjax.config.schema import Checkpoint
from blobjax.training.checkpoints import Checkpointer
from blobjax.training.program import make_program
from tests.tiny import tiny


def program(*overrides, devices=1):
    settings = tiny(*overrides)
    return make_program(settings, make_layout(settings, jax.devices()[:devices]), tokens_per_epoch=10_000)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state of random numbers, saved at step 7 from a mesh of fsdp=4, tensor=2."""
    sharded = program("compute.mesh={data: 1, fsdp: 4, tensor: 2}", "optimizer.name=muon", devices=8)
    state = sharded.init()
    state = jax.tree.map(lambda leaf: leaf + 1 if leaf.dtype == np.int32 else leaf * 1.7 + 0.3, state)
    directory = tmp_path_factory.mktemp("checkpoints")
    checkpointer = Checkpointer(directory, Checkpoint())
    checkpointer.save(state, step=7, sequences=112, data="text")
    checkpointer.close()
    return directory, sharded, jax.device_get(state)


@pytest.mark.parametrize("mesh", ["{data: 1, fsdp: 4, tensor: 2}", "{data: 2, fsdp: 2, context: 2}", "{data: 1}"])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(saved, mesh):
    directory, _, expected = saved
    other = program(f"compute.mesh={mesh}", "optimizer.name=muon", devices=1 if mesh == "{data: 1}" else 8)
    state, sequences = Checkpointer(directory).restore(7, other.state, data="text")
    assert sequences == 112
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    assert jax.tree.all(jax.tree.map(lambda leaf, like: leaf.sharding == like.sharding, state, other.state))


def test_parameters_can_be_read_alone(saved):
    directory, _, expected = saved
    params = Checkpointer(directory).restore_params(7, program("optimizer.name=muon").state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected.params)


def test_another_model_is_refused_by_the_name_of_what_differs(saved):
    directory, _, _ = saved
    other = program("model.d_ff=128", "optimizer.name=muon")
    with pytest.raises(BadInputError, match=r"does not fit.*\(2, 32, 64\).*there.*\(2, 32, 128\).*here"):
        Checkpointer(directory).restore(7, other.state, data="text")


def test_other_data_is_refused(saved):
    directory, sharded, _ = saved
    with pytest.raises(BadInputError, match="trained on other data"):
        Checkpointer(directory).restore(7, sharded.state, data="other text")


def test_the_newest_are_kept_and_the_periodic_for_ever(tmp_path):
    state = program().init()
    checkpointer = Checkpointer(tmp_path, Checkpoint(keep=2, keep_every=4))
    for step in range(1, 10):
        checkpointer.save(state, step, step, "text")
    checkpointer.close()
    assert Checkpointer(tmp_path).steps() == [4, 8, 9]


def test_a_save_is_not_disturbed_by_the_step_that_reuses_its_memory(tmp_path):
    """The step donates its state; an asynchronous save of that state must have its own copy by then."""
    tiny_program = program()
    state = tiny_program.init()
    expected = jax.device_get(jax.tree.map(lambda leaf: leaf + 0, state.params))
    overwrite = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0, s), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path, Checkpoint())
    checkpointer.save(state, 1, 0, "text")
    jax.block_until_ready(overwrite(state))
    checkpointer.close()
    params = Checkpointer(tmp_path).restore_params(1, tiny_program.state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), expected)


@pytest.mark.parametrize("harm", ["params/manifest.ocdbt", "params/_METADATA", "progress", "params/d"])
def test_a_damaged_checkpoint_is_one_line_that_says_where_to_go_on(saved, tmp_path, harm):
    directory, sharded, _ = saved
    for step in ("5", "7"):
        shutil.copytree(directory / "7", tmp_path / step)
    target = tmp_path / "7" / harm
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.write_bytes(target.read_bytes()[:9])
    with pytest.raises(BadInputError, match=r"7 cannot be read .*move it away to go on from step 5") as refused:
        Checkpointer(tmp_path).restore(7, sharded.state, data="text")
    assert len(refused.value.problems) == 1
    assert "\n" not in refused.value.problems[0]


def test_a_numbered_folder_that_orbax_did_not_finish_is_no_checkpoint(saved, tmp_path):
    directory, _, _ = saved
    shutil.copytree(directory / "7", tmp_path / "7")
    (tmp_path / "9999").mkdir()
    assert Checkpointer(tmp_path).steps() == [7]
