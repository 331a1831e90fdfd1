"""Verdicts on histories made to deserve them."""

import math

import pytest

from blobjax.conditioning.laminar import LAMINAR, TURBULENT, WATCH, judge, survey, worst


def over(*values: float) -> list[tuple[int, float]]:
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "verdict"),
    [
        ("attention_logit_max", (5, 80, 60), LAMINAR),
        ("attention_logit_max", (5, 150, 60), WATCH),
        ("attention_logit_max", (5, 16_240, 60), TURBULENT),
        ("attention_entropy", (3.0, 0.5), LAMINAR),
        ("attention_entropy", (3.0, 0.05), WATCH),
        ("log_z_mean", (5.5, 6.0, 6.2, 6.3), LAMINAR),
        ("log_z_mean", (5.5, 12.0, 12.0, 12.1), WATCH),
        ("log_z_mean", (5.5, -6.0, -15.0, -30.0), TURBULENT),
        ("residual_rms", (0.5, 10.0), LAMINAR),
        ("residual_rms", (0.5, 20.0), WATCH),
        ("residual_rms", (800.0, 2000.0), WATCH),
        ("residual_rms", (1e6, 1e7), TURBULENT),
        ("update_ratio", (0.5, 0.1, 1e-3, 1e-3), LAMINAR),
        ("update_ratio", (1e-3, 0.05, 0.05, 0.05), WATCH),
        ("update_ratio", (1e-3, 1e-6, 1e-6, 1e-6), WATCH),
        ("weight_sqnr_db", (31.0, 30.0), LAMINAR),
        ("weight_sqnr_db", (math.inf, math.inf), LAMINAR),
        ("weight_sqnr_db", (18.0, 18.5), WATCH),
        ("dead_fraction", (0.1, 0.97), TURBULENT),
        ("grad_flush_fraction", (0.0, 0.6), TURBULENT),
        ("grad_saturate_fraction", (0.0, 1e-3), WATCH),
        ("edge_of_stability", (0.9, 1.1), LAMINAR),
        ("grad_rms", (1e-9, 1e9), LAMINAR),
        ("grad_rms", (1.0, math.nan, 1.0), TURBULENT),
        ("residual_rms", (1.0, math.inf), TURBULENT),
    ],
)
def test_verdicts(name, values, verdict):
    finding = judge(name, over(*values), vocab_size=256)
    assert finding.verdict == verdict
    assert bool(finding.why) == (verdict != LAMINAR)
    assert not finding.why or name in finding.why


def test_what_is_not_finite_says_when():
    assert judge("grad_rms", over(1.0, math.nan), 256).why == "grad_rms is not finite at step 20"


def test_the_worst_of_none_is_laminar():
    assert [worst([]), worst([LAMINAR, WATCH]), worst([TURBULENT, WATCH])] == [LAMINAR, WATCH, TURBULENT]


def test_a_survey_goes_forward_and_says_the_gravest_first():
    found = survey(
        {
            "output": {"log_z_mean": over(5.5, 5.6)},
            "block_01": {"attention_logit_max": over(5, 2e4), "residual_rms": over(1, 2)},
            "block_00": {"attention_logit_max": over(5, -3, 150)},
            "embedding": {"residual_rms": over(1, 1)},
        },
        vocab_size=256,
    )
    assert list(found["places"]) == ["embedding", "block_00", "block_01", "output"]
    assert [place["verdict"] for place in found["places"].values()] == [LAMINAR, WATCH, TURBULENT, LAMINAR]
    assert found["verdict"] == TURBULENT
    assert [sentence.split(":")[0] for sentence in found["sentences"]] == ["block_01", "block_00"]
    assert [sentence.split("; so ")[1:] for sentence in found["sentences"]] == [[], []]
    row = found["places"]["block_00"]["probes"]["attention_logit_max"]
    assert (row["first"], row["last"], row["largest"]) == (5, 150, 150)


def test_one_sentence_for_what_several_places_share():
    shared = {f"block_{i:02d}": {"dead_fraction": over(0.6)} for i in range(3)}
    (sentence,) = survey(shared, vocab_size=256)["sentences"]
    assert sentence == "block_00: dead_fraction reached 0.6, above 0.5 (ours); so block_01, block_02"
