"""Which checkpoints the rules keep, why, and which go."""

import pytest

from blobjax.config.schema import Checkpoint
from blobjax.training.checkpoint_files import kept, newest

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


def test_the_reason_is_the_rule_that_keeps_longest():
    reasons = kept({10: 1.0, 20: 2.0, 30: 3.0}, Checkpoint(keep=3, keep_every=20, keep_best=BEST))
    assert reasons == {10: "best eval/bible/bits_per_byte (1)", 20: "every 20 steps", 30: "one of the newest 3"}


def test_the_newest_first_and_none_that_is_too_new():
    assert newest([1, 5, 9], None) == [9, 5, 1]
    assert newest([1, 5, 9], 5) == [5, 1]
    assert newest([], 5) == []
