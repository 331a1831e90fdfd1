"""The compute that a loss would have cost the baseline, against laws that can be turned round by hand."""

import numpy as np
import pytest

from blobjax.config import BadInputError
from blobjax.laws import fit_file
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.multiplier import worth
from blobjax.laws.points import Points
from tests.laws.synthetic import BESIROGLU, harmful_size, isoflops, repeated, sizes_and_tokens, with_noise

# L(C) = 1.7 + 500 C^-0.15, so C(L) = (500 / (L - 1.7))^(1 / 0.15).
POWER = [1.7, 500, 0.15]


def fitted(law: str, columns: dict, bootstrap: int = 40) -> dict:
    points = Points(columns, {}, [], {}, ())
    return fit_file.make(LAWS[law], points, Settings(delta=LAWS[law].delta, bootstrap=bootstrap, starts=4))


@pytest.fixture(scope="module")
def noisy() -> dict:
    x = {"flops": np.geomspace(1e16, 1e20, 30)}
    return fitted("power-flops", with_noise("power-flops", POWER, x, 0.005))


def loss(flops: float) -> float:
    return 1.7 + 500 * flops**-0.15


def test_a_run_that_is_as_good_as_four_times_the_compute_is_worth_four():
    exact = fitted("power-flops", with_noise("power-flops", POWER, {"flops": np.geomspace(1e16, 1e20, 30)}, 0), 0)
    found = worth(exact, 1e18, loss(4e18))
    assert found.multiplier == pytest.approx(4, rel=1e-3)
    assert found.equivalent == pytest.approx(4e18, rel=1e-3)
    assert (found.low, found.high, found.refused) == (None, None, "")
    assert worth(exact, 1e18, loss(2.5e17)).multiplier == pytest.approx(0.25, rel=1e-3)


def test_the_interval_holds_the_truth_and_widens_towards_the_end_of_what_was_measured(noisy):
    inside, late = worth(noisy, 1e18, loss(4e18)), worth(noisy, 1e18, loss(5e19))
    assert inside.low < 4 < inside.high
    assert inside.low < inside.multiplier < inside.high
    assert inside.high / inside.low < (late.high or np.inf) / late.low
    edge = worth(noisy, 1e18, worth_edge(noisy))
    # Nearly half of the resamples do not come to this loss within what was measured.
    assert edge.high is None
    assert edge.low is not None


def worth_edge(content: dict) -> float:
    """Just above what the fitted law says of the largest budget."""
    E, A, alpha = (entry["value"] for entry in content["parameters"].values())
    return E + A * 9.9e19**-alpha


def test_what_would_be_an_extrapolation_is_refused_with_what_is_known(noisy):
    above, below = worth(noisy, 1e18, loss(1e22)), worth(noisy, 1e18, loss(1e14))
    assert (above.multiplier, below.multiplier) == (None, None)
    assert "more than 100 times" in above.refused
    assert "less than 0.01 times" in below.refused


@pytest.mark.parametrize(("name", "x"), [("chinchilla-2", isoflops()), ("chinchilla-3", sizes_and_tokens(5, 5))])
def test_laws_of_params_and_tokens_are_taken_at_their_best_split(name, x):
    content = fitted(name, with_noise("chinchilla-3", BESIROGLU, x, 0), 0)
    law = LAWS["chinchilla-3"]
    params, tokens = law.optimum(law, BESIROGLU, 6e19, {})
    best = law.predict(BESIROGLU, {"params": np.array([params]), "tokens": np.array([tokens])}).item()
    assert worth(content, 2e19, best).multiplier == pytest.approx(3, rel=0.02)


def test_a_law_without_a_loss_for_flops_alone_is_refused(noisy):
    tokens = with_noise("power-tokens", POWER, {"tokens": np.geomspace(1e9, 1e12, 10)}, 0)
    with pytest.raises(BadInputError, match="power-tokens has no loss for flops alone"):
        worth(fitted("power-tokens", tokens, 0), 1e18, 3.0)
    # What else it needs than a budget's split is not known here.
    x = repeated()
    x = with_noise("data-constrained", [1.87, 521, 1488, 0.353, 15.4, 5.3], x, 0)
    with pytest.raises(BadInputError, match="data-constrained has no loss for flops alone"):
        worth(fitted("data-constrained", x, 0), 1e18, 3.0)
    with pytest.raises(BadInputError, match="must be positive"):
        worth(noisy, 1e18, float("nan"))


def test_a_law_without_a_best_split_is_worth_nothing_and_says_so():
    found = worth(fitted("variable-projection", harmful_size(), 0), 1e19, 2.3)
    assert found.multiplier is None
    assert "there is no best split, as A is 0" in found.refused
