"""The step: one pure function from (state, batch) to (state, metrics), and its forward-only sister for evaluation.

Dims: A accumulation parts, B batch, T time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blobjax.compute import sharding
from blobjax.compute.sharding import Layout
from blobjax.config.schema import Config
from blobjax.objectives import next_token
from blobjax.training.state import Architecture, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: Config,
    arch: Architecture,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: optax.Schedule,
    layout: Layout,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Forward, objective, conditioning and optimizer in one function, to be jitted once.

    Returns:
      A function of the state and a batch of [B, T] arrays; its metrics are float32 scalars, the same on every device.
    """
    parts_A = config.compute.gradient_accumulation
    guarded = config.conditioning.guard is not None

    def loss(params: Any, batch: Batch, total: jax.Array) -> tuple[jax.Array, Metrics]:
        return next_token.loss(arch.merge(params), batch, config, total)

    def gradients(params: Any, batch: Batch, total: jax.Array) -> tuple[Any, Metrics]:
        if parts_A == 1:
            return jax.grad(loss, has_aux=True)(params, batch, total)

        def split(x_BT: jax.Array) -> jax.Array:
            # Rows a, a+A, a+2A, … form part a, so that every device keeps the rows it has.
            x_ABT = x_BT.reshape(-1, parts_A, *x_BT.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(x_ABT, (None, "batch", "time"))

        def accumulate(carry: tuple[Any, Metrics], part: Batch) -> tuple[tuple[Any, Metrics], None]:
            # `total` counts the whole batch, so that parts add up to exactly the gradient of the whole.
            return jax.tree.map(jnp.add, carry, jax.grad(loss, has_aux=True)(params, part, total)), None

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x_ABT: x_ABT[0], parts)
        shapes = jax.eval_shape(jax.grad(loss, has_aux=True), params, first, total)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        return jax.lax.scan(accumulate, zeros, parts)[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with sharding.use(layout):
            total = jnp.sum(batch["mask"])
            grads, parts = gradients(state.params, batch, total)
            # Norms and moments of them are float32 whatever the parameters are.
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            whole = sum(parts.values(), jnp.float32(0))
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, loss=whole)
            params = optax.apply_updates(state.params, updates)
        bytes_total = jnp.sum(batch["target_bytes"])
        skipped = state.opt_state.skipped if guarded else 0
        metrics = {
            "loss": whole,
            **parts,
            "bits_per_byte": parts["cross_entropy"] * total / (bytes_total * math.log(2)),
            "grad_norm": optax.tree.norm(grads),
            # The optimizer does not count the steps that a guard refused.
            "learning_rate": jnp.asarray(rate(state.step - skipped), jnp.float32),
        }
        if guarded:
            metrics["skipped"] = jnp.asarray(opt_state.skipped - skipped, jnp.float32)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(config: Config, arch: Architecture, layout: Layout) -> Callable[[Any, Batch], Metrics]:
    """Sums over a batch, from which the caller makes means: `nats`, `tokens`, `bytes`, float32 scalars."""

    def eval_step(params: Any, batch: Batch) -> Metrics:
        with sharding.use(layout):
            _, parts = next_token.loss(arch.merge(params), batch, config, jnp.float32(1))
        return {
            "nats": parts["cross_entropy"],
            "tokens": jnp.sum(batch["mask"]),
            "bytes": jnp.sum(batch["target_bytes"]).astype(jnp.float32),
        }

    return eval_step
