"""What a config compiles to: state, steps and their shardings, ready for a loop, a benchmark or a plan."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import optax

from blobjax.compute.flops import flops_per_token, param_count
from blobjax.compute.sharding import Layout
from blobjax.config import BadInputError, BatchSizes, Clockwork, Config
from blobjax.objectives import Objective, make_objective
from blobjax.program.optimizer import make_optimizer, schedule
from blobjax.program.state import (
    Architecture,
    TrainState,
    abstract_state,
    architecture,
    init_state,
    shardings,
)
from blobjax.program.step import make_eval_step, make_train_step


def make_clockwork(config: Config, tokens_per_epoch: int) -> Clockwork:
    """What turns this config's durations into steps, its length resolved.

    Raises:
      BadInputError: the length comes to no step at all.
    """
    tokens_per_step = config.duration.global_batch_size * config.data.seq_len
    flops = flops_per_token(config.model, config.data.seq_len)
    params = param_count(config.model, config.conditioning, embeddings=False)
    clockwork = Clockwork(tokens_per_step, flops, params, tokens_per_epoch)
    clockwork = dataclasses.replace(clockwork, batches=_batch_sizes(config, clockwork))
    length = config.duration.length.first_steps(clockwork)
    if length < 1:
        raise BadInputError(f"duration.length '{config.duration.length}' is less than one step")
    if length >= 2**31:  # steps are counted in int32
        raise BadInputError(f"duration.length '{config.duration.length}' is {length:.3g} steps; give fewer than 2^31")
    return dataclasses.replace(clockwork, length=length)


def _batch_sizes(config: Config, clockwork: Clockwork) -> BatchSizes:
    """As many steps of each size of the batch warm-up: so the size grows in proportion to the tokens seen."""
    warmup, sizes = config.duration.batch_warmup, config.duration.smaller_batches
    if not sizes:
        return BatchSizes(config.duration.global_batch_size)
    if warmup.unit == "steps":
        each = -(-warmup.steps(clockwork) // len(sizes))
    else:
        # One step of each size together are the unit that is counted.
        each = warmup.steps(dataclasses.replace(clockwork, tokens_per_step=sum(sizes) * config.data.seq_len))
    return BatchSizes(config.duration.global_batch_size, tuple((each, size) for size in sizes))


def _check_warmup(name: str, steps: int, config: Config, clockwork: Clockwork) -> None:
    """Refuses a warm-up that is longer than the run."""
    if steps > clockwork.length:
        raise BadInputError(
            f"duration.{name} '{getattr(config.duration, name)}' is {steps} steps, more than the {clockwork.length} of "
            f"duration.length '{config.duration.length}'"
        )


@dataclass(frozen=True)
class Program:
    """A config bound to a mesh: nothing computed yet, everything known.

    Attributes:
      config: the run.
      layout: mesh and sharding rules.
      clockwork: durations to steps; `clockwork.length` is the run's length.
      arch: the model without its numbers.
      objective: what is optimised, and where batches come from.
      optimizer: the whole optax chain.
      rate: learning rate by step.
      seq_len: tokens that attention stays within, by step; None: those of the whole sequence.
      state: shape, dtype and sharding of the state.
      batch_sharding: of every [B, T] array of a batch.
    """

    config: Config
    layout: Layout
    clockwork: Clockwork
    arch: Architecture
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    rate: optax.Schedule
    seq_len: optax.Schedule | None
    state: TrainState
    batch_sharding: jax.sharding.NamedSharding

    @property
    def shape_BT(self) -> tuple[int, int]:
        """Sequences and tokens of a global batch, after the batch warm-up."""
        return self.config.duration.global_batch_size, self.config.data.seq_len

    def init(self) -> TrainState:
        """The state at step 0."""
        return init_state(self.config, self.optimizer, self.state)

    @property
    def part_BT(self) -> tuple[int, int]:
        """Sequences and tokens of what a step computes at once; evaluation takes as many, and so fits where it does."""
        batch, length = self.shape_BT
        return batch // self.config.compute.gradient_accumulation, length

    def _abstract_batch(self, shape_BT: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(shape_BT, dtype, sharding=self.batch_sharding)
            for name, dtype in self.objective.arrays.items()
        }

    def lower_train_step(self, batch_size: int | None = None) -> Any:
        """The train step lowered for this mesh; `.compile()` it to run it, or look at its HLO.

        Args:
          batch_size: sequences in a step; None: those of a step after the batch warm-up.
        """
        return self.trace_train_step(batch_size).lower()

    def trace_train_step(self, batch_size: int | None = None) -> jax.stages.Traced:
        """As `lower_train_step`, one stage before: its jaxpr says what is computed, whatever the devices."""
        batch = self._abstract_batch((batch_size or self.shape_BT[0], self.shape_BT[1]))
        step = make_train_step(
            self.config, self.arch, self.objective, self.optimizer, self.rate, self.layout, self.seq_len
        )
        out = (shardings(self.state), None)
        # The old state's memory becomes the new state's: a step needs one copy of it, not two.
        return jax.jit(step, donate_argnums=0, out_shardings=out).trace(self.state, batch)

    def lower_eval_step(self) -> Any:
        """The forward-only step, lowered."""
        step = make_eval_step(self.config, self.arch, self.objective, self.layout)
        return jax.jit(step).lower(self.state.params, self._abstract_batch(self.part_BT))


def make_program(config: Config, layout: Layout, tokens_per_epoch: int) -> Program:
    """Binds a config to a mesh.

    Args:
      tokens_per_epoch: of the training data, for lengths given in epochs.

    Raises:
      BadInputError: the length comes to no step, or a warm-up is longer.
    """
    clockwork = make_clockwork(config, tokens_per_epoch)
    warmup = config.duration.warmup.first_steps(clockwork)
    seq_len_warmup = config.duration.seq_len_warmup.first_steps(clockwork)
    _check_warmup("warmup", warmup, config, clockwork)
    _check_warmup("seq_len_warmup", seq_len_warmup, config, clockwork)
    _check_warmup("batch_warmup", sum(steps for steps, _ in clockwork.batches.smaller), config, clockwork)
    rate = schedule(
        config.optimizer,
        clockwork.length,
        warmup,
        config.optimizer.decay.steps(clockwork),
    )
    seq_len = None
    if seq_len_warmup:
        seq_len = optax.linear_schedule(config.duration.seq_len_start, config.data.seq_len, seq_len_warmup)
    arch = architecture(config)
    optimizer = make_optimizer(config, rate, arch.axes)
    return Program(
        config=config,
        layout=layout,
        clockwork=clockwork,
        arch=arch,
        objective=make_objective(config),
        optimizer=optimizer,
        rate=rate,
        seq_len=seq_len,
        state=abstract_state(arch, optimizer, layout),
        batch_sharding=layout.sharding(("batch", "time"), (config.duration.global_batch_size, config.data.seq_len)),
    )
