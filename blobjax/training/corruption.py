"""Silent corruption: a device that computes wrongly and does not say so.

Sources: Hochschild et al. 2021, "Cores that don't count"; Dixit et al. 2021, "Silent data corruptions at scale".

Two questions are asked of the hardware now and then. Is the same step, run twice, the same to the last bit? And do
devices that should hold copies of the same numbers hold the same? Fingerprints of what each device holds answer both.
What one device computes wrongly goes to all others with the next sum over devices; so where all of them differ, each
computes the same by itself, and who comes to another result than most is named.

Fingerprints: uint32 [devices, arrays, 2], devices in the mesh's order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from blobjax.checkpointing.fingerprint import fingerprint, fingerprint_parts
from blobjax.objectives import Batch
from blobjax.program.state import TrainState, flatten
from blobjax.program.step import Metrics
from blobjax.training.run import Run

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class CorruptionError(Exception):
    """A device was caught computing or keeping wrong numbers: one line that says which, and how it shows."""


class CorruptionCheck:
    """Around the step and a hook behind it: the step before the hook is due is run twice. The same on every process.

    Args:
      train_step: the step; it is deterministic, or a difference means nothing.
      every: steps between checks.
      last: the run's last step.
      passed: called with each step that was found good.
    """

    account, patient = "other", True

    def __init__(self, train_step: TrainStep, every: int, last: int, passed: Callable[[int], None]):
        self._train_step = train_step
        self._every = every
        self._last = last
        self._passed = passed
        # A copy of a state that is about to be stepped from, next to the state itself: after a rollback the loop goes
        # on from another one.
        self._twice: tuple[TrainState, TrainState] | None = None
        self._first: jax.Array | None = None
        self._second: jax.Array | None = None

    @classmethod
    def make(cls, run: Run) -> "CorruptionCheck | None":
        """With `reliability.check_every`; around the run's train step."""
        every, start = run.config.reliability.check_every, run.position.start
        if not every:
            return None
        known = [step for step in run.past.checked if step <= start]
        # The state that the first attempt with checks begins from is taken to be good.
        run.good = max(known, default=start)
        if not known:
            run.events.write("check", step=start, taken=True)

        def passed(step: int) -> None:
            run.good = step
            run.events.write("check", step=step)

        return cls(run.stages, every, run.length, passed)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; twice where the hook has left a copy of the state."""
        twice, self._twice = self._twice, None
        if twice is None or twice[0] is not state:
            return self._train_step(state, batch)
        self._first = fingerprint_parts(flatten(self._train_step(twice[1], batch)[0]))
        new, metrics = self._train_step(state, batch)
        self._second = fingerprint_parts(flatten(new))
        return new, metrics

    def due(self, step: int) -> bool:
        """Before a step that is to be run twice, and after it."""
        return self._comes_before(step) or step % self._every == 0

    def _comes_before(self, step: int) -> bool:
        return (step + 1) % self._every == 0 and step < self._last

    def run(self, step: int, state: TrainState) -> bool:
        """Compares, and copies the state if the next step is to be run twice.

        Raises:
          CorruptionError: on every process, where something differed.
        """
        found = ""
        if self._first is not None and self._second is not None:
            first, second = _everywhere(self._first), _everywhere(self._second)
            self._first = self._second = None
            found = compare_runs(first, second, state)
        found = found or compare_copies(state)
        if found:
            raise CorruptionError(f"step {step}: {found}")
        if step % self._every == 0:
            self._passed(step)
        if self._comes_before(step):
            self._twice = (state, jax.tree.map(jnp.copy, state))
        return False


def disown(run: Run, found: CorruptionError) -> None:
    """Quarantines what was saved since the last step that was found good, and ends the attempt."""
    assert run.good is not None
    reason = f"saved by devices that were found to be wrong later ({found})"
    for step, moved_to in run.checkpointer.put_aside_after(run.good):
        run.quarantined(step, reason, moved_to)
    run.events.write("corruption", reason=str(found), good_step=run.good)
    run.end(reason=f"silent corruption: {found}")
    run.say(
        f"silent corruption: {found}; what was saved after step {run.good}, the last that was found good, is put "
        "aside; run the same command on other devices to go on"
    )


def _everywhere(parts: jax.Array) -> np.ndarray:
    """Every device's fingerprints, on every process."""
    return np.asarray(multihost_utils.process_allgather(parts, tiled=True))


def _mesh(state: TrainState) -> Mesh:
    sharding: Any = state.step.sharding  # replicated over the mesh that all of the state is on
    return sharding.mesh


def compare_copies(state: TrainState) -> str:
    """Which devices hold another copy than most of the devices that should hold the same; empty where all agree."""
    arrays = flatten(state)
    found = _everywhere(fingerprint_parts(arrays))
    devices = list(_mesh(state).devices.flat)
    for number, (name, x) in enumerate(arrays.items()):
        parts = x.sharding.devices_indices_map(x.shape)
        copies: dict[str, list[int]] = {}
        for row, device in enumerate(devices):
            copies.setdefault(str(parts[device]), []).append(row)
        for rows in copies.values():
            values = [tuple(found[row, number]) for row in rows]
            if odd := _odd(values):
                suspects = _named([devices[rows[each]] for each in odd])
                if len(odd) < len(rows):
                    return f"{name} is not the same on {suspects} as on other devices"
                return f"{name} is not the same on {suspects}, and which is right cannot be told"
    return ""


def compare_runs(first: np.ndarray, second: np.ndarray, state: TrainState) -> str:
    """Which devices came to other numbers the second time a step was run; empty where none did."""
    different = (first != second).any(axis=-1)
    if not different.any():
        return ""
    mesh = _mesh(state)
    devices = list(mesh.devices.flat)
    rows = np.flatnonzero(different.any(axis=-1)).tolist()
    name = list(flatten(state))[int(np.flatnonzero(different.any(axis=0))[0])]
    said = f"run twice, it gave {name} other values on {_named([devices[row] for row in rows])}"
    if len(rows) < len(devices):
        return said
    suspects = self_test(mesh)
    return f"{said}; " + (
        f"by itself, {_named([devices[row] for row in suspects])} computes otherwise than most"
        if suspects
        else "by itself, each device computes the same now, so which it was cannot be told"
    )


def self_test(mesh: Mesh, work: Callable[[jax.Array], jax.Array] | None = None) -> list[int]:
    """The devices, by their place in the mesh, that come to another result than most from the same numbers.

    Args:
      work: what each computes from [256, 256] float32; some hundred products of matrices by default.
    """
    x = jax.random.normal(jax.random.key(0), (256, 256), jnp.float32)
    rows = PartitionSpec(mesh.axis_names)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=rows, check_vma=False)
    def of_device(x: jax.Array) -> jax.Array:
        return fingerprint((work or _products)(x))[None]

    return _odd([tuple(each) for each in _everywhere(of_device(x))])


def _products(x: jax.Array) -> jax.Array:
    # Kept at a norm where rounding matters in every product.
    return jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ x / 16 + x), x)


def _odd(values: Sequence[Hashable]) -> list[int]:
    """Places of the values that differ from the commonest; all of them where no value is commoner than the others."""
    (commonest, count), *others = Counter(values).most_common(2)
    clear = not others or others[0][1] < count
    return [place for place, value in enumerate(values) if value != commonest or not clear]


def _named(devices: list[Any]) -> str:
    shown = [f"{device.device_kind} {device.id} (process {device.process_index})" for device in devices[:8]]
    return ", ".join(shown) + (f" and {len(devices) - 8} more" if len(devices) > 8 else "")
