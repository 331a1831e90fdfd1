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
from blobjax.conditioning.flow import of_update as flow_of_update
from blobjax.conditioning.flow import over_parts, probe_format
from blobjax.conditioning.precision import policy
from blobjax.conditioning.products import add_gradients, join_records, split_records
from blobjax.config.schema import Config
from blobjax.objectives import next_token
from blobjax.objectives.next_token import Report
from blobjax.training.state import Architecture, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]


def make_train_step(
    config: Config,
    arch: Architecture,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: optax.Schedule,
    layout: Layout,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Forward, objective, conditioning and optimizer in one function, to be jitted once.

    Returns:
      A function of the state and a batch of [B, T] arrays. Its metrics are float32 scalars, the same on every device.
      With probes there is `flow` too: dicts of arrays, which mean something where `probe_every` divides the step.
    """
    parts_A = config.compute.gradient_accumulation
    guarded = config.conditioning.guard is not None
    probe_every = config.conditioning.probe_every

    def loss(params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None) -> tuple[jax.Array, Report]:
        return next_token.loss(arch.merge(params), batch, config, total, probing)

    def gradients(params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None) -> tuple[Any, Report]:
        gradient = jax.grad(loss, has_aux=True)
        if parts_A == 1:
            return gradient(params, batch, total, probing)

        def split(x_BT: jax.Array) -> jax.Array:
            # Rows a, a+A, a+2A, … form part a, so that every device keeps the rows it has.
            x_ABT = x_BT.reshape(-1, parts_A, *x_BT.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(x_ABT, (None, "batch", "time"))

        def accumulate(sums: Any, part: Batch) -> tuple[Any, Any]:
            # `total` counts the whole batch, so that parts add up to exactly the gradient of the whole.
            grads, (parts, flow) = gradient(params, part, total, probing)
            return (add_gradients(sums[0], grads), jax.tree.map(jnp.add, sums[1], parts)), flow

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x_ABT: x_ABT[0], parts)
        shapes, report = jax.eval_shape(gradient, params, first, total, probing)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), (shapes, report.parts))
        (grads, sums), flow = jax.lax.scan(accumulate, zeros, parts)
        return grads, Report(sums, {group: over_parts(probes) for group, probes in flow.items()})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Steps are counted from 1 wherever they are read.
        probing = (state.step + 1) % probe_every == 0 if probe_every else None
        with sharding.use(layout):
            total = jnp.sum(batch["mask"])
            grads, (parts, flow) = gradients(state.params, batch, total, probing)
            (grads, records), (trained, known) = split_records(grads), split_records(state.params)
            # Norms and moments of them are float32 whatever the parameters are.
            grads = jax.tree.map(lambda g: g.astype(policy(config.conditioning).gradient), grads)
            whole = sum(parts.values(), jnp.float32(0))
            updates, opt_state = optimizer.update(grads, state.opt_state, trained, loss=whole)
            if guarded:
                refused = opt_state.skipped > state.opt_state.skipped
                records = jax.tree.map(lambda new, old: jnp.where(refused, old, new), records, known)
            params = join_records(optax.apply_updates(trained, updates), records)
            of_update = flow_of_update(probing, trained, grads, updates, probe_format(config.conditioning))
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
        if probing is not None:
            metrics["flow"] = {group: flow[group] | of_update.get(group, {}) for group in flow}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(config: Config, arch: Architecture, layout: Layout) -> Callable[[Any, Batch], Metrics]:
    """Sums over a batch, from which the caller makes means: `nats`, `tokens`, `bytes`, float32 scalars."""

    def eval_step(params: Any, batch: Batch) -> Metrics:
        with sharding.use(layout):
            _, (parts, _) = next_token.loss(arch.merge(params), batch, config, jnp.float32(1))
        return {
            "nats": parts["cross_entropy"],
            "tokens": jnp.sum(batch["mask"]),
            "bytes": jnp.sum(batch["target_bytes"]).astype(jnp.float32),
        }

    return eval_step
