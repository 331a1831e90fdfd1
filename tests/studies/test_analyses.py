"""Analyses of cells that were made up, against numbers worked out by hand."""

import math

import pytest

from blobjax.compute.flops import flops_per_token
from blobjax.report.plots import smooth, to_png
from blobjax.studies.analyses import (
    bf16_rounding,
    final_loss,
    fp16_loss_scaling,
    in_context,
    lr_sensitivity,
    mup_transfer,
    norm_placement,
    precision_ladder,
    spike_recovery,
)
from tests.studies.small import made_up, means, seeded


def rated(labels: dict[str, str], rate: float, losses: list[float], **last: float):
    return made_up(labels, losses, config={"optimizer": {"learning_rate": rate}}, **last)


def drawn(finding) -> bool:
    return all(to_png(picture.figure).startswith(b"\x89PNG") for picture in finding.pictures)


def test_lr_sensitivity_by_hand():
    """Initial loss 6. neither: 3, 2, 8 → capped 6, NaN → 6: mean 4.25, less the lowest 2. qk_norm: 3, 2, 2, 3."""
    cells = []
    for name, finals, logit in (("neither", (3, 2, 8, math.nan), 2e4), ("qk_norm", (3, 2, 2, 3), 20.0)):
        for rate, final in zip((0.001, 0.01, 0.1, 1.0), finals, strict=True):
            probe = {"flow/block_00/attention_logit_max": logit * rate}
            cells.append(rated({"conditioning": name, "learning_rate": str(rate)}, rate, [6.0] + [final] * 9, **probe))
    finding = lr_sensitivity.analyse(seeded(cells))
    assert means(finding.numbers["sensitivity"]) == {"neither": 2.25, "qk_norm": 0.5}
    assert means(finding.numbers["largest_attention_logit"]) == {"neither": 2e4, "qk_norm": 20.0}
    assert finding.numbers["best_learning_rate"] == {"neither": 0.01, "qk_norm": 0.01}
    # The z-loss was not tried.
    assert finding.reproduced == "partly"
    assert drawn(finding)

    def z_loss(*finals: float) -> list:
        rates = zip((0.001, 0.01, 0.1, 1.0), finals, strict=True)
        probe = {"flow/block_00/attention_logit_max": 9e4}
        return [rated({"conditioning": "z_loss", "learning_rate": str(rate)}, rate, [6.0] + [final] * 9, **probe)
                for rate, final in rates]  # fmt: skip

    both = lr_sensitivity.analyse(seeded([*cells, *z_loss(3, 2, 2, 3)]))
    assert both.reproduced is True
    # The sentence names the kinds whose logits it has, which are those of the table.
    (words,) = (words for words in both.words if words.startswith("The largest attention logit"))
    for name, logit in both.numbers["largest_attention_logit"].items():
        assert f"{name} {logit.shown(',.0f')}" in words
    assert "z_loss 90,000" in words
    worse = lr_sensitivity.analyse(seeded([*cells, *z_loss(3, 2, 8, 8)]))
    assert "The z-loss does not lower it (from 2.250 to 2.250): this part did not reproduce." in worse.words


def test_lr_sensitivity_cannot_tell_from_one_seed_or_a_best_rate_at_the_edge():
    cells = [
        rated({"conditioning": name, "learning_rate": str(rate)}, rate, [6.0] + [final] * 9,
              **{"flow/block_00/attention_logit_max": logit})
        for name, finals, logit in (("neither", (3, 2, 8), 2e4), ("qk_norm", (2, 2.5, 3), 20.0))
        for rate, final in zip((0.001, 0.01, 0.1), finals, strict=True)
    ]  # fmt: skip
    one = lr_sensitivity.analyse(cells)
    assert one.reproduced is None
    assert not any("did not reproduce" in words or "not as expected" in words for words in one.words)
    assert any("Cannot tell" in words and "one seed" in words for words in one.words)
    edge = lr_sensitivity.analyse(seeded(cells))
    assert any("Cannot tell whether QK-norm lowers it" in words and "qk_norm, the best learning rate, 0.001, is at the "
               "edge" in words for words in edge.words)  # fmt: skip
    # In the mean over the seeds the best is inside: one seed whose best is not is enough for doubt.
    inside = [
        rated(cell.cell.labels, cell.cell.config.optimizer.learning_rate, [6.0] + [final] * 9,
              **{"flow/block_00/attention_logit_max": 20.0})
        for cell, final in zip(cells, (3, 2, 8, 3, 2, 3), strict=True)
    ]  # fmt: skip
    mixed = lr_sensitivity.analyse([*seeded(inside, (0, 1)), *seeded(cells, (2,))])
    assert mixed.numbers["best_learning_rate"]["qk_norm"] == 0.01
    assert any("Cannot tell whether QK-norm lowers it" in words and "edge of what was tried with seed 2" in words
               for words in mixed.words)  # fmt: skip
    single = lr_sensitivity.analyse(seeded([cells[0], cells[3]]))
    assert any("1 learning rate cannot have" in words for words in single.words)


@pytest.mark.parametrize(
    ("finals", "reproduced"),
    [
        ({"nearest": 4.5, "stochastic": 3.67, "kahan": 3.66}, True),
        ({"nearest": 4.5, "stochastic": 3.9, "kahan": 3.66}, "partly"),
        ({"nearest": 3.66, "stochastic": 3.9, "kahan": 3.9}, False),
    ],
)
def test_bf16_rounding_is_judged_at_the_smallest_learning_rate(finals, reproduced):
    small, large = ({"float32": 3.66} | finals, {"float32": 2.5, "nearest": 2.5, "stochastic": 2.5, "kahan": 2.5})
    cells = [
        rated({"parameters": name, "learning_rate": rate}, float(rate), [6.0] + [final] * 9)
        for rate, losses in (("0.001", large), ("0.0001", small))
        for name, final in losses.items()
    ]
    finding = bf16_rounding.analyse(seeded(cells))
    assert finding.reproduced == reproduced
    assert bf16_rounding.analyse(cells).reproduced is None
    assert finding.numbers["gap_at_0.0001"]["nearest"].mean == pytest.approx(finals["nearest"] - 3.66)
    assert drawn(finding)


def test_fp16_loss_scaling():
    finals = {"float32": 2.58, "float16": 3.3, "static": 2.58, "dynamic": 2.59}
    cells = [made_up({"precision": name}, [6.0] + [final] * 9, skipped=2.0) for name, final in finals.items()]
    finding = fp16_loss_scaling.analyse(seeded(cells))
    assert finding.reproduced is True
    assert finding.numbers["skipped_steps"]["dynamic"].mean == 2
    assert fp16_loss_scaling.analyse(cells).reproduced is None
    assert not any("flushed gradients" in words for words in finding.words)
    for cell in cells:
        cell.metrics[-1]["flow/block_00/grad_flush_fraction"] = 0.5
    probed = fp16_loss_scaling.analyse(seeded(cells))
    assert any("of all gradients in narrower formats" in words for words in probed.words)
    cells[3] = made_up({"precision": "dynamic"}, [6.0, math.nan], status="diverged")
    assert fp16_loss_scaling.analyse(seeded(cells)).reproduced == "partly"
    assert drawn(finding)


def test_precision_ladder():
    cells = [
        made_up(
            {"precision": name},
            [6.0] + [final] * 9,
            **({"flow/block_00/weight_sqnr_db": noise, "flow/block_00/grad_flush_fraction": 0.1} if noise else {}),
        )
        for name, final, noise in (
            ("float32", 2.5, 0),
            ("fp8", 2.51, 30.0),
            ("mxfp8", 2.5, 31.0),
            ("mxfp6", 2.53, 24.0),
            ("mxfp4", 2.9, 15.0),
        )
    ]
    finding = precision_ladder.analyse(seeded(cells))
    assert finding.reproduced is True
    assert precision_ladder.analyse(cells).reproduced is None
    assert "float32 has neither, and no line." in finding.pictures[1].caption
    assert "of all gradients in narrower formats" in finding.pictures[1].caption
    assert finding.numbers["gap"]["mxfp4"].mean == pytest.approx(0.4)
    assert finding.numbers["weight_sqnr_db"]["mxfp6"].mean == 24.0
    assert drawn(finding)


def placed(placement: str, depth: int, warmup: str, final: float, stream: tuple[float, float], gradient: float = 1e-3):
    probes = {f"flow/block_{n:02d}/residual_rms": stream[n > 0] for n in range(depth)}
    probes |= {"flow/embedding/residual_rms": 0.5}
    probes |= {f"flow/block_{n:02d}/grad_rms": gradient for n in range(depth)}
    config = {"model": {"n_layers": depth}, "duration": {"warmup": f"{warmup} steps"}}
    labels = {"placement": placement, "depth": str(depth), "warmup": warmup}
    return made_up(labels, [6.0] + [final] * 9, config=config, **probes)


def test_norm_placement():
    cells = [
        *(placed("pre", depth, warmup, 2.5, (1.0, float(depth))) for depth in (2, 4) for warmup in ("0", "60")),
        *(placed("post", depth, "60", 2.5, (1.0, 1.0)) for depth in (2, 4)),
        placed("post", 2, "0", 2.6, (1.0, 1.0)),
        placed("post", 4, "0", 3.4, (1.0, 1.0), gradient=1e-15),
    ]
    finding = norm_placement.analyse(seeded(cells))
    assert finding.reproduced is True
    assert norm_placement.analyse(cells).reproduced is None
    assert means(finding.numbers["growth of the residual stream, 4 blocks"]) == {"pre": 8.0, "post": 2.0}
    assert "1 of 8 cells did not train" in finding.words[0]
    assert "post_4_0" in finding.words[0]
    assert "vanished" in " ".join(finding.words)
    assert drawn(finding)
    stuck = [*cells[:5], placed("post", 4, "60", 3.4, (1.0, 1.0)), *cells[6:]]
    assert norm_placement.analyse(seeded(stuck)).reproduced == "partly"


def test_mup_transfer():
    """µP: minimum at 0.01 at either width. Standard: at 0.01 on the narrow model, whose loss there on the wide is 3."""
    cells = []
    for kind, width, losses, stream in (
        ("standard", 64, (2.8, 2.5), 7.0),
        ("standard", 256, (2.4, 3.0), 50.0),
        ("mup", 64, (2.8, 2.5), 7.0),
        ("mup", 256, (2.6, 2.3), 7.5),
    ):
        for rate, final in zip((0.001, 0.01, 0.1), (*losses, 3.5), strict=True):
            config = {"optimizer": {"learning_rate": rate}, "model": {"d_model": width, "n_layers": 1}}
            labels = {"parametrisation": kind, "width": str(width), "learning_rate": str(rate)}
            probe = {"flow/block_00/residual_rms": stream}
            cells.append(made_up(labels, [6.0] + [final] * 9, config=config, **probe))
    finding = mup_transfer.analyse(seeded(cells))
    assert means(finding.numbers["transfer_penalty"]) == {"standard": pytest.approx(0.6), "mup": 0}
    assert finding.numbers["coordinate_spread"]["mup"].mean == pytest.approx(0.5 / 7.25)
    assert finding.numbers["coordinate_largest_over_smallest"]["standard"].mean == pytest.approx(50 / 7)
    assert finding.reproduced is True
    assert drawn(finding)
    assert mup_transfer.analyse(cells).reproduced is None
    few = mup_transfer.analyse(seeded([cell for cell in cells if cell.label("learning_rate") != "0.001"]))
    assert few.reproduced == "partly"
    assert any("Cannot tell whether µP's learning rate transfers" in words for words in few.words)
    # The wide model's best is the lowest rate of one seed: a lower one might cost more than was seen.
    finals = {"0.001": 2.29, "0.01": 2.3, "0.1": 3.5}
    steep = [
        made_up(cell.cell.labels, [6.0] + [finals[cell.label("learning_rate")]] * 9,
                config=cell.cell.config.model_dump(mode="json"), **{"flow/block_00/residual_rms": 7.5})
        if (cell.label("parametrisation"), cell.label("width")) == ("mup", "256") else cell
        for cell in cells
    ]  # fmt: skip
    edge = mup_transfer.analyse([*seeded(cells, (0, 1)), *seeded(steep, (2,))])
    assert edge.numbers["best_learning_rate_mup"]["256"] == 0.01
    assert edge.reproduced == "partly"
    assert any("learning rate of the widest model, 0.001, is at the edge of what was tried with seed 2" in words
               for words in edge.words)  # fmt: skip
    narrow = mup_transfer.analyse(seeded([cell for cell in cells if cell.label("width") == "64"]))
    assert narrow.reproduced is None
    assert sum("there is one width" in words for words in narrow.words) == 3


def test_spike_recovery_counts_steps_once():
    rollback = [
        {"event": "skip", "step": 4, "time": 0.0},
        {"event": "skip", "step": 90, "time": 0.0},
        *({"event": "skip", "step": step, "time": 0.0} for step in range(151, 162)),
        {"event": "rollback", "step": 161, "to_step": 140, "time": 0.0},
    ]
    cells = [made_up({"fault": "none", "guard": name}, [6.0] + [2.3] * 9) for name in ("none", "skip", "rollback")]
    for fault, bare in (("nan", math.nan), ("poison", 2.4)):
        cells.append(made_up({"fault": fault, "guard": "none"}, [6.0] + [bare] * 9))
        cells.append(made_up({"fault": fault, "guard": "skip"}, [6.0] + [2.32] * 9, events=rollback[:2]))
        cells.append(made_up({"fault": fault, "guard": "rollback"}, [6.0] + [2.3] * 9, events=rollback))
    finding = spike_recovery.analyse(seeded(cells))
    assert means(finding.numbers["steps_lost_nan"]) == {"none": 0, "skip": 2, "rollback": 2 + 21}
    assert finding.reproduced is True
    assert drawn(finding)
    # That a NaN ends the run is no matter of size; that the guards got over it is.
    one = spike_recovery.analyse(cells)
    assert one.reproduced == "partly"
    assert sum(words.startswith("Cannot tell") for words in one.words) == 4


def test_any_grid_without_a_verdict():
    cells = [made_up({"a": "x", "b": b}, [6.0, final]) for b, final in (("1", 3.0), ("2", math.nan))]
    finding = final_loss.analyse(cells)
    assert finding.reproduced is None
    assert "that of x_1" in finding.words[0]
    assert "1 of 2" in finding.words[1]
    assert drawn(finding)


def test_smooth():
    assert smooth(([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0]), 2) == ([1, 2, 3, 4], [1.0, 2.0, 4.0, 6.0])


def in_contexts(layers: int, early: tuple[float, float], late: tuple[float, float]):
    """Two domains a nat apart; loss of the two ranges of the score at the first and the last evaluation."""
    config = {"model": {"n_layers": layers}, "data": {"mixture": {"bible": 1, "shakespeare": 1}}}
    cell = made_up({"layers": str(layers)}, [6.0] + [2.0] * 9, config=config)
    for line, a, b in zip((cell.metrics[4], cell.metrics[-1]), early, late, strict=True):
        for domain, more in (("bible", 0.0), ("shakespeare", 1.0)):
            losses = {0: 4.0, 1: 3.5, 2: a, 4: (a + b) / 2, 8: b}
            line |= {f"eval/{domain}/cross_entropy_at/{at}": loss + more for at, loss in losses.items()}
            line |= {f"eval/{domain}/cross_entropy": a + more}
    return cell


@pytest.mark.parametrize(
    ("two_early", "two_late", "reproduced"),
    [((2.5, 2.0), (2.4, 1.5), True), ((2.5, 2.0), (2.4, 1.95), "partly"), ((2.5, 2.0), (2.0, 2.1), False)],
)
def test_in_context_compares_late_with_early(two_early, two_late, reproduced):
    one = in_contexts(1, (2.6, 2.2), (2.5, 2.1))
    two = in_contexts(2, two_early, two_late)
    finding = in_context.analyse(seeded([one, two]))
    assert in_context.analyse([one, two]).reproduced is None
    assert means(finding.numbers["in_context_score"]) == pytest.approx(
        {"1 layer": -0.1, "2 layers": two_late[1] - two_early[1]}
    )
    assert finding.numbers["loss_at_8"]["1 layer"].mean == pytest.approx(2.6)
    assert finding.numbers["nine_tenths_of_the_fall_by"]["1 layer"] == 2
    assert finding.reproduced == reproduced
    assert drawn(finding)


def test_what_context_is_worth_is_how_much_longer_one_would_have_to_train():
    """Losses after a law of which the late one at any length is the early one at a third more compute."""
    runs = []
    for steps in (400, 60, 250, 100, 160):
        flops = 1e9 * steps
        early, late = (1.0 + 500 * (flops * more) ** -0.25 for more in (1.0, 4 / 3))
        cell = in_contexts(2, (early, early), (late, late))
        tokens = flops / flops_per_token(cell.cell.config.model, cell.cell.config.data.seq_len)
        cell.metrics[-1] |= {"step": steps, "tokens": tokens}
        runs.append(cell)
    finding = in_context.analyse(runs)
    assert finding.laws["2-layers-after-2"]["parameters"]["alpha"]["value"] == pytest.approx(0.25, rel=0.01)
    found = {name.split(" steps")[0]: worth for name, worth in finding.worth.items()}
    assert list(found) == [f"2 layers, {steps}" for steps in (60, 100, 160, 250, 400)]
    for steps in (60, 100, 160, 250):
        assert found[f"2 layers, {steps}"].multiplier == pytest.approx(4 / 3, rel=1e-3)
    # As good would only be a run longer than all there are.
    assert "more than 1 times" in found["2 layers, 400"].refused
    # The curves are those of the longest.
    assert finding.numbers["loss_at_2"]["2 layers"].mean == pytest.approx(1.5 + 500 * 4e11**-0.25)


def test_in_context_of_one_layer_is_no_reproduction():
    one = in_contexts(1, (2.6, 2.2), (2.5, 2.1))
    finding = in_context.analyse(seeded([one]))
    assert finding.reproduced == "partly"
    few = in_contexts(1, (2.6, 2.2), (2.5, 2.1))
    for line in few.metrics:
        for name in [name for name in line if name.endswith(("at/4", "at/8", "at/0"))]:
            del line[name]
    assert "three ranges" in in_context.analyse([few]).words[0]


def test_in_context_needs_evaluations_by_position():
    assert in_context.analyse([made_up({"layers": "1"}, [3.0] * 10)]).reproduced is None
