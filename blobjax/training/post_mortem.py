"""A post-mortem: one step of a run that ends, through the flow probes, to find the first place whose numbers went bad.

Numbers that are not finite stay so from layer to layer, so the first place in forward order that has them is where they
come from; where the forward pass is sound, gradients are followed from the output backwards. Where all is finite, the
place that grew most against a good step is named, which is a hint and no proof.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blobjax.objectives import Batch, BatchSource
from blobjax.program.program import Program
from blobjax.program.state import TrainState
from blobjax.runs.directory import EventLog
from blobjax.training.stages import Stages

Probes = dict[str, dict[str, float]]
"""Place (`embedding`, `block_00`, …, `output`), in forward order, to its probes by name."""

# Steps that are computed again at most to find where numbers went bad: ours, an hour of a step that takes 3.6 s.
_AGAIN_AT_MOST = 1000
# In the order in which a block computes them.
_FORWARD = ("param_rms", "attention_logit_max", "attention_entropy", "residual_rms", "log_z_mean")
_BACKWARD = "grad_rms"
# Those that are large where numbers explode.
_GROW = ("attention_logit_max", "residual_rms", "grad_rms")


@dataclass(frozen=True)
class BadPlace:
    """Where numbers went bad.

    Attributes:
      step: the first that has bad numbers.
      place: where in the model, in words.
      bad, good: probes of that step and of the one before it; empty where there is none.
    """

    step: int
    place: str
    bad: Probes
    good: Probes


class Examiner:
    """The run's train step, compiled once more with every probe on.

    Args:
      sources: where the batches of these steps come from, which count from 1.
    """

    def __init__(self, program: Program, sources: Callable[[range], BatchSource]):
        conditioning = program.config.conditioning.model_copy(update={"probe_every": 1})
        config = program.config.model_copy(update={"conditioning": conditioning})
        self._step = Stages(dataclasses.replace(program, config=config), EventLog(None))
        self._sources = sources

    def probe(self, state: TrainState, step: int) -> tuple[Probes, bool]:
        """The probes of a state, which is used up, with the batch of a step; and whether that batch is finite."""
        _, probes, finite = self._probe(state, self._sources(range(step, step + 1)).next(step, state))
        return probes, finite

    def _probe(self, state: TrainState, batch: Batch) -> tuple[TrainState, Probes, bool]:
        finite = bool(jax.jit(lambda mask_BT: jnp.all(jnp.isfinite(mask_BT)))(batch["mask"]))
        state, metrics = self._step(state, batch)
        return state, _by_place(jax.device_get(metrics["flow"])), finite

    def search(
        self, state: TrainState, first: int, train_step: Any, patience: Callable[[str], AbstractContextManager[None]]
    ) -> BadPlace:
        """Computes steps once more, the last two of them with probes, to find where numbers that spread came from.

        Args:
          state: a good one, which is used up.
          first: the first step with a loss that is not finite. The update of the step before it may be to blame.
          train_step: the run's own, for the steps before those two.
          patience: of the watchdog, for a step.
        """
        at = int(state.step)
        good: Probes = {}
        if first - at > _AGAIN_AT_MOST:
            return BadPlace(first, f"not looked for, the newest finite checkpoint is {first - at:,} steps back", {}, {})
        source = self._sources(range(at + 1, first + 1))
        for step in range(at + 1, first + 1):
            with patience(f"computing step {step} once more"):
                batch = source.next(step, state)
                if step < first - 1:
                    state, _ = train_step(state, batch)
                    continue
                state, bad, finite = self._probe(state, batch)
            if not finite or not all(math.isfinite(x) for probes in bad.values() for x in _read(probes)):
                return BadPlace(step, first_bad(bad, good, finite), bad, good)
            good = bad
        return BadPlace(first, "not found, the steps were finite when they were computed once more", good, {})


def _read(probes: dict[str, float]) -> list[float]:
    """Those probes that `first_bad` reads: others, such as a ratio, may be infinite where all is well."""
    return [probes[name] for name in (*_FORWARD, _BACKWARD) if name in probes]


def _by_place(flow: dict[str, dict[str, np.ndarray]]) -> Probes:
    blocks = flow["blocks"]
    layers = len(next(iter(blocks.values())))
    whole = {group: {name: float(value) for name, value in flow[group].items()} for group in ("embedding", "output")}
    return {
        "embedding": whole["embedding"],
        **{
            f"block_{i:02d}": {name: float(np.max(values[i])) for name, values in blocks.items()} for i in range(layers)
        },
        "output": whole["output"],
    }


def first_bad(bad: Probes, good: Probes, finite: bool) -> str:
    """Where the numbers first went bad, in words.

    Args:
      bad, good: probes of the bad step and of a good one.
      finite: the bad step's batch holds finite numbers only.
    """
    if not finite:
        return "the batch itself (its mask is not finite, so neither is the loss, whatever the model does)"
    for place, probes in bad.items():
        for name in _FORWARD:
            if name in probes and not math.isfinite(probes[name]):
                return f"{place} ({name} is {probes[name]})"
    for place, probes in reversed(bad.items()):
        if not math.isfinite(probes.get(_BACKWARD, 0.0)):
            return f"{place} ({_BACKWARD} is {probes[_BACKWARD]}; the forward pass is finite)"
    grown = [
        (probes[name] / good[place][name], place, name)
        for place, probes in bad.items()
        for name in _GROW
        if name in probes and good.get(place, {}).get(name, 0) > 0
    ]
    if not grown:
        return "unknown (there is no good step to compare with)"
    # The first of equals, in forward order.
    times, place, name = max(grown, key=lambda each: each[0])
    return f"{place} ({name} is {bad[place][name]:.4g}, {times:.3g} times a good step's; all probes are finite)"


def as_json(bad: Probes, good: Probes, **facts: Any) -> str:
    """The whole table with some facts, for halt.json; numbers that JSON cannot hold are text, unknown ones null."""

    def value(x: float | None) -> float | str | None:
        return x if x is None or math.isfinite(x) else str(x)

    table = {
        place: {name: {"bad": value(x), "good": value(good.get(place, {}).get(name))} for name, x in probes.items()}
        for place, probes in bad.items()
    }
    return json.dumps({**facts, "probes": table}, indent=1) + "\n"
