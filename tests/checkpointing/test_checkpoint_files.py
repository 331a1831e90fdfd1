"""Which checkpoints the rules keep, why, and which go."""

import json
import os

import pytest

from blobjax.checkpointing.files import (
    BadCheckpointError,
    Leaf,
    Record,
    _digest,
    clear_unfinished,
    delete,
    kept,
    newest,
    numbered,
    quarantine,
    read_record,
)
from blobjax.config.schema import Checkpoint

LEAF = {"shape": [2], "dtype": "float32", "fingerprint": "0" * 16}
BEST = {"metric": "eval/bible/bits_per_byte"}


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        ({"keep": 2}, [80, 90]),
        ({"keep": 1, "keep_every": 30}, [30, 60, 90]),
        ({"keep": 1, "keep_best": BEST}, [40, 90]),
        ({"keep": 1, "keep_best": {**BEST, "count": 2}}, [40, 60, 90]),
        ({"keep": 1, "keep_best": {**BEST, "mode": "max"}}, [20, 90]),
        ({"keep": 2, "keep_every": 40, "keep_best": BEST}, [40, 80, 90]),
    ],
)
def test_what_any_rule_keeps_stays(policy, stay):
    # Evaluated every twenty steps; a save between has the metric of the evaluation before it, step 10 has none.
    metrics = {10: None, 20: 3.0, 30: 3.0, 40: 1.0, 50: 1.0, 60: 2.0, 70: 2.0, 80: 2.5, 90: 2.5}
    if policy.get("keep_best", {}).get("count") == 2:
        metrics[50] = None
    assert list(kept(metrics, Checkpoint(**policy))) == stay


@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        ({"keep": 1}, [6]),
        ({"keep": 3}, [2, 4, 6]),
        ({"keep": 5}, [2, 4, 6, 10, 12]),
        ({"keep": 1, "keep_every": 4}, [4, 6]),
        ({"keep": 1, "keep_best": {**BEST, "mode": "max"}}, [2, 6]),
    ],
)
def test_one_that_is_not_finite_takes_no_other_s_place(policy, stay):
    metrics = {2: 3.0, 4: 2.0, 6: 1.0, 8: 9.0, 10: None, 12: None}
    assert list(kept(metrics, Checkpoint(**policy), not_finite=[8, 10, 12])) == stay


def test_the_reason_is_the_rule_that_keeps_longest():
    reasons = kept({10: 1.0, 20: 2.0, 30: 3.0}, Checkpoint(keep=3, keep_every=20, keep_best=BEST))
    assert reasons == {10: "best eval/bible/bits_per_byte (1)", 20: "every 20 steps", 30: "one of the newest 3"}


def test_the_newest_first_and_none_that_is_too_new():
    assert newest([1, 5, 9], None) == [9, 5, 1]
    assert newest([1, 5, 9], 5) == [5, 1]
    assert newest([], 5) == []


def test_only_a_step_s_own_name_is_a_step(tmp_path):
    for name in ("4", "12", "0012", "\u0661\u0662", "3000000000", "9" * 26, "-3", "4.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").symlink_to(tmp_path / "4")
    assert numbered(tmp_path) == [4, 12]


def test_an_unfinished_save_is_cleared_whatever_it_is(tmp_path):
    names = [f"{step}.orbax-checkpoint-tmp" for step in range(4)]
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[1]).write_text("")
    os.mkfifo(tmp_path / names[2])
    (tmp_path / names[3]).symlink_to(tmp_path / "nowhere")
    clear_unfinished(tmp_path)
    assert not os.listdir(tmp_path)


def test_a_link_that_leads_nowhere_has_its_name_in_the_quarantine(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "4-1").symlink_to(tmp_path / "nowhere")
    assert quarantine(tmp_path / "checkpoints" / "4") == tmp_path / "quarantine" / "4-2"


@pytest.mark.parametrize("there", ["link", "file", "folder", "pipe"])
def test_what_stands_in_the_way_of_a_deletion_goes(tmp_path, there):
    aside, elsewhere = tmp_path / ".blobjax-undone", tmp_path / "elsewhere"
    (tmp_path / "4").mkdir()
    elsewhere.mkdir()
    make = {"link": lambda: aside.symlink_to(elsewhere), "file": aside.touch, "folder": aside.mkdir}
    (make | {"pipe": lambda: os.mkfifo(aside)})[there]()
    delete(tmp_path / "4")
    assert [each.name for each in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole["custom_metadata"]["record"].update(step="twelve"),
        lambda whole: whole["custom_metadata"]["record"].update(sequences=-1),
        lambda whole: whole["custom_metadata"]["record"].update(metric=[1]),
        lambda whole: whole["custom_metadata"]["record"].update(finite=1),
        lambda whole: whole["custom_metadata"]["record"].update(leaves={}),
        lambda whole: whole["custom_metadata"]["record"]["leaves"]["params/a"].update(shape=["a"]),
        lambda whole: whole["custom_metadata"]["record"]["leaves"]["params/a"].update(dtype=3),
        lambda whole: whole["custom_metadata"]["record"]["leaves"].update({"evil/x": dict(LEAF)}),
        lambda whole: whole.update(commit_timestamp_nsecs=10**400),
    ],
)
def test_a_record_of_other_kinds_is_damaged_also_with_the_right_digest(tmp_path, change):
    metadata = Record("data", 12, 96, None, {"params/a": Leaf((2,), "float32", "0" * 16)}).as_metadata()
    whole = {"custom_metadata": metadata, "commit_timestamp_nsecs": 10**18}
    path = tmp_path / "_CHECKPOINT_METADATA"
    path.write_text(json.dumps(whole))
    assert read_record(tmp_path).step == 12
    change(whole)
    metadata["digest"] = _digest("data", metadata["record"])
    path.write_text(json.dumps(whole))
    with pytest.raises(BadCheckpointError, match="is damaged"):
        read_record(tmp_path)


def test_a_record_nested_without_end_is_damaged(tmp_path):
    (tmp_path / "_CHECKPOINT_METADATA").write_text("[" * 100_000)
    with pytest.raises(BadCheckpointError, match="is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["12", "quarantined-1"])
def test_a_record_of_another_step_than_its_folder_s_is_bad(tmp_path, name):
    metadata = Record("data", 30, 96, None, {"params/a": Leaf((2,), "float32", "0" * 16)}).as_metadata()
    (tmp_path / name).mkdir()
    (tmp_path / name / "_CHECKPOINT_METADATA").write_text(
        json.dumps({"custom_metadata": metadata, "commit_timestamp_nsecs": 10**18})
    )
    if name == "12":
        with pytest.raises(BadCheckpointError, match="is the checkpoint of step 30"):
            read_record(tmp_path / name)
    else:  # a folder that is no step's says nothing
        assert read_record(tmp_path / name).step == 30
