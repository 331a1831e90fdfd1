"""The step: one pure function from (state, batch) to (state, metrics), and its forward-only sister for evaluation.

Dims: A accumulation parts, B batch, T time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blobjax.compute import sharding
from blobjax.compute.sharding import Layout
from blobjax.conditioning import wrappers
from blobjax.conditioning.flow import of_update as flow_of_update
from blobjax.conditioning.flow import over_parts
from blobjax.conditioning.precision import policy
from blobjax.conditioning.sequence_warmup import in_pieces
from blobjax.config.schema import Config
from blobjax.objectives import Batch, LossReport, Objective
from blobjax.objectives import loss as loss_of
from blobjax.program.state import Architecture, TrainState

Metrics = dict[str, Any]


def make_train_step(
    config: Config,
    arch: Architecture,
    objective: Objective,
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
    conditioning = config.conditioning

    def factor(scale: jax.Array | None) -> Any:
        """What the loss is multiplied by before it is differentiated; None where by nothing."""
        multiplier = conditioning.loss_multiplier
        if scale is not None:
            return multiplier * scale
        return multiplier if multiplier != 1 else None

    def loss(
        params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None, times: Any
    ) -> tuple[jax.Array, LossReport]:
        whole, report = loss_of(objective, arch.merge(params), batch, config, total, probing)
        return (whole if times is None else whole * times), report

    def gradients(
        params: Any, batch: Batch, total: jax.Array, probing: jax.Array | None, times: Any
    ) -> tuple[Any, LossReport]:
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
            return jax.tree.map(jnp.add, sums, (grads, parts)), flow

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x_ABT: x_ABT[0], parts)
        shapes, report = jax.eval_shape(gradient, params, first, total, probing, times)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), (shapes, report.parts))
        (grads, sums), flow = jax.lax.scan(accumulate, zeros, parts)
        return grads, LossReport(sums, {group: over_parts(probes) for group, probes in flow.items()})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Steps are counted from 1 wherever they are read.
        probing = (state.step + 1) % conditioning.probe_every == 0 if conditioning.probe_every else None
        if seq_len is not None:
            length = jnp.round(seq_len(state.step)).astype(jnp.int32)
            batch = {**batch, "segments": in_pieces(batch["segments"], length)}
        scale = wrappers.loss_scale(state.opt_state)
        with sharding.use(layout):
            total = jnp.sum(batch["mask"])
            grads, (parts, flow) = gradients(state.params, batch, total, probing, factor(scale))
            # Norms and moments of them are float32 whatever the parameters are.
            grads = jax.tree.map(lambda g: g.astype(policy(conditioning).gradient), grads)
            if scale is not None:
                grads = jax.tree.map(lambda g: g / scale, grads)
            whole = sum(parts.values(), jnp.float32(0))
            measured = {}
            if conditioning.qk_clip:
                assert probing is not None  # checked with the config
                measured["logits_LH"] = jnp.where(probing, flow["blocks"]["attention_logit_max"], 0)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, loss=whole, **measured)
            params = optax.apply_updates(state.params, updates)
            of_update = flow_of_update(probing, state.params, grads, updates, conditioning, config.model.products)
        metrics = {
            "loss": whole,
            **parts,
            **objective.metrics(parts, batch, total),
            "grad_norm": optax.tree.norm(grads),
            # The optimizer does not count the steps that were refused.
            "learning_rate": jnp.asarray(rate(state.step - wrappers.refused(state.opt_state)), jnp.float32),
            **wrappers.metrics(state.opt_state, opt_state),
        }
        if seq_len is not None:
            metrics["seq_len"] = length.astype(jnp.float32)
        if probing is not None:
            metrics["flow"] = {group: flow[group] | of_update.get(group, {}) for group in flow}
        return replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def make_eval_step(
    config: Config, arch: Architecture, objective: Objective, layout: Layout
) -> Callable[[Any, Batch], Metrics]:
    """Sums over a batch, from which the objective's evaluation makes means; float32 scalars."""

    def eval_step(params: Any, batch: Batch) -> Metrics:
        with sharding.use(layout):
            _, (parts, _) = loss_of(objective, arch.merge(params), batch, config, jnp.float32(1))
        return objective.sums(parts, batch)

    return eval_step
