"""A run whose numbers are not finite halts and says where; no checkpoint that is not finite replaces one that is."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blobjax.checkpointing import inspection as command
from blobjax.checkpointing.checkpointer import Checkpointer
from blobjax.checkpointing.files import COMMITTED, NOT_FINITE, _digest, read_record
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, DivergedError
from blobjax.config.schema import Checkpoint
from blobjax.processes.supervisor import newest_save
from blobjax.program.program import make_program
from blobjax.program.state import all_finite
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.outcome import read
from blobjax.runs.status import status
from blobjax.training.inference import sample_run
from blobjax.training.loop import StepReport
from blobjax.training.trainer import train
from blobjax.training.trouble import FiniteWatch, NotFinite, remedy
from tests.tiny import tiny
from tests.training.test_processes import train as train_processes


def config(run_dir, *overrides):
    return tiny(f"logging.run_dir={run_dir}", "checkpoint={every: 2 steps, keep: 1}", *overrides)


# Sequence 100 is in the batch of step 7; without a guard every number is a NaN after it.
NAN = "faults.nan=[100, 101]"


def events(run_dir, name):
    return [event for event in read_jsonl(run_dir / "events.jsonl") if event["event"] == name]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """The directory of a run that met a NaN at step 7 and was to go on to step 12, and what it said at its end."""
    run_dir = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(DivergedError) as halted:
        train(config(run_dir, NAN, "reliability.nonfinite_limit=4"))
    return run_dir, str(halted.value)


def test_it_halts_after_so_many_steps_and_says_where_and_what_would_have_helped(diverged):
    run_dir, said = diverged
    assert said == (
        "halted at step 10: the loss has not been finite since step 7 (reliability.nonfinite_limit 4); first bad "
        "numbers: the batch itself (its mask is not finite, so neither is the loss, whatever the model does) at step "
        "7; start anew with conditioning.guard={}, which skips such batches; the newest finite checkpoint is that of "
        "step 6"
    )
    assert read(RunDirectory(run_dir)).status == "diverged"
    found = status(str(run_dir))
    assert (found["state"], found["reason"]) == ("diverged", f"DivergedError: {said}")
    assert found["newest_save"] == newest_save(RunDirectory(run_dir)) == 6
    halt = json.loads((run_dir / "halt.json").read_text())
    assert (halt["step"], halt["first_bad_step"], halt["good_step"]) == (10, 7, 6)
    assert halt["probes"]["output"]["log_z_mean"]["good"] != 0


def test_no_checkpoint_that_is_not_finite_takes_the_place_of_one_that_is(diverged):
    run_dir, _ = diverged
    assert [event["step"] for event in events(run_dir, "save")] == [2, 4, 6, 8]
    assert [event["step"] for event in events(run_dir, "save") if event.get("finite") is False] == [8]
    assert Checkpointer(run_dir / "checkpoints").steps() == [6]
    assert read_record(run_dir / "checkpoints" / "6").finite is True


def test_the_same_command_never_finds_it_finished(diverged, tmp_path):
    shutil.copytree(diverged[0], tmp_path / "run")
    with pytest.raises(DivergedError, match="halted at step 10"):
        train(config(tmp_path / "run", NAN, "reliability.nonfinite_limit=4"))


def test_it_goes_on_from_the_finite_checkpoint_once_the_cause_is_gone(diverged, tmp_path):
    shutil.copytree(diverged[0], tmp_path / "run")
    assert train(config(tmp_path / "run"), allow_config_change=True) == 0
    assert events(tmp_path / "run", "resume")[-1]["step"] == 6
    assert read_record(tmp_path / "run" / "checkpoints" / "12").finite is True


def test_a_last_step_with_a_bad_loss_is_not_a_finish(tmp_path):
    with pytest.raises(DivergedError, match=r"halted at step 12: the loss has not been finite since step 12, and"):
        train(config(tmp_path / "run", "faults.nan=[176, 177]"))
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [10]


# The update is larger than any float32, which is what is tested.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_nor_is_one_with_a_bad_update(tmp_path):
    """Its loss was finite, as that is taken before the update."""
    rate = ("optimizer={learning_rate: 1.0e39, weight_decay: 0}", "duration.warmup=0 steps")
    settings = (*rate, "duration.length=1 step")
    with pytest.raises(DivergedError) as halted:
        train(config(tmp_path / "run", "conditioning.clip_norm=0", *settings))
    said = str(halted.value)
    assert said.startswith(
        "halted at step 1: its parameters are not finite, although its loss was; first bad numbers: "
    )
    assert "(param_rms is " in said
    assert "conditioning.clip_norm=1" in said
    assert said.endswith("no checkpoint is finite")
    assert events(tmp_path / "run", "stop")[-1]["reason"].startswith("DivergedError")


def test_a_guard_s_refused_steps_leave_the_state_finite_and_the_run_finishes(tmp_path):
    fault = "faults.nan=[176, 192]"  # the last batch
    assert train(config(tmp_path / "run", fault, "conditioning.guard={}", "reliability.nonfinite_limit=1")) == 0
    assert read_record(tmp_path / "run" / "checkpoints" / "12").finite is True


def test_two_processes_halt_together(tmp_path):
    given = ("compute.mesh={data: 2, fsdp: 1}", "checkpoint={every: 2 steps, keep: 1}", NAN)
    with pytest.raises(AssertionError, match="halted at step 9: the loss has not been finite since step 7"):
        train_processes(tmp_path / "run", *given, "reliability.nonfinite_limit=3", processes=2, devices=1)
    assert Checkpointer(tmp_path / "run" / "checkpoints").steps() == [6]


class TestCheckpoint:
    """One with a NaN among its parameters, step 4 of a directory that also has step 2."""

    @pytest.fixture
    def program(self):
        settings = tiny()
        return make_program(settings, make_layout(settings, jax.devices()[:1]), tokens_per_epoch=10_000)

    @pytest.fixture
    def run_dir(self, program, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "config.yaml").write_text("name: x")
        checkpointer, state = Checkpointer(tmp_path / "checkpoints", Checkpoint(keep=2)), program.init()
        assert checkpointer.save(state, 2, 32, "text")
        state.params["blocks"]["mlp"]["down"] = state.params["blocks"]["mlp"]["down"].at[1, 2, 3].set(jnp.nan)
        assert not checkpointer.save(state, 4, 64, "text")
        checkpointer.close()
        return tmp_path

    def older(self, run_dir):
        """The record as it was before it said whether all is finite."""
        path = run_dir / "checkpoints" / "4" / COMMITTED
        whole = json.loads(path.read_text())
        ours = whole["custom_metadata"]
        del ours["record"]["finite"]
        ours["digest"] = _digest(ours["data"], ours["record"])
        path.write_text(json.dumps(whole))

    @pytest.mark.parametrize("age", ["new", "from before it was recorded"])
    def test_it_is_not_gone_on_from(self, run_dir, program, age):
        if age != "new":
            self.older(run_dir)
        bad = []
        checkpointer = Checkpointer(run_dir / "checkpoints")
        restored = checkpointer.restore_newest(program.state, "text", None, lambda *said: bad.append(said))
        assert restored.step == 2
        assert bad == [(4, NOT_FINITE, "quarantine/4-1")]

    def test_the_command_says_so(self, run_dir):
        _, four = command.describe(str(run_dir))
        assert four["finite"] is False
        assert "NOT FINITE, nothing goes on from it" in list(command.list_lines([four]))[1]
        assert [each["bad"] for each in command.verify(str(run_dir))] == ["", NOT_FINITE]

    @pytest.mark.parametrize("age", ["new", "from before it was recorded"])
    def test_nor_is_it_sampled_from(self, run_dir, age):
        if age != "new":
            self.older(run_dir)
        shutil.rmtree(run_dir / "checkpoints" / "2")
        (run_dir / "config.yaml").unlink()
        RunDirectory(run_dir).path.mkdir(exist_ok=True)
        RunDirectory(run_dir).claim(tiny(f"logging.run_dir={run_dir}"))
        with pytest.raises(BadInputError, match=rf"4 is bad \({NOT_FINITE}\)"):
            sample_run(str(run_dir), "", 4, seed=0, temperature=1.0, top_p=1.0)


def test_one_number_anywhere_on_any_device_is_found():
    mesh = jax.make_mesh((8,), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    arrays = {"a": jnp.ones(3, jnp.bfloat16), "b": jax.device_put(jnp.ones(16), place)}
    assert all_finite(arrays)
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite({**arrays, "b": jax.device_put(np.where(np.arange(16) == 9, value, 1.0), place)})


def reports(losses, **metrics):
    for step, loss in enumerate(losses, start=1):
        values = {"loss": jnp.float32(loss), **{name: jnp.float32(value) for name, value in metrics.items()}}
        yield StepReport(step, values, 1.0, 0.0, 0.0)


def test_only_steps_in_a_row_count():
    watch, nan, inf = FiniteWatch(3, length=20), jnp.nan, jnp.inf
    *fine, last = reports([nan, nan, 1, inf, nan, 1, nan, inf, -inf])
    for report in fine:
        watch.report(report)
    with pytest.raises(NotFinite, match="since step 7") as trouble:
        watch.report(last)
    assert (trouble.value.step, trouble.value.first) == (9, 7)


def test_a_last_step_that_loss_scaling_skipped_has_spoilt_nothing():
    watch = FiniteWatch(3, length=2)
    for report in reports([1, jnp.nan], skipped=1):
        watch.report(report)
    with pytest.raises(NotFinite):
        FiniteWatch(3, length=1).report(next(reports([jnp.nan], skipped=0)))


@pytest.mark.parametrize(
    ("overrides", "found", "wanted"),
    [
        ((), "the batch itself (its mask …", "conditioning.guard={}"),
        (("conditioning.precision=float16",), "block_01 (grad_rms is nan", "conditioning.loss_scaling.kind=dynamic"),
        (
            ("conditioning={precision: float16, loss_scaling: {kind: dynamic}}",),
            "block_00 (residual_rms is inf)",
            "conditioning.precision=bfloat16",
        ),
        (("conditioning.qk_norm=false",), "block_01 (attention_logit_max is inf)", "conditioning.qk_norm=true"),
        (("conditioning.clip_norm=0",), "embedding (param_rms is inf)", "conditioning.clip_norm=1"),
        (
            (),
            "block_00 (grad_rms is nan",
            "a lower optimizer.learning_rate (now 0.002), or start anew with conditioning.guard={}",
        ),
    ],
)
def test_the_switch_that_would_have_helped(overrides, found, wanted):
    assert wanted in remedy(tiny(*overrides), found)
