import numpy as np
import pytest

from blobjax.data.mixture import Mixture

WEIGHTS = [
    {"a": 1.0},
    {"a": 0.7, "b": 0.3},
    {"a": 0.6, "b": 0.2, "c": 0.2},
    {"a": 1.0, "b": 0.333, "c": 0.01, "d": 5.0, "e": 0.07},
    {"a": 3.0, "b": 1e-4},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_period_holds_exactly_the_weights(weights):
    mixture = Mixture(weights)
    period = sum(mixture.weights)
    seen = np.bincount([mixture.locate(n)[0] for n in range(2 * period)], minlength=len(mixture.names))
    assert tuple(seen) == tuple(2 * weight for weight in mixture.weights)
    share = np.array(mixture.weights) / period
    np.testing.assert_allclose(share, np.array(list(weights.values())) / sum(weights.values()), rtol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_sequence_is_the_next_of_its_domain(weights):
    mixture = Mixture(weights)
    seen = [0] * len(mixture.names)
    for number in range(3000):
        assert mixture.counts(number) == tuple(seen)
        domain, index = mixture.locate(number)
        assert index == seen[domain]
        seen[domain] += 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_any_prefix_is_within_the_number_of_domains(weights):
    mixture = Mixture(weights)
    share = np.array(mixture.weights) / sum(mixture.weights)
    for number in range(0, 3000, 7):
        assert np.all(np.abs(np.array(mixture.counts(number)) - number * share) < len(share))


def test_weights_are_decimals_not_their_binary_neighbours():
    assert Mixture({"a": 0.7, "b": 0.3}).weights == (7, 3)
    assert Mixture({"a": 0.1, "b": 0.2, "c": 0}).names == ("a", "b")


def test_order_of_keys_does_not_matter():
    one, other = Mixture({"a": 0.6, "b": 0.4}), Mixture({"b": 0.4, "a": 0.6})
    assert [one.locate(n) for n in range(50)] == [other.locate(n) for n in range(50)]


def test_far_sequences_are_arithmetic():
    mixture = Mixture({"a": 0.7, "b": 0.3})
    assert mixture.counts(10**15) == (7 * 10**14, 3 * 10**14)
