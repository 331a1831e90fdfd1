import numpy as np
import pytest

from blobjax.data.shuffle import shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 257, 1000])
def test_an_epoch_is_a_permutation(size):
    for epoch in range(3):
        order = [shuffled(epoch * size + i, size, 7, "domain") for i in range(size)]
        assert sorted(order) == list(range(size))


def test_epochs_seeds_and_domains_have_orders_of_their_own():
    def order(seed, name, epoch):
        return tuple(shuffled(epoch * 50 + i, 50, seed, name) for i in range(50))

    # Epoch 1 of seed 0 must not be epoch 0 of seed 1 either.
    orders = {order(seed, name, epoch) for seed in range(4) for name in "ab" for epoch in range(4)}
    assert len(orders) == 32


def test_neighbours_do_not_stay_neighbours():
    size = 5000
    order = np.array([shuffled(i, size, 0, "domain") for i in range(size)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    # A random permutation has one fixed point and one kept pair of neighbours on average.
    assert np.sum(order == np.arange(size)) < 8
    assert np.sum(np.diff(order) == 1) < 8


@pytest.mark.parametrize("index", [0, 3, 7])
def test_any_element_goes_anywhere(index):
    size, seeds = 8, 4000
    places = np.bincount([shuffled(index, size, seed, "domain") for seed in range(seeds)], minlength=size)
    # Seven degrees of freedom: chi-squared is beyond 30 once in ten thousand times.
    assert np.sum((places - seeds / size) ** 2) / (seeds / size) < 30


def test_the_order_never_changes():
    """A run that is resumed with a later version reads the same text."""
    assert [shuffled(i, 10, 0, "shakespeare") for i in range(20)] == GOLDEN
    assert shuffled(10**15, 10**12 + 7, 3, "web") == GOLDEN_FAR


GOLDEN = [6, 9, 2, 0, 4, 3, 1, 7, 5, 8, 4, 6, 8, 7, 3, 9, 1, 0, 5, 2]
GOLDEN_FAR = 478667828980
