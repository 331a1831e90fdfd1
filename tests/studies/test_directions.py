"""Shipped studies in reduced form: what the papers found still comes out, in direction if not in size.

What is asserted is some way from what was seen, so that another compiler's rounding does not decide.
"""

import json

from blobjax.studies.study_command import study
from tests.studies.small import means

SMALL = (
    "model.d_model=32",
    "model.n_heads=2",
    "data.seq_len=32",
    "duration.global_batch_size=8",
    "evaluation.sequences=4",
    "data.mixture={shakespeare: 1}",
)


def numbers(tmp_path, name: str, *overrides: str) -> dict:
    assert study(name, [*SMALL, "grid.seed=[0]", *overrides], str(tmp_path / name)) == 0
    return means(json.loads((tmp_path / name / "summary.json").read_text())["numbers"])


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


def test_float16_loses_gradients_that_loss_scaling_keeps(tmp_path):
    found = numbers(
        tmp_path,
        "fp16-loss-scaling",
        "duration.length=100 steps",
        "grid.precision=[float32, float16, dynamic]",
        "conditioning.probe_every=0",
    )
    # Seen: 0.115 and 0.000 nats; at the study's own size 0.788.
    assert found["gap"]["float16"] > 0.05
    assert abs(found["gap"]["dynamic"]) < 0.01


def test_under_mup_a_learning_rate_and_activations_hold_at_any_width(tmp_path):
    small = [override for override in SMALL if not override.startswith("model.")]  # the width is an axis
    axes = ["grid.width=['32', '128']", "grid.learning_rate=[0.002, 0.008]", "duration.length=60 steps"]
    assert study("mup-transfer", [*small, "grid.seed=[0]", *axes], str(tmp_path / "mup")) == 0
    found = means(json.loads((tmp_path / "mup" / "summary.json").read_text())["numbers"])
    # Seen: a spread of 7% against 3.7 times; 0.000 against 0.077 nats for the narrow model's rate on the wide one.
    assert found["coordinate_spread"]["mup"] < 0.15
    assert found["coordinate_largest_over_smallest"]["standard"] > 2
    assert found["transfer_penalty"]["mup"] < 0.03 < found["transfer_penalty"]["standard"]


def test_a_rollback_survives_what_ends_an_unguarded_run(tmp_path):
    # Of these larger batches, sequences 2400 to 2879 are steps 76 to 90.
    found = numbers(
        tmp_path,
        "spike-recovery",
        "duration={length: 120 steps, global_batch_size: 32}",
        "grid.fault=[none, nan]",
    )
    lost, losses = found["steps_lost_nan"], found["final_loss_nan"]
    assert losses["none"] == "nan"
    # Seen: 3.077 and 3.074 nats, 3.045 undisturbed. Skipped are the fifteen bad steps; computed again, by going back to
    # the snapshot of step 60, another number.
    assert abs(losses["skip"] - found["undisturbed_loss"]) < 0.1
    assert abs(losses["rollback"] - found["undisturbed_loss"]) < 0.1
    assert lost["skip"] == 15
    assert 0 < lost["rollback"] < 60
