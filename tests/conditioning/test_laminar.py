"""Verdicts on histories made to deserve them."""

import math

import numpy as np
import pytest

from blobjax.conditioning.laminar import LAMINAR, STAGNANT, TURBULENT, WATCH, Known, judge, survey, worst

BYTES = Known(vocab_size=256)


def over(*values: float) -> list[tuple[int, float]]:
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "verdict"),
    [
        ("attention_logit_max", (5, 80, 60), LAMINAR),
        ("attention_logit_max", (5, 150, 60), WATCH),
        ("attention_logit_max", (5, 16_240, 60), TURBULENT),
        ("attention_entropy", (3.0, 0.5), LAMINAR),
        ("attention_entropy", (3.0, 0.2), WATCH),
        ("attention_entropy", (3.0, 0.05), TURBULENT),
        ("log_z_mean", (5.5, 6.0, 6.2, 6.3), LAMINAR),
        ("log_z_mean", (5.5, 12.0, 12.0, 12.1), WATCH),
        ("log_z_mean", (5.5, -6.0, -15.0, -30.0), TURBULENT),
        ("residual_rms", (0.5, 40.0), LAMINAR),
        ("residual_rms", (0.5, 60.0), WATCH),
        ("residual_rms", (800.0, 2000.0), WATCH),
        ("residual_rms", (1e6, 1e7), TURBULENT),
        ("update_ratio", (0.5, 0.1, 1e-3, 1e-3), LAMINAR),
        ("update_ratio", (1e-3, 0.05, 0.05, 0.05), WATCH),
        ("update_ratio", (1e-3, 1e-5, 1e-5, 1e-5), WATCH),
        ("update_ratio", (1e-3, 1e-7, 1e-7, 1e-7), STAGNANT),
        ("update_lost_fraction", (0.1, 0.3, 0.4, 0.6), LAMINAR),
        ("update_lost_fraction", (0.1, 0.5, 0.6, 0.7), WATCH),
        ("update_lost_fraction", (0.1, 0.5, 0.95, 0.98), STAGNANT),
        ("grad_zero_fraction", (1.0, 1.0, 0.9, 0.9), LAMINAR),
        ("grad_zero_fraction", (0.5, 1.0, 1.0, 1.0), STAGNANT),
        ("weight_sqnr_db", (31.0, 30.0), LAMINAR),
        ("weight_sqnr_db", (math.inf, math.inf), LAMINAR),
        ("weight_sqnr_db", (18.0, 18.5), WATCH),
        ("dead_fraction", (0.1, 0.6), LAMINAR),
        ("dead_fraction", (0.1, 0.97), WATCH),
        ("dead_fraction", (0.1, 0.995), TURBULENT),
        ("grad_flush_fraction", (0.0, 0.6), TURBULENT),
        ("grad_saturate_fraction", (0.0, 1e-3), WATCH),
        ("edge_of_stability", (0.9, 1.1), LAMINAR),
        ("grad_rms", (1e-9, 1e9), LAMINAR),
        ("grad_rms", (1.0, math.nan, 1.0), TURBULENT),
        ("residual_rms", (1.0, math.inf), TURBULENT),
    ],
)
def test_verdicts(name, values, verdict):
    finding = judge(name, over(*values), BYTES)
    assert finding.verdict == verdict
    assert bool(finding.why) == (verdict != LAMINAR)
    assert not finding.why or name in finding.why


def test_what_is_not_finite_says_when():
    assert judge("grad_rms", over(1.0, math.nan), BYTES).why == "grad_rms is not finite at step 20"


def test_the_worst_of_none_is_laminar():
    assert [worst([]), worst([LAMINAR, WATCH]), worst([STAGNANT, TURBULENT, WATCH])] == [LAMINAR, WATCH, TURBULENT]
    assert worst([STAGNANT, WATCH]) == STAGNANT


def test_a_survey_goes_forward_and_says_the_gravest_first():
    found = survey(
        {
            "output": {"log_z_mean": over(5.5, 5.6)},
            "block_01": {"attention_logit_max": over(5, 2e4), "residual_rms": over(1, 2)},
            "block_00": {"attention_logit_max": over(5, -3, 150)},
            "embedding": {"residual_rms": over(1, 1)},
        },
        BYTES,
    )
    assert list(found["places"]) == ["embedding", "block_00", "block_01", "output"]
    assert [place["verdict"] for place in found["places"].values()] == [LAMINAR, WATCH, TURBULENT, LAMINAR]
    assert found["verdict"] == TURBULENT
    assert [sentence.split(":")[0] for sentence in found["sentences"]] == ["block_01", "block_00"]
    assert [sentence.split("; so ")[1:] for sentence in found["sentences"]] == [[], []]
    row = found["places"]["block_00"]["probes"]["attention_logit_max"]
    assert (row["first"], row["last"], row["largest"]) == (5, 150, 150)


def test_one_sentence_for_what_several_places_share():
    shared = {f"block_{i:02d}": {"dead_fraction": over(0.95)} for i in range(3)}
    (sentence,) = survey(shared, BYTES)["sentences"]
    assert sentence == "block_00: dead_fraction reached 0.95, above 0.9 (ours); so block_01, block_02"


@pytest.mark.parametrize(
    ("place", "values", "verdict"),
    [
        ("block_00", (0.01, 0.06, 0.01, 0.01), TURBULENT),
        ("embedding", (0.1, 0.06, 0.01, 0.01), LAMINAR),
        ("output", (1e-5, 1e-5), LAMINAR),
        ("embedding", (1e-5, 1e-5), WATCH),
    ],
)
def test_what_an_update_ratio_means_depends_on_the_place(place, values, verdict):
    assert judge("update_ratio", over(*values), BYTES, place).verdict == verdict


def test_what_loss_scaling_saves_is_not_lost():
    for scaled, verdict in ((False, TURBULENT), (True, LAMINAR)):
        assert judge("grad_flush_fraction", over(0.9, 0.9), BYTES._replace(loss_scaled=scaled)).verdict == verdict


FALLING = [5.5, 5.2, 4.8, 4.4, 4.1, 3.9, 3.7, 3.6, 3.5, 3.4, 3.35, 3.3, 3.25, 3.2, 3.15, 3.1]


@pytest.mark.parametrize(
    ("values", "verdict", "says"),
    [
        (FALLING, LAMINAR, ""),
        ([5.5, 5.5, 5.5], LAMINAR, ""),
        (FALLING + [2.9] * 16, LAMINAR, ""),
        (FALLING[:12] + [3.3] * 20, STAGNANT, "no better than the 3.2 of the frequencies of the tokens"),
        ([5.56, 5.55] * 16, STAGNANT, "no better than the 3.2"),
        (FALLING + [6.0] * 4 + [3.0] * 12, TURBULENT, "rose to 6 on the way"),
        ([*FALLING, 7.0] + [3.0] * 15, LAMINAR, ""),
        (FALLING + [8.0] * 16, TURBULENT, "ends at 8, above"),
        ([*FALLING, *[2.5] * 8, *[3.6] * 8], TURBULENT, "had been at 2.5"),
    ],
)
def test_what_a_loss_says(values, verdict, says):
    finding = judge("cross_entropy", over(*values), BYTES._replace(unigram=3.2), "run")
    assert finding.verdict == verdict
    assert says in finding.why


def test_a_loss_that_nothing_is_known_of_is_held_against_a_uniform_guess():
    assert "5.55 of a uniform guess" in judge("cross_entropy", over(*[5.56, 5.55] * 8), BYTES).why
    assert judge("cross_entropy", over(*[3.3, 3.31] * 8), BYTES).verdict == LAMINAR


def healthy(rng, n: int) -> list[float]:
    """A power law from 5.5 nats to between 1.5 and 3.2, whose batches differ: by up to 0.25 nats, some by thrice that.

    A short run logs every tenth of 100 steps, most of its losses near where it ends.
    """
    end, sigma = rng.uniform(1.5, 3.2), rng.uniform(0.02, 0.25)
    fall = np.linspace(1, 20, n) ** -rng.uniform(0.5, 1.5)
    noise = sigma * np.where(rng.random(n) < 0.05, 3, 1) * rng.standard_normal(n)
    return list(end + (5.5 - end) * fall + noise)


@pytest.mark.parametrize("n", [8, 10, 15, 40, 200])
def test_batches_that_differ_are_no_turbulence(n):
    rng = np.random.default_rng(n)
    findings = [judge("cross_entropy", over(*healthy(rng, n)), BYTES) for _ in range(500)]
    assert [finding.why for finding in findings if finding.verdict != LAMINAR] == []


@pytest.mark.parametrize("unigram", [None, 3.2])
def test_a_short_run_whose_last_batches_are_hard_is_healthy(unigram):
    values = [5.5, 4.6, 3.9, 3.4, 2.9, 3.0, 3.1, 2.95, 3.22, 3.22]
    assert judge("cross_entropy", over(*values), BYTES._replace(unigram=unigram)).verdict == LAMINAR


@pytest.mark.parametrize("n", [40, 12])
def test_a_collapse_on_the_way_is_turbulent_although_the_run_recovers(n):
    falls = [list(np.linspace(5.5, 3.0, n)), [5.4] * n, list(np.linspace(5.4, 3.1, n))]
    noise = 0.05 * np.random.default_rng(5).standard_normal(3 * n)
    found = judge("cross_entropy", over(*(np.concatenate(falls) + noise)), BYTES)
    assert found.verdict == TURBULENT
    assert "on the way and had been at 3" in found.why
