import math
import re

import pytest

from blobjax.config import BatchSizes, Clockwork, Duration

CLOCKWORK = Clockwork(tokens_per_step=1000, flops_per_token=6e6, params=50_000, tokens_per_epoch=1_000_000, length=300)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300 steps", 300, "steps"),
        ("1 step", 1, "steps"),
        ("20M tokens", 20e6, "tokens"),
        ("20 M tokens", 20e6, "tokens"),
        ("1.5k tokens", 1500, "tokens"),
        ("15.6T tokens", 15.6e12, "tokens"),
        ("2e15 flops", 2e15, "flops"),
        ("2E+15 FLOPs", 2e15, "flops"),
        ("20 tokens/param", 20, "tokens/param"),
        ("20 token/params", 20, "tokens/param"),
        ("3 epochs", 3, "epochs"),
        (".5 epochs", 0.5, "epochs"),
        ("5%", 5, "%"),
        ("5 percent", 5, "%"),
        ("10 minutes", 10, "minutes"),
        ("10minutes", 10, "minutes"),
        ("2 hours", 2, "hours"),
        ("30 seconds", 30, "seconds"),
        ("1 day", 1, "days"),
        ("  7   steps ", 7, "steps"),
    ],
)
def test_parse(text, amount, unit):
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize(
    "wrong",
    ["", "steps", "300", "20M", "-3 steps", "3 parsecs", "1e999 steps", "nan steps", "3 4 steps", 300, 3.0, None, True],
)
def test_what_is_no_duration_is_refused_with_examples(wrong):
    with pytest.raises(ValueError, match=r"300 steps.*not "):
        Duration.parse(wrong)


@pytest.mark.parametrize(
    "text",
    ["300 steps", "1 step", "20M tokens", "15.6T tokens", "33.333333333% ", "1234567.5 tokens", "2e15 flops", "7 days"],
)
def test_text_is_read_back_as_exactly_the_same(text):
    duration = Duration.parse(text)
    assert Duration.parse(str(duration)) == duration


def test_text_is_short():
    assert [str(Duration.parse(t)) for t in ("20000000 tokens", "1 step", "5%", "0.5 epochs", "1234567 tokens")] == [
        "20M tokens",
        "1 step",
        "5%",
        "0.5 epochs",
        "1234567 tokens",
    ]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("300 steps", 300),
        ("2.5 steps", 3),
        ("10k tokens", 10),
        ("10001 tokens", 11),
        ("1 token", 1),
        ("6e10 flops", 10),
        ("20 tokens/param", 1000),
        ("2 epochs", 2000),
        ("0.0001 epochs", 1),
        ("2%", 6),
        ("0.1%", 1),
        ("100%", 300),
        ("0 steps", 0),
        ("0.000000000001 tokens", 1),
    ],
)
def test_steps_are_rounded_up(text, steps):
    assert Duration.parse(text).steps(CLOCKWORK) == steps


def test_a_rounding_in_the_division_is_no_further_step():
    for params in (49_999, 3_280_128, 8_030_261_248, 405_853_388_800):
        for tokens_per_step in (1000, 3072, 8192 * 512):
            clockwork = Clockwork(tokens_per_step, 6e6, params, 1)
            exact = -(-20 * params // tokens_per_step)
            assert Duration(20, "tokens/param").steps(clockwork) == exact
    for length in range(1, 2000):
        clockwork = Clockwork(1000, 6e6, 1, 1, length)
        assert Duration(5, "%").steps(clockwork) == math.ceil(length / 20)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1:30:00", "not '1:30:00'; write '90 minutes'"),
        ("2:00:00", "not '2:00:00'; write '2 hours'"),
        ("48:00:00", "not '48:00:00'; write '2 days'"),
        ("0:00:25", "not '0:00:25'; write '25 seconds'"),
        ("1:00:01", "not '1:00:01'; write '3601 seconds'"),
        ("0:00:00", "not '0:00:00'; write '0 seconds'"),
        ("01:30", "not '01:30'; write '90 minutes' (hours:minutes) or '90 seconds' (minutes:seconds)"),
        ("1:3", "not '1:3'"),
        ("1:30:00:00", "not '1:30:00:00'"),
    ],
)
def test_a_time_with_colons_says_what_to_write(text, says):
    with pytest.raises(ValueError, match=f"{re.escape(says)}$"):
        Duration.parse(text)
    for duration in re.findall(r"write '([^']*)'| or '([^']*)' \(", says):
        assert Duration.parse("".join(duration)).seconds is not None


def test_time_is_no_number_of_steps():
    assert Duration.parse("2 hours").seconds == 7200
    assert Duration.parse("2 steps").seconds is None
    with pytest.raises(ValueError, match="'2 hours' is wall-clock time"):
        Duration.parse("2 hours").steps(CLOCKWORK)


def test_a_percentage_of_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="not known yet"):
        Duration.parse("5%").steps(Clockwork(1000, 6e6, 1, 1))


@pytest.mark.parametrize("smaller", [(), ((3, 4), (2, 8)), ((1, 8),)])
def test_batch_sizes_are_those_of_a_list_written_out(smaller):
    batches = BatchSizes(16, smaller)
    sizes = [size for many, size in smaller for _ in range(many)] + [16] * 5
    assert [batches.at(step) for step in range(1, len(sizes) + 1)] == sizes
    assert [batches.sequences(steps) for steps in range(len(sizes) + 1)] == [
        sum(sizes[:n]) for n in range(len(sizes) + 1)
    ]
    for sequences in range(sum(sizes) + 1):
        assert batches.steps(sequences) == next(n for n in range(len(sizes) + 1) if sum(sizes[:n]) >= sequences)


def test_smaller_first_steps_are_made_up_for_where_data_is_counted_and_nowhere_else():
    clockwork = Clockwork(16, 1.0, 16, 16, 300, BatchSizes(16, ((4, 4), (4, 8))))
    # Eight small steps are worth three.
    for text in ("10 epochs", "160 tokens", "160 flops", "10 tokens/param"):
        assert (Duration.parse(text).first_steps(clockwork), Duration.parse(text).steps(clockwork)) == (15, 10)
    assert Duration.parse("10 steps").first_steps(clockwork) == 10
    assert Duration.parse("10%").first_steps(clockwork) == 30
