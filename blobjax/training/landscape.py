"""How noisy the gradients of a run are and how curved its loss is, measured now and then between steps.

Both are programs of their own, so that the train step knows nothing of them. Curvature is measured on the batch of the
step to come, noise on as many sequences drawn at random from the next 64 batches.

`flow/run/noise_scale` is the batch, in sequences, beyond which a larger one brings less than its share (McCandlish et
al. 2018, appendix A.1). Single estimates are noise, and their ratio is biased, so what is averaged over time are its
two parts.
`flow/run/hessian_top` is the largest eigenvalue, and for AdamW `flow/run/edge_of_stability` that of the preconditioned
Hessian relative to the one at which steps overshoot: training that is at its edge stays near 1 (Cohen et al. 2022).
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blobjax.compute import sharding
from blobjax.conditioning import parametrisation, wrappers
from blobjax.conditioning.curvature import NoiseEstimate, adam_edge, adam_scale, noise_estimate, top_eigenvalue
from blobjax.conditioning.precision import policy
from blobjax.config import Config
from blobjax.data import Stream
from blobjax.data.shuffle import shuffled
from blobjax.objectives import Batch, make_objective
from blobjax.objectives import loss as loss_of
from blobjax.program.batches import Position, local_rows, to_global
from blobjax.program.program import Program
from blobjax.program.state import TrainState, architecture
from blobjax.runs.directory import EventLog, RunDirectory, read_jsonl
from blobjax.runs.ledger import as_float
from blobjax.training.recorder import Recorder
from blobjax.training.run import Run

# Weight of what is known against the newest estimate.
_DECAY = 0.9
# Parts of the batch whose gradients are compared with the whole's: the more, the less an estimate scatters.
_MOST_PARTS = 8
# Batches to come that the sequences of an estimate are drawn from.
_WINDOW = 64


class LandscapeHook:
    """Measures when `conditioning.noise_scale_every` and `conditioning.curvature_every` are due.

    Args:
      directory: where an earlier attempt's averages are found.
    """

    account, patient = "other", True

    def __init__(
        self,
        program: Program,
        stream: Stream,
        position: Position,
        directory: RunDirectory,
        recorder: Recorder,
        events: EventLog,
    ):
        self._program = program
        self._stream = stream
        self._position = position
        self._recorder = recorder
        self._events = events
        settings = program.config.conditioning
        self._noise_every, self._curvature_every = settings.noise_scale_every, settings.curvature_every
        self._parts = noise_parts(program) if self._noise_every else 0
        self._average = _averages(directory, position.start)
        self._noise: Any = None
        self._curvature: Any = None

    @classmethod
    def make(cls, run: Run) -> "LandscapeHook | None":
        """With `conditioning.noise_scale_every` or `conditioning.curvature_every`."""
        if not run.config.conditioning.surveyed:
            return None
        return cls(run.program, run.stream, run.position, run.directory, run.recorder, run.events)

    def due(self, step: int) -> bool:
        """At multiples of either."""
        return any(every and step % every == 0 for every in (self._noise_every, self._curvature_every))

    def run(self, step: int, state: TrainState) -> bool:
        """Measures what is due, compiled on first use, and records it."""
        began = time.perf_counter()
        batch_size = self._program.shape_BT[0]
        first = self._position.sequences(step)
        metrics: dict[str, float] = {}
        if self._noise_every and step % self._noise_every == 0:
            self._noise = self._noise or jax.jit(make_noise(self._program, self._parts))
            drawn = draw(first, batch_size, self._program.config.seed, step)
            metrics |= self._averaged(jax.device_get(self._noise(state.params, self._batch(drawn))))
        if self._curvature_every and step % self._curvature_every == 0:
            self._curvature = self._curvature or jax.jit(make_curvature(self._program))
            found = jax.device_get(self._curvature(state, self._batch(range(first, first + batch_size))))
            metrics |= {f"flow/run/{name}": float(value) for name, value in found.items()}
        self._recorder.write(step, metrics)
        self._events.write("landscape", step=step, seconds=time.perf_counter() - began)
        return False

    def _batch(self, numbers: Sequence[int]) -> Batch:
        """The global batch of these sequences of the run, of which each process reads its own rows."""
        shape_BT, batch_sharding = self._program.shape_BT, self._program.batch_sharding
        rows = local_rows(batch_sharding, shape_BT)
        return to_global(self._stream.sequences([numbers[row] for row in rows]), rows, batch_sharding, shape_BT)

    def _averaged(self, new: NoiseEstimate) -> dict[str, float]:
        newest = float(new.squared_gradient), float(new.noise)
        old = self._average or newest
        squared, noise = (_DECAY * a + (1 - _DECAY) * b for a, b in zip(old, newest, strict=True))
        self._average = squared, noise
        # Before there is enough of an average the squared gradient may come out negative: no ratio is better than that.
        ratio = {"flow/run/noise_scale": noise / squared} if squared > 0 else {}
        return {"flow/run/squared_gradient": squared, "flow/run/gradient_noise": noise, **ratio}


def _averages(directory: RunDirectory, start: int) -> tuple[float, float] | None:
    """The running averages as an earlier attempt left them, if one did, so that a resumed run goes on with them."""
    found = [
        (as_float(line.get("flow/run/squared_gradient")), as_float(line["flow/run/gradient_noise"]))
        for line in read_jsonl(directory.metrics)
        if "flow/run/gradient_noise" in line and line["step"] <= start
    ]
    return found[-1] if found else None


def draw(first: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Sequences for an estimate of the gradient noise: a function of seed and step, the same on every process.

    The estimate takes examples to be independent, and the rows of a training batch are not. A mixture fills them by a
    fixed period, so that rows at equal distances can all be of one domain, and the numbers of rows of each domain never
    vary. So they are drawn, without one twice, from a window that is much longer than a batch.

    Args:
      first: number of the next sequence of the run.
    """
    return [first + shuffled(row, _WINDOW * batch_size, seed, f"gradient noise at {step}") for row in range(batch_size)]


def noise_parts(program: Program) -> int:
    """Into how many parts a batch is cut: each has rows of every device, so there are as many as one device's rows or
    a divisor of that."""
    rows = program.shape_BT[0] // program.layout.ways("batch")
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    return max([n for n in divisors if n <= _MOST_PARTS], default=divisors[0])


def make_noise(program: Program, parts_P: int) -> Any:
    """A function of parameters and batch that returns a NoiseEstimate, per sequence.

    Rows p, p + P, p + 2P, … are part p, so that every device keeps the rows it has; the batch's rows must be in random
    order (`draw`).
    """
    loss = _loss(_without_float16(program.config))

    def noise(params: Any, batch: Batch) -> NoiseEstimate:
        def split(x_BT: jax.Array) -> jax.Array:
            x_PBT = x_BT.reshape(-1, parts_P, *x_BT.shape[1:]).swapaxes(0, 1)
            return sharding.constrain(x_PBT, (None, "batch", "time"))

        def add(total: Any, part: Batch) -> tuple[Any, jax.Array]:
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), jax.grad(loss)(params, part))
            return jax.tree.map(jnp.add, total, grads), optax.tree.norm(grads, squared=True)

        with sharding.use(program.layout):
            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
            total, small_P = jax.lax.scan(add, zeros, jax.tree.map(split, batch))
        big = optax.tree.norm(total, squared=True) / parts_P**2
        sequences = program.shape_BT[0]
        return noise_estimate(jnp.mean(small_P), big, sequences / parts_P, sequences)

    return noise


def make_curvature(program: Program) -> Any:
    """A function of state and batch that returns eigenvalues by name, float32 scalars."""
    config = _without_float16(program.config)
    # Flash attention, the loss in chunks and products in a number format of their own have a first derivative only.
    compute = config.compute.model_copy(update={"attention": "xla", "loss_chunk_tokens": 0})
    conditioning = config.conditioning
    if policy(conditioning).matmul or conditioning.precision_overrides:
        conditioning = conditioning.model_copy(
            update={"precision": "bfloat16", "precision_overrides": {}, "matmul_scaling": "current"}
        )
    loss = _loss(config.model_copy(update={"compute": compute, "conditioning": conditioning}))
    optimizer, axes = config.optimizer, program.arch.axes
    rates, epsilons = parametrisation.learning_rates(config, axes), parametrisation.epsilons(config, axes)
    key = jax.random.key(config.seed)

    def curvature(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        params = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
        iterations = conditioning.curvature_iterations
        with sharding.use(program.layout):
            top, residual = top_eigenvalue(lambda p: loss(p, batch), params, key, iterations)
            found = {"hessian_top": top, "hessian_residual": residual}
            if optimizer.name == "adamw":
                nu = optax.tree.get(state.opt_state, "nu")
                # Adam counts the steps that were taken, as the schedule does.
                taken = state.step - wrappers.refused(state.opt_state)
                betas = optimizer.beta1, optimizer.beta2
                scale = adam_scale(nu, taken, *betas, optimizer.epsilon, rates, epsilons)
                top, _ = top_eigenvalue(lambda p: loss(p, batch), params, key, iterations, scale)
                # Adam sees the loss multiplied.
                edge = adam_edge(program.rate(taken), optimizer.beta1)
                found["edge_of_stability"] = conditioning.loss_multiplier * top / edge
        return found

    return curvature


def _without_float16(config: Config) -> Config:
    """The config, in float32 for float16, whose gradients go through zero without the loss scaling that a step has.

    The precision of the whole model decides: float16 is no precision that an override can name.
    """
    if config.conditioning.precision != "float16":
        return config
    return config.model_copy(update={"conditioning": config.conditioning.model_copy(update={"precision": "float32"})})


def _loss(config: Config) -> Any:
    """The loss of parameters and a batch, as a config has it: model and loss by the same one."""
    arch, objective = architecture(config), make_objective(config)

    def loss(params: Any, batch: Batch) -> jax.Array:
        return loss_of(objective, arch.merge(params), batch, config, jnp.sum(batch["mask"]))[0]

    return loss
