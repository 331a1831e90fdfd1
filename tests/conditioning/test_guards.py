"""The guard refuses what it should, as a whole and to the bit, and never what it should not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blobjax.conditioning.guards import guarded
from blobjax.config.schema import Guard, Rollback, Sustained

PARAMS = {"w": jnp.array([[1.0, -0.0], [0.0, -2.0]]), "b": jnp.array([-0.0, 3.0])}
INNER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def steps(n: int, seed: int = 0) -> list[tuple[dict, float]]:
    rng = np.random.default_rng(seed)
    return [
        ({name: rng.standard_normal(p.shape).astype(np.float32) for name, p in PARAMS.items()}, 2 + 0.1 * rng.random())
        for _ in range(n)
    ]


def train(settings: Guard, sequence):
    """Parameters, optimizer state and whether the last step was refused, after each step."""
    optimizer = guarded(INNER, settings)
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state, grads, loss):
        updates, state = optimizer.update(grads, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    for grads, loss in sequence:
        before = int(state.skipped)
        params, state = step(params, state, grads, jnp.float32(loss))
        yield jax.device_get(params), jax.device_get(state), int(state.skipped) > before


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_refused_step_leaves_no_trace(bad, where):
    good = steps(8)
    grads, loss = good[3]
    poisoned = (grads, bad) if where == "loss" else ({**grads, "b": np.array([bad, 0], np.float32)}, loss)
    clean = list(train(Guard(window=4), good))
    disturbed = list(train(Guard(window=4), [*good[:3], poisoned, *good[3:]]))
    assert [refused for _, _, refused in disturbed] == [i == 3 for i in range(9)]
    assert bits(disturbed[3][0]) == bits(disturbed[2][0])
    assert bits(disturbed[-1][0]) == bits(clean[-1][0])
    assert bits(disturbed[-1][1]._replace(skipped=0)) == bits(clean[-1][1]._replace(skipped=0))
    assert disturbed[-1][1].skipped == 1


def test_a_step_that_is_refused_at_once_keeps_negative_zeros():
    grads, _ = steps(1)[0]
    ((params, _, refused),) = train(Guard(), [(grads, np.nan)])
    assert refused
    assert bits(params) == bits(PARAMS)


def test_without_bad_steps_it_is_the_optimizer_alone():
    params, state = PARAMS, INNER.init(PARAMS)
    for grads, _ in steps(6):
        updates, state = jax.jit(INNER.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    *_, (guarded_params, guarded_state, _) = train(Guard(), steps(6))
    assert bits(guarded_params) == bits(params)
    assert bits(guarded_state.inner) == bits(state)


@pytest.mark.parametrize("what", ["loss", "norm"])
def test_spikes_are_measured_against_the_window_of_accepted_steps(what):
    settings = Guard(window=6, sigmas=3)
    spikes = {4: 100.0, 10: 100.0, 11: 40.0, 20: 9.0}  # the first before the window is full
    sequence = []
    for i, (grads, loss) in enumerate(steps(30)):
        times = spikes.get(i, 1.0)
        scaled = {name: g * np.float32(times) for name, g in grads.items()}
        sequence.append((grads, loss * times) if what == "loss" else (scaled, loss))
    losses, norms, wanted = [], [], []
    for grads, loss in sequence:
        norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in grads.values()))
        full = len(losses) >= settings.window
        over = [x > np.mean(seen[-6:]) + 3 * np.std(seen[-6:]) for x, seen in ((loss, losses), (norm, norms)) if full]
        wanted.append(any(over))
        if not any(over):
            losses.append(loss)
            norms.append(norm)
    assert [refused for *_, refused in train(settings, sequence)] == wanted
    assert not wanted[4]
    assert wanted[20]


def test_no_sigmas_means_only_what_is_not_finite():
    sequence = steps(12)
    sequence[10] = (sequence[10][0], 1e30)
    sequence[11] = (sequence[11][0], np.inf)
    assert [refused for *_, refused in train(Guard(window=4, sigmas=0), sequence)] == [False] * 11 + [True]


@pytest.mark.parametrize("sustained", [None, Sustained(sigmas=2, steps=3)])
def test_trouble_is_counted_as_a_loop_counts_it(sustained):
    window = 5
    settings = Guard(window=window, rollback=Rollback(sustained=sustained), sigmas=1e6)
    # Falls, rises above its best for a while, twice interrupted by a step that is refused, and comes back.
    losses = [3 - 0.1 * i + 0.05 * (i % 3) for i in range(10)] + [2.9, np.nan, 2.8, 3.0, 2.0, np.inf, np.nan, 2.9, 1.9]
    grads = steps(1)[0][0]
    taken: list[float] = []
    best_mean, best_std = np.inf, 0.0
    in_a_row, troubled, wanted = 0, 0, []
    for loss in losses:
        if np.isfinite(loss):
            in_a_row = 0
            troubled = troubled + 1 if loss > best_mean + 2 * best_std else 0
            taken.append(loss)
            if len(taken) >= window and np.mean(taken[-window:]) < best_mean:
                best_mean, best_std = np.mean(taken[-window:]), np.std(taken[-window:])
        else:
            in_a_row, troubled = in_a_row + 1, troubled + 1
        wanted.append({"skipped": in_a_row > 0, "skipped_in_a_row": in_a_row, "troubled": troubled})
    states = [state for _, state, _ in train(settings, [(grads, loss) for loss in losses])]
    # The state of the first step is compared with itself, and the step was accepted.
    seen = [state.metrics(before) for before, state in zip([states[0], *states], states, strict=False)]
    names = ["skipped", "skipped_in_a_row", *(["troubled"] if sustained else [])]
    assert seen == [{name: counts[name] for name in names} for counts in wanted]
    assert max(counts["troubled"] for counts in wanted) == 4
