"""Data quantity, breadth, training length and batch size: cells made up from known laws give those laws back."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from blobjax.compute.flops import param_count
from blobjax.config import Config
from blobjax.config.origin import Origin
from blobjax.laws.formulas import LAWS, Settings
from blobjax.report.plots import to_png
from blobjax.studies.analyses import batch_size, data_breadth, data_quantity, fits, training_length
from tests.studies.small import made_up, means, seeded

# Of held-out losses, from seed to seed: enough that no two points are one, and too little for any claim.
APART = 1e-5


def drawn(finding) -> bool:
    return all(to_png(picture.figure).startswith(b"\x89PNG") for picture in finding.pictures)


def model(width: int) -> dict:
    return {"d_model": width, "n_heads": width // 8, "n_layers": 2, "activation": "gelu"}


# Data quantity. E, A, B, alpha, R_D, R_N; no parameters are in excess.
TRUTH = np.array([1.2, 40.0, 300.0, 0.4, 12.0, 1e9])
UNIQUE = 20_000.0


def repeated(width: int, unique: float, epochs: float, off: float = 0.0):
    config = {"model": model(width), "data": {"mixture": {"bible": 1.0}, "seq_len": 64}}
    made = Config.model_validate(config)
    params = float(param_count(made.model, made.conditioning, embeddings=True))
    columns = {"params": params, "tokens": unique * epochs, "unique_tokens": unique}
    loss = LAWS["data-constrained"].predict(TRUTH, {name: np.array([value]) for name, value in columns.items()}).item()
    last = {"tokens": unique * epochs, "data/bible/epochs": epochs, "eval/bible/cross_entropy": loss + off}
    labels = {"size": str(width), "unique": f"{unique:g}", "epochs": f"{epochs:g} epochs"}
    return made_up(labels, [6.0, 3.0], config=config, **last)


@pytest.fixture(scope="module")
def quantity():
    cells = [
        repeated(width, UNIQUE * share, epochs, 1.0 if (width, share, epochs) == (64, 1, 64) else 0.0)
        for width in (16, 32, 64)
        for share in (1, 4, 8, 16, 32, 64)
        for epochs in (1, 4, 16, 64)
        if share * epochs <= 64 and not (share in (8, 32) and epochs > 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Points without noise leave descents a long way to go.
        patch.setattr(fits, "Settings", partial(Settings, starts=4))
        patch.setattr(fits, "RESAMPLES", 20)
        return data_quantity.analyse(cells)


def test_repetition_is_told_at_equal_tokens_and_the_law_that_made_the_cells_comes_out(quantity):
    costs = quantity.numbers["cost_at_1,280,000_tokens, size 32"]
    costs = means(costs)
    assert list(costs) == ["1 epochs", "4 epochs", "16 epochs", "64 epochs"]
    assert costs["1 epochs"] == 0 < costs["4 epochs"] < costs["16 epochs"] < costs["64 epochs"]
    R_D = quantity.laws["data-constrained"]["parameters"]["R_D"]
    assert R_D["value"] == pytest.approx(12, rel=0.02)
    assert quantity.laws["data-constrained"]["points"]["count"] == 3 * 12 - 1
    assert {"fresh-16", "fresh-32", "fresh-64"} <= set(quantity.laws)
    assert drawn(quantity)


def test_what_overfits_is_named_and_left_out_of_the_law(quantity):
    (words,) = (words for words in quantity.words if "overfitting" in words)
    assert words.count("(") == 1
    assert "64_20000_64 epochs" in words
    assert any("without what overfits (1 of the runs)" in words for words in quantity.words)
    assert any("R_N has run away" in words for words in quantity.words)


def test_what_repeated_data_was_worth_is_held_against_fresh_data(quantity):
    once = quantity.worth["4 epochs of 320,000 tokens, size 32"]
    often = quantity.worth["16 epochs of 80,000 tokens, size 32"]
    # (1 + R_D (1 - exp(-(epochs - 1) / R_D))) / epochs
    assert once.multiplier == pytest.approx((1 + 12 * (1 - math.exp(-3 / 12))) / 4, rel=0.02)
    assert often.multiplier == pytest.approx((1 + 12 * (1 - math.exp(-15 / 12))) / 16, rel=0.02)


def test_without_repetition_nothing_is_known_of_what_it_costs():
    assert data_quantity.analyse([]).reproduced is None
    once = data_quantity.analyse([repeated(16, UNIQUE * share, 1, 0.0) for share in (1, 4, 8, 16)])
    assert once.reproduced is None


# Data breadth.
LOSSES = {
    "shakespeare": {"shakespeare": 1.0, "bible": 1.4, "jargon": 1.5},
    "bible": {"shakespeare": 1.4, "bible": 1.0, "jargon": 1.6},
}


def trained_on(name: str, tokens: float):
    """Losses are E + A D^-1/2; the broad run's in a domain are those of a narrow one with 0.7 of its tokens."""
    weights = {"shakespeare": 1.0, "bible": 1.0, "jargon": 0.0} if name == "broad" else {name: 1.0} | {
        other: 0.0 for other in ("shakespeare", "bible", "jargon") if other != name
    }  # fmt: skip
    fall = 300 * tokens**-0.5
    if name == "broad":
        losses = {own: 1 + fall / math.sqrt(0.7) for own in ("shakespeare", "bible")} | {"jargon": 1.2 + 1.1 * fall}
    else:
        losses = {domain: floor + fall for domain, floor in LOSSES[name].items()}
    config = {"data": {"mixture": weights, "seq_len": 64}}
    last = {f"eval/{domain}/cross_entropy": loss for domain, loss in losses.items()} | {"tokens": tokens}
    last |= {f"data/{domain}/epochs": 0.5 for domain, weight in weights.items() if weight}
    return made_up({"training": name, "tokens": f"{tokens:g}"}, [6.0, 3.0], config=config, **last)


def test_breadth_is_judged_in_the_domain_that_nobody_trained_on():
    names, lengths = ("shakespeare", "bible", "broad"), (1e5, 2e5, 4e5, 8e5)
    cells = [trained_on(name, tokens) for name in names for tokens in lengths]
    finding = data_breadth.analyse(seeded(cells, apart=APART))
    assert finding.reproduced is True
    one = data_breadth.analyse(cells)
    assert one.reproduced is None
    assert any("Cannot tell whether the others helped in bible: there is one seed" in words for words in one.words)
    assert any("Cannot tell whether the broad run is ahead there: there is one seed" in words for words in one.words)
    assert finding.numbers["loss_in_jargon"]["broad"].mean == pytest.approx(1.2 + 1.1 * 300 * 8e5**-0.5, rel=APART)
    assert "jargon (trained on by none)" in " ".join(finding.words)
    assert finding.worth["broad, in bible against bible"].multiplier == pytest.approx(0.7, rel=0.02)
    baselines = ("shakespeare-in-shakespeare", "bible-in-bible", "broad-in-jargon")
    assert set(baselines) <= set(finding.laws)
    assert finding.laws["broad-in-jargon"]["parameters"]["alpha"]["value"] == pytest.approx(0.5, rel=0.02)
    narrow = finding.worth["bible, in jargon against broad"]
    # 1.6 + 300 D^-1/2 = 1.2 + 330 d^-1/2
    at = 8e5
    assert narrow.multiplier == pytest.approx((330 / (0.4 + 300 * at**-0.5)) ** 2 / at, rel=0.02)
    assert any("while 50% of its tokens were of it: the others helped too" in words for words in finding.words)
    assert drawn(finding)
    # A broad run that is no better where nobody trained; three lengths are too few for laws.
    worse = [trained_on(name, tokens) for name in names for tokens in lengths[:3]]
    for cell in worse:
        if cell.label("training") == "broad":
            cell.metrics[-1]["eval/jargon/cross_entropy"] += 1
    finding = data_breadth.analyse(seeded(worse, apart=APART))
    assert finding.reproduced == "partly"
    assert finding.worth["broad, in bible against bible"].refused == "the baseline's law was not fitted"


def test_what_breadth_was_worth_has_the_spread_of_the_seeds():
    """The mean over the seeds is worth about 0.7 of a narrow run; with one seed it is worth less than its share."""
    names, lengths = ("shakespeare", "bible", "broad"), (1e5, 2e5, 4e5, 8e5)
    cells = seeded([trained_on(name, tokens) for name in names for tokens in lengths], apart=APART)
    clear = data_breadth.analyse(cells).worth["broad, in bible against bible"]
    assert 0.5 < clear.low < clear.multiplier < clear.high
    for cell in cells:
        if (cell.label("training"), cell.label("tokens")) == ("broad", "800000"):
            cell.metrics[-1]["eval/bible/cross_entropy"] += 0.06 * (cell.cell.config.seed - 1)
    finding = data_breadth.analyse(cells)
    spread = finding.worth["broad, in bible against bible"]
    assert spread.low < 0.5 < spread.multiplier < spread.high
    # Each seed apart, by the loss above the floor of 1: (300 / (loss - 1))^2 / tokens.
    each = [(300 / (300 * 8e5**-0.5 / math.sqrt(0.7) + 0.06 * off)) ** 2 / 8e5 for off in (-1, 0, 1)]
    assert spread.multiplier == pytest.approx(math.exp(np.mean(np.log(each))), rel=0.02)
    assert finding.reproduced == "partly"
    assert any("Cannot tell whether the others helped in bible: the interval over 3 seeds" in words
               for words in finding.words)  # fmt: skip


def test_what_is_compared_had_as_many_tokens():
    names, lengths = ("shakespeare", "bible", "broad"), (1e5, 2e5, 4e5, 8e5)
    whole = [trained_on(name, tokens) for name in names for tokens in lengths]
    of_all = data_breadth.analyse(whole[:3] + whole[4:7] + whole[8:11])
    # The broad run alone came to the end of the longest.
    finding = data_breadth.analyse(whole[:3] + whole[4:7] + whole[8:])
    assert finding.numbers == of_all.numbers
    assert finding.words[0].startswith("After 400,000 tokens")
    assert finding.reproduced == of_all.reproduced
    assert data_breadth.analyse([whole[0], whole[5], whole[8]]).reproduced is None
    # Without a broad run nothing is known of breadth.
    assert data_breadth.analyse(seeded(whole[:8], apart=APART)).reproduced == "partly"
    assert data_breadth.analyse([]).reproduced is None


def test_an_interval_that_is_wider_than_anything_measured_hides_nothing():
    lengths = (1e5, 2e5, 4e5, 8e5)
    cells = [trained_on(name, tokens) for name in ("shakespeare", "bible", "broad") for tokens in lengths]
    for cell, loss in zip(cells[4:8], (3.452, 3.355, 3.343, 3.384), strict=True):
        cell.metrics[-1]["eval/jargon/cross_entropy"] = loss
    finding = data_breadth.analyse(cells)
    (axes,) = finding.pictures[0].figure.axes
    assert finding.laws["bible-in-jargon"]["parameters"]["A"]["high"] > 1e6
    assert axes.get_ylim()[1] < 4


# Training length.
def length(name: str, steps: int, loss: float, began: int | None = None, **optimizer):
    duration = {"start_from": "trunk@80%"} if began else {}
    config = {"data": {"mixture": {"bible": 1.0}, "seq_len": 64}, "duration": duration, "optimizer": optimizer}
    events = [{"event": "branch", "time": 0.0, "step": began}] if began else []
    last = {"tokens": steps * 1024.0, "eval/bible/cross_entropy": loss, "step": steps}
    return made_up({"run": name}, [6.0, 3.0], config=config, events=events, **last)


def of_seeds(cells):
    """The same with three seeds, the branches of each from its own trunk."""
    found = []
    for result in seeded(cells, apart=APART):
        config = result.cell.config
        if result.cell.after:
            origin = Origin.parse(f"{config.seed}_trunk@80%")
            duration = config.duration.model_copy(update={"start_from": origin})
            result = replace(result, cell=replace(result.cell, config=config.model_copy(update={"duration": duration})))
        found.append(result)
    return found


def test_the_price_of_trunk_and_branches_and_the_law_through_them():
    curve = {steps: 1.2 + 90 * (steps * 1024) ** -0.4 for steps in (100, 200, 400, 800)}
    cells = [length("trunk", 640, 2.0, schedule="constant")]
    cells += [length(f"branch_{n}", n, loss, began=n * 8 // 10 - 10, schedule="wsd") for n, loss in curve.items()]
    cells += [length("cosine_400", 400, curve[400] + 0.01, schedule="cosine")]
    finding = training_length.analyse(of_seeds(cells))
    assert finding.reproduced is True
    numbers = training_length.analyse(cells).numbers
    assert training_length.analyse(cells).reproduced is None
    per_step = numbers["flops_of_runs_of_their_own"] / 1500
    assert numbers["flops_of_trunk_and_branches"] == pytest.approx(per_step * (640 + 0.2 * 1500 + 4 * 10))
    assert means(numbers["branch_above_own_run"]) == {"branch_400": pytest.approx(-0.01)}
    assert finding.laws["branches"]["parameters"]["alpha"]["value"] == pytest.approx(0.4, rel=0.01)
    assert finding.worth["0_cosine_400"].multiplier < 1
    assert drawn(finding)
    assert "and runs of their own" in finding.pictures[0].caption
    assert "runs of their own" not in training_length.analyse(cells[:-1]).pictures[0].caption
    cells[-1] = length("cosine_400", 400, curve[400] - 0.2, schedule="cosine")
    assert training_length.analyse(of_seeds(cells)).reproduced is False
    # A trunk that diverged at its end, and one without branches.
    ends = [cell if cell.cell.name != "trunk" else replace(cell, status="diverged") for cell in cells]
    assert training_length.analyse(ends).words == ("No branch finished whose trunk did.",)
    assert training_length.analyse(cells[:1]).reproduced is None


# Batch size.
def batch(size: int, rate: float, slower: float, noise: float = 0.0):
    """To a loss of 4 - s it takes 100 s (1 + 10 s / B) steps, times `slower`."""
    config = {
        "data": {"mixture": {"bible": 1.0}},
        "duration": {"global_batch_size": size},
        "optimizer": {"learning_rate": rate},
    }
    result = made_up({"batch": str(size), "learning_rate": f"{rate:g}"}, [6.0, 5.0], config=config)
    result.metrics.clear()
    for s in np.linspace(0.2, 2.1, 60):
        step = round(100 * s * (1 + 10 * s / size) * slower * 1000)
        line = {"step": step, "cross_entropy": 4 - s, "eval/bible/cross_entropy": 4 - s}
        result.metrics.append(line | ({"flow/run/noise_scale": noise * 10 * s} if noise else {}))
    return result


@pytest.fixture(scope="module")
def batches():
    rates = {4: 1e-3, 16: 2e-3, 64: 4e-3}
    return [
        batch(size, rate, 1.0 if rate == best else 1.5, noise=2.0 if (size, rate) == (64, best) else 0)
        for size, best in rates.items()
        # A factor of the square root of two apart: half a step leaves the slope between 0.375 and 0.625.
        for rate in (5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.7e-3, 8e-3)
    ]


def test_the_critical_batch_comes_from_steps_and_from_noise(batches):
    finding = batch_size.analyse(seeded(batches, (0, 1), APART))
    assert finding.reproduced is True
    # The laws of one seed have intervals; how the best rate grows has none.
    one = batch_size.analyse(batches)
    assert one.reproduced == "partly"
    assert any(words.startswith("Cannot tell whether the best learning rate grows") for words in one.words)
    critical, noise = finding.numbers["critical_batch"], finding.numbers["noise_scale"]
    assert len(critical) == batch_size.TARGETS
    for name, found in critical.items():
        expected = 10 * (4 - float(name.removesuffix(" nats")))
        assert found == pytest.approx(expected, rel=0.02)
        assert noise[name].mean == pytest.approx(2 * expected, rel=0.02)
        assert noise[name].seeds == 2
    assert finding.numbers["learning_rate"] == {"batch 4": 1e-3, "batch 16": 2e-3, "batch 64": 4e-3}
    assert "of-the-loss" in finding.laws
    # At the lowest loss L all came to, B_crit is 10 (4 - L): a batch of B wastes what is beyond.
    lowest = min(float(name.removesuffix(" nats")) for name in critical)
    at = 10 * (4 - lowest)
    for size in (4, 16, 64):
        worth = finding.worth[f"batch {size} against 4"]
        assert worth.multiplier == pytest.approx((4 + at) / (size + at), rel=0.02)
        assert worth.low <= worth.multiplier <= worth.high
        assert worth.loss == lowest
    assert drawn(finding)


def test_without_resamples_the_worth_of_a_batch_has_no_interval(batches, monkeypatch):
    monkeypatch.setattr(fits, "RESAMPLES", 0)
    worth = batch_size.analyse(batches).worth["batch 16 against 4"]
    assert worth.multiplier < 1
    assert (worth.low, worth.high) == (None, None)


def test_a_best_rate_at_the_edge_of_those_tried_says_nothing_of_how_it_grows(batches):
    finding = batch_size.analyse([cell for cell in batches if cell.cell.config.optimizer.learning_rate >= 1e-3])
    assert finding.reproduced == "partly"
    assert any("0.001 at batch 4 (the edge of what was tried)" in words for words in finding.words)
    assert "how it grows with the batch is not known" in finding.words[-1]


def test_rates_a_factor_of_two_apart_do_not_tell_that_the_best_grows_as_the_square_root(batches):
    """All seeds find the same rate of a coarse grid, so the interval of the slope over them has no width."""
    coarse = [cell for cell in batches if cell.cell.config.optimizer.learning_rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)]
    finding = batch_size.analyse(seeded(coarse, (0, 1), APART))
    assert finding.reproduced == "partly"
    # Half a factor of two, either way at batches 4 and 64: ln 2 / ln 16 = 1/4.
    (words,) = (words for words in finding.words if "the best learning rate grows about" in words)
    assert words.startswith("Cannot tell")
    assert "0.50 (0.25 to 0.75)" in words
    assert "half a step between the rates" in words


def test_a_batch_without_a_loss_is_named_and_one_that_is_there_at_once_tells_no_steps(batches):
    lost = batch(128, 1e-3, 1.0)
    for line in lost.metrics:
        line["eval/bible/cross_entropy"] = math.nan
    finding = batch_size.analyse([*batches, lost])
    assert any("No run with a batch of 128 has a held-out loss" in words for words in finding.words)
    assert len(finding.numbers["critical_batch"]) == batch_size.TARGETS
    quick = batch(128, 1e-3, 1.0)
    del quick.metrics[:-1]
    finding = batch_size.analyse([*batches, quick])
    assert finding.numbers["critical_batch"] == {}
    assert any("with a batch of 128 the loss was there at the first" in words for words in finding.words)


def test_the_loss_of_a_mixture_is_that_of_all_its_domains():
    result = made_up(
        {"batch": "4"}, [6.0], config={"data": {"mixture": {"bible": 3.0, "jargon": 1.0, "shakespeare": 0}}}
    )
    result.metrics.append({"step": 9, "eval/bible/cross_entropy": 2.0, "eval/jargon/cross_entropy": 4.0})
    assert fits.evaluations(result) == ([9], [2.5])


def test_a_noise_scale_far_from_the_critical_batch_is_not_as_expected(batches):
    for cell in batches:
        for line in cell.metrics:
            if "flow/run/noise_scale" in line:
                line["flow/run/noise_scale"] /= 10
    finding = batch_size.analyse(seeded(batches, (0, 1), APART))
    assert finding.reproduced == "partly"
    assert any("more than a factor of 3 apart: not as expected" in words for words in finding.words)
    one = batch_size.analyse(batches)
    assert any("Cannot tell whether the noise scale" in words and "there is one seed" in words for words in one.words)
    # With one seed a fifth of the critical batch and with the other five times it: in the mean they would agree.
    cells = seeded(batches, (0, 1), APART)
    for cell in cells:
        for line in cell.metrics:
            if "flow/run/noise_scale" in line:
                line["flow/run/noise_scale"] *= 25 if cell.cell.config.seed else 1
    spread = batch_size.analyse(cells)
    assert any("Cannot tell whether the noise scale" in words and "allows both" in words for words in spread.words)


def test_steps_to_a_loss_lie_between_evaluations_and_noise_around_it_counts_once():
    result = made_up({"batch": "4", "learning_rate": "1"}, [6.0], config={"data": {"mixture": {"bible": 1.0}}})
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5), (40, 1.0)):
        result.metrics.append({"step": step, "eval/bible/cross_entropy": loss})
    assert batch_size.steps_to(result, 2.5) == pytest.approx(math.sqrt(200))
    assert batch_size.steps_to(result, 3.5) == 10
    assert batch_size.steps_to(result, 1.5) == pytest.approx(math.sqrt(1200))
    assert batch_size.steps_to(result, 0.5) == math.inf
