"""The scale follows its rule, an overflow leaves no trace but in the scale, and the guard hears of what it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax.conditioning.guards import guarded
from blobjax.conditioning.loss_scaling import loss_scaled
from blobjax.config.schema import Guard, LossScaling

PARAMS = {"w": jnp.array([[1.0, -0.0], [0.0, -2.0]]), "b": jnp.array([-0.0, 3.0])}
INNER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
GUARD = Guard(window=4, sigmas=3)


def steps(n: int, seed: int = 0) -> list[tuple[dict, float]]:
    rng = np.random.default_rng(seed)
    return [
        ({name: rng.standard_normal(p.shape).astype(np.float32) for name, p in PARAMS.items()}, 2 + 0.1 * rng.random())
        for _ in range(n)
    ]


def overflowing(step: tuple[dict, float], bad: float = np.inf) -> tuple[dict, float]:
    return {**step[0], "b": np.array([bad, 0], np.float32)}, step[1]


def train(settings: LossScaling, sequence, guard: Guard | None = None):
    """Parameters and optimizer state after each step."""
    optimizer = loss_scaled(guarded(INNER, guard) if guard else INNER, settings, guarded=guard is not None)
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state, grads, loss):
        updates, state = optimizer.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    for grads, loss in sequence:
        params, state = step(params, state, grads, jnp.float32(loss))
        yield jax.device_get(params), jax.device_get(state)


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def by_hand(settings: LossScaling, overflows) -> list[tuple[float, int, int]]:
    """Scale, good steps in a row and skipped steps after each step, by the rule as it is written down."""
    scale, good, skipped, found = settings.initial, 0, 0, []
    for overflow in overflows:
        if overflow:
            good, skipped = 0, skipped + 1
            if settings.kind == "dynamic":
                scale = max(scale / 2, settings.floor)
        else:
            good += 1
            if settings.kind == "dynamic" and good == settings.growth_every:
                scale, good = scale * 2, 0
        found.append((scale, good, skipped))
    return found


@pytest.mark.parametrize("guard", [None, Guard(window=1000, sigmas=0)], ids=["alone", "around a guard"])
def test_a_dynamic_scale_grows_halves_and_stops_at_its_floor(guard):
    settings = LossScaling(kind="dynamic", initial=16.0, growth_every=3, floor=3.0)
    # Halved from 16 to the floor and refused there, grown, refused in the midst of a row, grown for long.
    overflows = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, *[0] * 20, 1]
    sequence = [overflowing(s) if bad else s for s, bad in zip(steps(len(overflows)), overflows, strict=True)]
    wanted = by_hand(settings, overflows)
    assert min(scale for scale, *_ in wanted) == 3
    assert max(scale for scale, *_ in wanted) > 16
    states = [state for _, state in train(settings, sequence, guard)]
    assert [(float(s.scale), int(s.good)) for s in states] == [row[:2] for row in wanted]
    refused = [int(s.skipped) + (int(s.inner.skipped) if guard else 0) for s in states]
    assert refused == [row[2] for row in wanted]


def test_a_static_scale_stays():
    settings = LossScaling(kind="static", initial=1024.0, growth_every=2)
    overflows = [0, 0, 1, 0, 0, 0, 0, 1]
    sequence = [overflowing(s) if bad else s for s, bad in zip(steps(8), overflows, strict=True)]
    states = [state for _, state in train(settings, sequence)]
    assert [(float(s.scale), int(s.good), int(s.skipped)) for s in states] == by_hand(settings, overflows)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_an_overflow_leaves_no_trace_but_in_the_scale(kind, bad):
    settings, good = LossScaling(kind=kind), steps(6)
    clean = list(train(settings, good))
    disturbed = list(train(settings, [*good[:3], overflowing(good[3], bad), *good[3:]]))
    assert bits(disturbed[3][0]) == bits(disturbed[2][0])
    assert bits(disturbed[-1][0]) == bits(clean[-1][0])
    assert bits(disturbed[-1][1].inner) == bits(clean[-1][1].inner)


def test_an_overflow_at_once_keeps_negative_zeros():
    ((params, state),) = train(LossScaling(kind="dynamic"), [overflowing(steps(1)[0])])
    assert state.scale == 2**15
    assert bits(params) == bits(PARAMS)


def test_gradients_that_are_all_zero_do_not_grow_the_scale_without_end():
    zeros = jax.tree.map(np.zeros_like, jax.device_get(PARAMS))
    settings = LossScaling(kind="dynamic", initial=2.0**125, growth_every=1)
    states = [state for _, state in train(settings, [(zeros, 1.0)] * 3)]
    assert [float(s.scale) for s in states] == [2.0**126] * 3


def test_an_overflow_that_a_smaller_scale_can_cure_is_no_event_of_the_guard():
    good = steps(8)
    clean = list(train(LossScaling(kind="dynamic"), good, GUARD))
    disturbed = list(train(LossScaling(kind="dynamic"), [*good[:5], overflowing(good[5]), *good[5:]], GUARD))
    assert disturbed[5][1].inner.skipped == 0
    assert bits(disturbed[-1][0]) == bits(clean[-1][0])
    # The optimizer's state and all that the guard knows: its window, its counts.
    assert bits(disturbed[-1][1].inner) == bits(clean[-1][1].inner)
    assert (disturbed[-1][1].skipped, disturbed[-1][1].scale) == (1, 2**15)


def spike(step: tuple[dict, float]) -> tuple[dict, float]:
    return jax.tree.map(lambda g: 100 * g, step[0]), step[1]


@pytest.mark.parametrize(
    ("settings", "bad", "scale_is"),
    [
        (LossScaling(kind="dynamic", floor=2.0**16), overflowing, 2**16),
        (LossScaling(kind="static"), overflowing, 2**16),
        (LossScaling(kind="dynamic"), lambda s: (overflowing(s, np.nan)[0], np.nan), 2**16),
        (LossScaling(kind="dynamic", growth_every=6), spike, 2**17),
    ],
    ids=["at the floor", "static", "loss not finite", "spike"],
)
def test_what_no_smaller_scale_cures_is_the_guards(settings, bad, scale_is):
    """A spike's gradients are in range: it counts as a good step of the scale, and is refused by the guard."""
    sequence = steps(6)
    (before, _), (after, state) = list(train(settings, [*sequence[:5], bad(sequence[5])], GUARD))[-2:]
    assert bits(after) == bits(before)
    assert (state.inner.accepted, state.inner.skipped, state.skipped) == (5, 1, 0)
    assert state.scale == scale_is


def test_a_loss_that_is_not_finite_is_skipped_and_not_blamed_on_the_scale():
    (before, _), (after, state) = list(
        train(LossScaling(kind="dynamic"), [steps(1)[0], (overflowing(steps(1)[0])[0], np.nan)])
    )
    assert bits(after) == bits(before)
    assert (state.scale, state.good, state.skipped) == (2**16, 0, 1)
