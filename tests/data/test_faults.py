"""Faults are where they are said to be, tied to the data, and nowhere else."""

import numpy as np
import pytest

from blobjax import data
from blobjax.config import BadInputError
from blobjax.data import PassedOver
from tests.tiny import tiny


def stream(*overrides: str) -> data.Stream:
    config = tiny(*overrides)
    return data.open_stream(config, data.prepare(config))


def test_rows_are_spoilt_by_their_number_and_no_others():
    clean = stream().sequences(list(range(20)))
    spoilt = stream("faults={nan: [4, 6], poison: [10, 13]}").sequences(list(range(20)))
    for name, array in clean.items():
        rows = {n for n in range(20) if not np.array_equal(array[n], spoilt[name][n])}
        assert rows == {"mask": {4, 5}, "tokens": {10, 11, 12}, "targets": {10, 11, 12}}.get(name, set()), name
    assert np.isnan(spoilt["mask"][4:6]).all()
    np.testing.assert_array_equal(spoilt["tokens"][10:13, 1:], spoilt["targets"][10:13, :-1])
    noise = spoilt["tokens"][10:13]
    assert noise.min() >= 0
    assert 128 < noise.max() < 256, "noise is of the whole vocabulary, text is of its first half"
    assert not np.array_equal(noise[0], noise[1])


def test_the_noise_is_the_same_for_a_restart_and_another_with_another_seed():
    poisoned = [stream("faults.poison=[0, 9]", f"seed={seed}").sequences([3])["tokens"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(poisoned[0], poisoned[1])
    assert not np.array_equal(poisoned[0], poisoned[2])


def test_passing_over_the_data_passes_over_the_fault():
    faulty = stream("faults.nan=[4, 6]")
    faulty.passed_over = PassedOver.of([(4, 6)])
    assert np.isfinite(faulty.sequences(list(range(20)))["mask"]).all()


@pytest.mark.smoke
def test_an_empty_range_is_refused():
    with pytest.raises(BadInputError, match=r"faults\.nan: the last sequence 6 .* after the first 6"):
        tiny("faults.nan=[6, 6]")
