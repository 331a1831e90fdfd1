"""Shipped studies in reduced form: what the papers found still comes out, in direction if not in size.

What is asserted is some way from what was seen, so that another compiler's rounding does not decide.
"""

import json

from blobjax.studies.command import study

SMALL = (
    "model.d_model=32",
    "model.n_heads=2",
    "data.seq_len=32",
    "duration.global_batch_size=8",
    "evaluation.sequences=4",
    "data.mixture={shakespeare: 1}",
)


def numbers(tmp_path, name: str, *overrides: str) -> dict:
    assert study(name, [*SMALL, *overrides], str(tmp_path / name)) == 0
    return json.loads((tmp_path / name / "summary.json").read_text())["numbers"]


def test_qk_norm_lowers_the_sensitivity_to_the_learning_rate(tmp_path):
    found = numbers(
        tmp_path,
        "lr-sensitivity",
        "duration.length=100 steps",
        "grid.conditioning=[neither, qk_norm]",
        "grid.learning_rate=[1e-2, 3e-1]",
    )
    # Seen: 0.186 against 0.321 nats, and 25 against 11,915.
    assert found["sensitivity"]["qk_norm"] < 0.8 * found["sensitivity"]["neither"]
    assert found["largest_attention_logit"]["qk_norm"] < 0.01 * found["largest_attention_logit"]["neither"]


def test_rounding_to_the_nearest_loses_small_updates_and_the_others_do_not(tmp_path):
    found = numbers(
        tmp_path,
        "bf16-rounding",
        "duration.length=150 steps",
        "grid.learning_rate=[1e-4]",
        "conditioning.probe_every=0",
    )
    # Seen: 0.157, 0.001 and 0.000 nats.
    gaps = found["gap_at_0.0001"]
    assert gaps["nearest"] > 0.05
    assert abs(gaps["stochastic"]) < 0.01
    assert abs(gaps["kahan"]) < 0.01
