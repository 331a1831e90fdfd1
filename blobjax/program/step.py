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
from blobjax.conditioning.flow import over_parts
from blobjax.conditioning.guards import streaks
from blobjax.conditioning.precision import policy
from blobjax.conditioning.products import add_gradients, join_records, split_records
from blobjax.conditioning.sequence_warmup import in_pieces
from blobjax.config.schema import Config
from blobjax.objectives import next_token
from blobjax.objectives.next_token import Report
from blobjax.program.state import Architecture, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]


def make_train_step(
    config: Config,
    arch: Architecture,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: optax.Schedule,
    layout: Layout,
    seq_len: optax.Schedule | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Forward, objective, conditioning and optimizer in one function, to be jitted once.

    Args:
      rate: learning rate by step, counted from 0.
      seq_len: tokens of the pieces that sequences are cut into, by step; None: never cut.

    Returns:
      A function of the state and a batch of [B, T] arrays. Its metrics are float32 scalars, the same on every device.
      With probes there is `flow` too: dicts of arrays, which mean something where `probe_every` divides the step.
    """
    parts_A = config.compute.gradient_accumulation
    guarded = config.conditioning.guard is not None
    scaled = config.conditioning.loss_scaling.kind != "none"
    probe_every = config.conditioning.probe_every
    qk_clipping = config.conditioning.qk_clip > 0

    def factor(opt_state: Any) -> Any:
        """What the loss is multiplied by before it is differentiated; None where by nothing."""
        multiplier = config.conditioning.loss_multiplier
        if scaled:
            return multiplier * opt_state.scale
        return multiplier if multiplier != 1 else None

    def skipped(opt_state: Any) -> tuple[Any, Any]:
        """Steps that loss scaling refused, and steps that the guard within it refused."""
        guard = opt_state.inner if scaled else opt_state
        return opt_state.skipped if scaled else 0, guard.skipped if guarded else 0

    def loss(
        params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None, times: Any
    ) -> tuple[jax.Array, Report]:
        whole, report = next_token.loss(arch.merge(params), batch, config, total, probing)
        return (whole if times is None else whole * times), report

    def gradients(
        params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None, times: Any
    ) -> tuple[Any, Report]:
        gradient = jax.grad(loss, has_aux=True)
        if parts_A == 1:
            return gradient(params, batch, total, probing, times)

        def split(x_BT: jax.Array) -> jax.Array:
            # Rows a, a+A, a+2A, … form part a, so that every device keeps the rows it has.
            x_ABT = x_BT.reshape(-1, parts_A, *x_BT.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(x_ABT, (None, "batch", "time"))

        def accumulate(sums: Any, part: Batch) -> tuple[Any, Any]:
            # `total` counts the whole batch, so that parts add up to exactly the gradient of the whole.
            grads, (parts, flow) = gradient(params, part, total, probing, times)
            return (add_gradients(sums[0], grads), jax.tree.map(jnp.add, sums[1], parts)), flow

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x_ABT: x_ABT[0], parts)
        shapes, report = jax.eval_shape(gradient, params, first, total, probing, times)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), (shapes, report.parts))
        (grads, sums), flow = jax.lax.scan(accumulate, zeros, parts)
        return grads, Report(sums, {group: over_parts(probes) for group, probes in flow.items()})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Steps are counted from 1 wherever they are read.
        probing = (state.step + 1) % probe_every == 0 if probe_every else None
        if seq_len is not None:
            length = jnp.round(seq_len(state.step)).astype(jnp.int32)
            batch = {**batch, "segments": in_pieces(batch["segments"], length)}
        with sharding.use(layout):
            total = jnp.sum(batch["mask"])
            grads, (parts, flow) = gradients(state.params, batch, total, probing, factor(state.opt_state))
            (grads, records), (trained, known) = split_records(grads), split_records(state.params)
            # Norms and moments of them are float32 whatever the parameters are.
            grads = jax.tree.map(lambda g: g.astype(policy(config.conditioning).gradient), grads)
            if scaled:
                grads = jax.tree.map(lambda g: g / state.opt_state.scale, grads)
            whole = sum(parts.values(), jnp.float32(0))
            measured = {}
            if qk_clipping:
                assert probing is not None  # checked with the config
                measured["logits_LH"] = jnp.where(probing, flow["blocks"]["attention_logit_max"], 0)
            updates, opt_state = optimizer.update(grads, state.opt_state, trained, loss=whole, **measured)
            if guarded:
                bad = skipped(opt_state)[1] > skipped(state.opt_state)[1]
                records = jax.tree.map(lambda new, old: jnp.where(bad, old, new), records, known)
            params = join_records(optax.apply_updates(trained, updates), records)
            of_update = flow_of_update(probing, trained, grads, updates, config.conditioning, config.model.products)
        bytes_total = jnp.sum(batch["target_bytes"])
        by_scaling, by_guard = skipped(state.opt_state)
        refused = by_scaling + by_guard if scaled else by_guard
        metrics = {
            "loss": whole,
            **parts,
            "bits_per_byte": parts["cross_entropy"] * total / (bytes_total * math.log(2)),
            "grad_norm": optax.tree.norm(grads),
            # The optimizer does not count the steps that were refused.
            "learning_rate": jnp.asarray(rate(state.step - refused), jnp.float32),
        }
        if scaled:
            metrics["loss_scale"] = state.opt_state.scale
            metrics["skipped"] = jnp.asarray(skipped(opt_state)[0] - by_scaling, jnp.float32)
        if guarded:
            # Of the guard alone: what loss scaling refuses is no event to it.
            metrics["skipped"] = jnp.asarray(skipped(opt_state)[1] - by_guard, jnp.float32)
            metrics |= streaks(opt_state.inner if scaled else opt_state)
        if seq_len is not None:
            metrics["seq_len"] = length.astype(jnp.float32)
        if qk_clipping:
            # Of the states, so that a refused step counts as what it is.
            before, now = (optax.tree.get(s, "clipped_heads") for s in (state.opt_state, opt_state))
            metrics["qk_clipped"] = jnp.asarray(now - before, jnp.float32)
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
