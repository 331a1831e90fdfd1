"""The search, with eight CPU devices standing in for the GPUs of one host."""

import json
from dataclasses import replace

import pytest

from blobjax.compute.accelerators import find
from blobjax.config import BadInputError, load
from blobjax.plan import plan_command, search
from blobjax.plan.compile import TooLargeError
from blobjax.plan.estimate import Assumptions
from blobjax.plan.hardware import find_machine
from blobjax.plan.search import Candidate, candidates, find_layout, weigh
from tests.tiny import TINY, tiny

ASSUMED = Assumptions()


@pytest.fixture(scope="module")
def machine():
    return replace(find_machine("cpu:8"), chip=find("NVIDIA H100 80GB HBM3"))


def weighed(layout: Candidate, config, machine):
    return weigh(layout, config, machine, ASSUMED, {})


def test_candidates_divide_what_there_is(machine):
    found = set(candidates(tiny(), machine))
    assert len(found) == len(list(candidates(tiny(), machine)))
    for each in found:
        assert each.data * each.fsdp * each.tensor == 8
        assert 16 % (each.data * each.fsdp * each.accumulation) == 0
        assert 4 % each.tensor == 0
    assert Candidate(1, 8, 1, 1, "full", 2) in found
    assert Candidate(1, 8, 1, 1, "full", 4) not in found  # four sequences over eight devices


def test_weights_follow_the_arithmetic(machine):
    config = load("models/llama3-8b", ["duration.global_batch_size=64"])
    by_fsdp, by_data = (weighed(Candidate(*sizes, 1, 1, "full", 1), config, machine) for sizes in ((1, 8), (8, 1)))
    # 12 bytes of state for each of 8.03e9 parameters.
    assert by_data.bytes - by_fsdp.bytes == pytest.approx(12 * 8.03e9 * 7 / 8, rel=0.01)
    keeps, repeats = (weighed(Candidate(1, 8, 1, 1, remat, 1), config, machine) for remat in ("none", "full"))
    assert keeps.bytes > repeats.bytes
    assert repeats.times.compute / keeps.times.compute == pytest.approx(4 / 3, rel=1e-6)
    small, parts = (weighed(Candidate(1, 8, 1, 1, "full", n), config, machine) for n in (1, 8))
    assert parts.bytes < small.bytes
    assert parts.times.links > 6 * small.times.links
    assert parts.times.compute == small.times.compute


def test_the_best_is_compiled_and_written_as_a_config(machine, tmp_path, monkeypatch):
    """What a merge of files would have made something else of: one weight of the mixture, and a section as a whole."""
    overrides = [*TINY, "data.mixture.bible=0.5", "compute=null", "compute.loss_chunk_tokens=64"]
    monkeypatch.setattr(plan_command, "find_machine", lambda name, slices: machine)
    out = tmp_path / "found.yaml"
    text, report = plan_command.search("laptop", overrides, "h100:1x8", 1, ASSUMED, 1, str(out), as_json=True)
    assert "layouts weighed" in report
    said, read = json.loads(text), load(str(out))
    assert said["fits"] is True
    layout = said["layout"]
    assert read == load("laptop", [*overrides, *(f"compute.{key}={json.dumps(layout[key])}" for key in layout)])
    assert read.compute.loss_chunk_tokens == 64
    assert read.compute.mesh.data * read.compute.mesh.fsdp * read.compute.mesh.tensor == 8


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("duration.batch_warmup=4 steps", "duration.batch_start=2"), "duration.batch_start 2 does not divide over"),
        # Eight sequences over eight devices leave no parts to compare.
        (
            ("conditioning.noise_scale_every=4", "duration.global_batch_size=8"),
            "conditioning.noise_scale_every compares parts of the batch",
        ),
    ],
)
def test_a_layout_that_the_config_does_not_train_with_is_passed_over(machine, overrides, reason):
    config = tiny(*overrides)
    found = find_layout(config, machine, ASSUMED, compiles=1)
    assert reason in found.report
    assert found.plan.fits
    assert found.layout.data * found.layout.fsdp < 8


def test_what_the_compiler_refuses_is_passed_over(machine, monkeypatch):
    refused = []
    real = search.compile_step

    def first_too_large(config, on):
        if not refused:
            refused.append(config.compute)
            raise TooLargeError("it takes 90GB of 80GB")
        return real(config, on)

    monkeypatch.setattr(search, "compile_step", first_too_large)
    found = find_layout(tiny(), machine, ASSUMED, compiles=2)
    assert "does not fit (it takes 90GB of 80GB)" in found.report
    assert found.layout.compute["mesh"] != refused[0].mesh.model_dump() or found.layout.remat != refused[0].remat


def test_nothing_fits(machine, monkeypatch):
    def too_large(config, on):
        raise TooLargeError("it takes 90GB of 80GB")

    monkeypatch.setattr(search, "compile_step", too_large)
    with pytest.raises(BadInputError, match="none of the 6 layouts compiled fits"):
        find_layout(tiny(), machine, ASSUMED, compiles=2)


def test_no_search_without_a_peak():
    with pytest.raises(BadInputError, match="none is known for cpu:8"):
        find_layout(tiny(), find_machine("cpu:8"), ASSUMED, 1)


def test_a_size_is_planned_as_it_is_trained(machine, monkeypatch):
    planned = []

    def too_large(config, on):
        planned.append(config)
        raise TooLargeError("it takes 90GB of 80GB")

    monkeypatch.setattr(plan_command, "find_machine", lambda name, slices: machine)
    monkeypatch.setattr(plan_command, "compile_step", too_large)
    with pytest.raises(BadInputError, match="does not fit"):
        plan_command.plan("laptop", ["data.seq_len=64"], "h100:1x8", 1, ASSUMED, size="5M")
    assert planned == [load("laptop", ["data.seq_len=64"], "5M")]
