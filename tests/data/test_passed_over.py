"""Which sequence of the stream is the n-th used one: against a loop that counts, and in batches."""

import numpy as np
import pytest

from blobjax import data
from blobjax.data import PassedOver
from tests.tiny import tiny


@pytest.mark.parametrize(
    "windows",
    [[], [(0, 3)], [(5, 9)], [(2, 4), (4, 6)], [(10, 20), (3, 5), (12, 15)], [(1, 2), (3, 4), (5, 30), (31, 32)]],
)
def test_the_map_is_that_of_a_loop_that_counts(windows):
    passed_over = PassedOver.of(windows)
    left = [n for n in range(200) if not any(first <= n < last for first, last in windows)]
    for used, number in enumerate(left[:100]):
        assert passed_over.number(used) == number
        assert passed_over.before(used) == tuple(w for w in passed_over.windows if w[1] <= number)
    ends = [end for window in passed_over.windows for end in window]
    assert ends == sorted(set(ends)), "windows are in order and do not touch"


def test_a_stream_leaves_them_out_of_its_batches_and_of_its_epochs():
    config = tiny()
    stream = data.open_stream(config, data.prepare(config))
    whole = stream.sequences(list(range(40)))
    before = stream.epochs(30)
    stream.passed_over = PassedOver.of([(8, 18)])
    batches = stream.batches(0, np.arange(10), 10)
    for rows in ([*range(8), 18, 19], [*range(20, 30)]):
        for name, array in next(batches).items():
            np.testing.assert_array_equal(array, whole[name][rows])
    # Of the 30 that are gone through, 10 were not seen.
    left_out = {name: before[name] - epochs for name, epochs in stream.epochs(20).items()}
    windows = dict(zip(sorted(config.data.mixture), stream._windows, strict=True))
    assert sum(share * windows[name] for name, share in left_out.items()) == pytest.approx(10)
