import pytest

from blobjax.config import load
from blobjax.config.diff import changed_maths, changes_maths, config_diff


def test_equal_configs_do_not_differ():
    assert config_diff(load("laptop"), load("laptop")) == []


def test_one_line_for_each_key():
    old = load("laptop")
    new = load("laptop", ["model.d_model=512", "data.mixture={bible: 1}", "duration.length=20M tokens"])
    assert config_diff(old, new) == [
        "model.d_model: 256 -> 512",
        "model.d_head: 64 -> 128",
        "data.mixture.shakespeare: 0.6 -> (absent)",
        "data.mixture.bible: 0.2 -> 1.0",
        "data.mixture.mathematics: 0.2 -> (absent)",
        "duration.length: 250 steps -> 20M tokens",
    ]


def test_a_section_that_comes_or_goes():
    diff = config_diff(load("laptop"), load("laptop", ["logging.wandb.project=p"]))
    assert "logging.wandb: None -> (absent)" in diff
    assert "logging.wandb.project: (absent) -> p" in diff


@pytest.mark.parametrize(
    "key",
    [
        "name",
        "logging.run_dir",
        "logging.wandb.project",
        "checkpoint.every",
        "evaluation.sequences",
        "compute.mesh.fsdp",
        "compute.gradient_accumulation",
        "data.prefetch",
        "data.prepared_dir",
        "duration.wall_clock_limit",
        "conditioning.probe_every",
        "conditioning.curvature_every",
    ],
)
def test_where_and_how_a_run_runs_is_not_maths(key):
    assert not changes_maths(key)


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "model.d_model",
        "data.mixture.bible",
        "data.seq_len",
        "data.prepared_directory",
        "duration.length",
        "duration.global_batch_size",
        "objective.kind",
        "conditioning.precision",
        "optimizer.learning_rate",
        "names",
    ],
)
def test_what_decides_the_updates_is_maths(key):
    assert changes_maths(key)


def test_probes_are_maths_only_where_something_acts_on_them():
    def changed(*overrides: str) -> list[str]:
        old = load("laptop", ["conditioning.qk_norm=false", "conditioning.probe_every=5", *overrides])
        new = load("laptop", ["conditioning.qk_norm=false", "conditioning.probe_every=1", *overrides])
        return changed_maths(old, new)

    assert changed() == []
    assert changed("conditioning.qk_clip=100") == ["conditioning.probe_every: 5 -> 1"]
