"""Shares, unique tokens and held-out loss: one rule for reports, laws and studies."""

import math

import pytest

from blobjax.runs import mixture
from tests.tiny import tiny

CONFIG = tiny(
    "data.sources={empty: {kind: text, path: nowhere.txt}}",
    "data.mixture={shakespeare: 2, bible: 1, mathematics: 1, empty: 0}",
)


def test_shares_are_of_what_is_trained_on():
    assert mixture.shares(CONFIG) == {"shakespeare": 0.5, "bible": 0.25, "mathematics": 0.25}


def test_unique_tokens_are_not_known_without_any_one_of_the_domains():
    metrics = [
        {"step": 1, "data/shakespeare/epochs": 1.0, "data/bible/epochs": 2.0},
        {"step": 2, "data/shakespeare/epochs": 4.0, "data/mathematics/epochs": 0.5, "data/size": 7},
    ]
    seen = mixture.epochs(metrics)
    assert seen == {"shakespeare": 4, "bible": 2, "mathematics": 0.5}
    assert mixture.unique_tokens(CONFIG, 800, seen) == 800 * (0.5 / 4 + 0.25 / 2 + 0.25)
    for name in seen:
        assert math.isnan(mixture.unique_tokens(CONFIG, 800, {**seen, name: math.nan}))
        assert math.isnan(mixture.unique_tokens(CONFIG, 800, {each: seen[each] for each in seen if each != name}))


def test_held_out_loss_is_weighted_as_the_training():
    losses = {"eval/shakespeare/cross_entropy": 2.0, "eval/bible/cross_entropy": 3.0, "eval/empty/cross_entropy": 99.0}
    assert math.isnan(mixture.held_out_loss(CONFIG, losses))
    losses["eval/mathematics/cross_entropy"] = 1.0
    assert mixture.held_out_loss(CONFIG, losses) == pytest.approx(2.0)
    assert math.isnan(mixture.held_out_loss(CONFIG, {**losses, "eval/bible/cross_entropy": "nan"}))
