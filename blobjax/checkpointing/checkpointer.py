"""Checkpoints: everything that decides the future, in one atomic save, and the only file that asks anything of Orbax.

The state is saved as flat dictionaries from path to array, so that a checkpoint does not depend on the classes that
optax happens to build its state from, and so that parameters can be read alone. With it goes a record of every array:
shape, dtype and a fingerprint, taken on the devices before the next step may reuse their memory. What is read back is
fingerprinted again, on whatever mesh it is then, and nothing trains on what differs.
"""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from blobjax.checkpointing import files, stored
from blobjax.checkpointing.files import NOT_FINITE, BadCheckpointError, Leaf, Record
from blobjax.checkpointing.fingerprint import as_text, fingerprint_all
from blobjax.checkpointing.fit import as_like, look
from blobjax.checkpointing.orbax_workarounds import local
from blobjax.checkpointing.quiet_orbax import quietly
from blobjax.config import BadInputError, HaltedError
from blobjax.config.schema import Checkpoint
from blobjax.processes.timers import everyone
from blobjax.program.state import TrainState, all_finite, flatten, unflatten

# What a process found when it tried to read a checkpoint; the largest of all processes' counts.
_GOOD, _BAD, _MISFIT, _NOT_NOW = range(4)


def _trees(state: TrainState) -> dict[str, dict[str, Any]]:
    """Every array of a state by tree and path, as a checkpoint has them; it has no tree without arrays."""
    trees = {
        "params": flatten(state.params),
        "optimizer": flatten(state.opt_state),
        "frozen": flatten(state.frozen),
        "round": flatten(state.round),
        "progress": {"step": state.step},
    }
    return {name: tree for name, tree in trees.items() if tree}


def _named(trees: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every array by its path in a checkpoint, such as `params/blocks/mlp/up`."""
    return {f"{name}/{path}": leaf for name, tree in trees.items() for path, leaf in tree.items()}


def _kinds(arrays: dict[str, Any]) -> dict[str, Any]:
    """What a program compiled for such arrays depends on."""
    return {path: (x.shape, x.dtype, x.sharding) for path, x in arrays.items()}


@dataclass(frozen=True)
class Restored:
    """What came out of a checkpoint.

    Attributes:
      step: the checkpoint's name.
      sequences: position of the data stream.
      verified: whether it had fingerprints to be checked against.
    """

    step: int
    state: TrainState
    sequences: int
    verified: bool


class Checkpointer:
    """Saves and restores one run's states. All processes call the same methods in the same order.

    Args:
      directory: where the checkpoints live, in the run's directory.
      policy: which are kept; None for reading only. With one the directory is cleared of unfinished saves.
    """

    def __init__(self, directory: Path, policy: Checkpoint | None = None):
        self._directory = directory.resolve()
        self._policy = policy
        # One thread, so one save at a time, with all that waits for storage: training does not.
        self._writer = ThreadPoolExecutor(1, "save")
        self._pending: Future[None] | None = None
        self._compiled: Future[Any] | None = None
        self._looks: Future[Any] | None = None
        self._likely: dict[str, Any] = {}
        if policy is not None and jax.process_index() == 0:
            files.clear_unfinished(self._directory)

    def prepare(self, like: TrainState) -> None:
        """Compiles what is asked of such a state at each save, in the background, so that no save waits for it."""
        named = _named(_trees(like))
        self._likely = _kinds(named)
        self._compiled = self._writer.submit(lambda: fingerprint_all.lower(named).compile())
        self._looks = self._writer.submit(lambda: all_finite.lower(flatten(like.params)).compile())

    @property
    def in_a_run(self) -> bool:
        """Whether the directory is still that of a run: one that was deleted comes to life with the next save."""
        return (self._directory.parent / "config.yaml").is_file()

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending; any other numbered folder is none."""
        return files.committed(self._directory)

    def newest_finite(self) -> int | None:
        """The newest step that a run can go on from, as far as its record says."""
        return files.newest_finite(self._directory)

    def save(
        self,
        state: TrainState,
        step: int,
        sequences: int,
        data: str,
        metric: float | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Starts a save and returns once the state is off the devices; waits for the previous save first.

        Args:
          step: optimizer steps taken; names the checkpoint.
          sequences: position of the data stream, in training sequences.
          data: fingerprint of the data that position counts in.
          metric: what `checkpoint.keep_best` ranks it by.
          inputs: what else decides how the run goes on from it.

        Returns:
          Whether all parameters are finite; the same on every process.

        Raises:
          HaltedError: storage has not even taken note of it within `checkpoint.write_limit`.
        """
        self.wait()
        trees = _trees(state)
        arrays = _named(trees)
        # Dispatched before anything else: whatever the next step does with this memory comes after it.
        fingerprints = self._fingerprints(arrays)
        finite = (self._looks.result() if self._looks else all_finite)(flatten(state.params))

        def record() -> Record:
            texts = as_text(fingerprints)
            leaves = {path: Leaf(tuple(x.shape), str(x.dtype), texts[path]) for path, x in arrays.items()}
            return Record(data, step, sequences, metric, leaves, finite=bool(finite), inputs=inputs)

        trees["progress"] = {"step": state.step, "sequences": sequences}
        off_devices: Future[None] = Future()
        self._pending = self._writer.submit(self._write, step, trees, record, off_devices)
        limit = (self._policy or Checkpoint()).write_limit
        if not wait([off_devices], limit.seconds).done:
            raise HaltedError(
                f"storage has not answered for {limit} (checkpoint.write_limit) when step {step} was to be saved in "
                f"{self._directory}; see to it, and run the same command to go on from the newest checkpoint"
            )
        return bool(finite)

    def _write(self, step: int, trees: dict[str, Any], record: Callable[[], Record], off_devices: Future[None]) -> None:
        try:
            if jax.process_index() == 0:
                files.clear_unfinished(self._directory)
            written = record()
            with local():
                response = ocp.save_checkpointables_async(
                    self._directory / str(step), trees, custom_metadata=written.as_metadata()
                )
        finally:
            off_devices.set_result(None)
        response.result()
        if self._policy is not None and jax.process_index() == 0:
            self._read_back(step, written)
            for old in files.surplus(self._directory, self._policy):
                with suppress(OSError):  # what cannot be deleted now is left to the next time
                    files.delete(self._directory / str(old))

    def _read_back(self, step: int, written: Record) -> None:
        """Makes sure that the files of a save are there; moves it to the quarantine, and raises, where they are not."""
        folder = self._directory / str(step)
        try:
            stored.read_back(folder, written)
        except Exception as error:
            if (cause := files.unreadable(folder)) is not None:
                raise cause from None
            found = files.first_line(error)
            try:
                moved = f"moved to {files.quarantine(folder).relative_to(self._directory.parent)}"
            except OSError as problem:
                moved = f"cannot be moved away: {problem.strerror or problem}"
            raise BadCheckpointError(f"what was written is not what was saved ({found}): {moved}") from None

    @property
    def writing(self) -> bool:
        """Whether a save is still being written by this process."""
        return self._pending is not None and not self._pending.done()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether no save is in flight any more, waiting for it at most so long; raises what the save raised."""
        if self._pending is None:
            return True
        if not wait([self._pending], seconds).done:
            return False
        pending, self._pending = self._pending, None
        pending.result()
        return True

    def probe(self, seconds: float | None) -> str:
        """Why this process cannot write a checkpoint, found out by writing a few bytes; empty if it can."""
        probing = self._writer.submit(files.probe, self._directory)
        done = wait([probing], seconds).done
        return probing.result() if done else f"{self._directory} has not answered for {seconds:g} s"

    def check(self, step: int) -> str:
        """What is wrong with a checkpoint, all of it read from its files; empty where nothing is. A collective.

        Each process reads a share of the arrays, in its own memory: no device has to find room for another state.

        Raises:
          HaltedError: it cannot be read at the moment.
        """
        folder = self._directory / str(step)
        try:
            self._agreed(step, lambda: stored.verify(folder, jax.process_index(), jax.process_count()))
        except BadCheckpointError as bad:
            return str(bad)
        return ""

    def restore(self, step: int, like: TrainState, data: str | None) -> tuple[TrainState, int]:
        """The state at a step, on the mesh and shardings of `like`, and the data stream's position in sequences.

        Args:
          data: fingerprint of the data training goes on with; None: any.

        Raises:
          BadInputError: the checkpoint holds other parameters than `like`, or was trained on other data.
          BadCheckpointError: it is not what was saved, or its parameters are not finite: nothing comes of those.
          HaltedError: it cannot be read at the moment.
        """
        restored = self._restore(step, like, data)
        return restored.state, restored.sequences

    def restore_newest(
        self, like: TrainState, data: str | None, last: int | None, bad: Callable[[int, str, str], None]
    ) -> Restored | None:
        """The newest good state that is not after a step; those that are bad are put aside on the way to it.

        Only whoever holds the run's lock may call this: it renames.

        Args:
          last: the newest step that will do; None: any.
          bad: told of each bad one: its step, what is wrong with it, and where it was moved to.

        Returns:
          None where no good one is left.

        Raises:
          BadInputError, HaltedError: as `restore`, and nothing is put aside.
        """
        steps = files.newest(files.numbered(self._directory), last)
        # As process 0 sees them, which is the one to move them.
        many = int(everyone([len(steps)])[0, 0])
        for step in everyone((steps + [0] * many)[:many])[0].tolist():
            try:
                return self._restore(step, like, data)
            except BadCheckpointError as found:
                bad(step, str(found), self.put_aside(step))
        return None

    def _restore(self, step: int, like: TrainState, data: str | None) -> Restored:
        record, loaded = self._load(step, _trees(like), data)
        arrays = _named(loaded)
        position = int(arrays.pop("progress/sequences"))
        wrong = self._differences(record, arrays)
        if record.sequences not in (None, position):
            wrong.append("progress/sequences")
        self._refuse(step, wrong)
        if record.finite is None and not all_finite(loaded["params"]):
            raise BadCheckpointError(NOT_FINITE)
        state = TrainState(
            loaded["progress"]["step"],
            unflatten(loaded["params"], like.params),
            unflatten(loaded["optimizer"], like.opt_state),
            unflatten(loaded.get("frozen", {}), like.frozen),
            unflatten(loaded.get("round", {}), like.round),
        )
        return Restored(step, as_like(state, like), position, verified=record.leaves is not None)

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone, on the shardings of `like`. Raises as `restore`, but for other data."""
        record, loaded = self._load(step, {"params": flatten(like)}, None)
        self._refuse(step, self._differences(record, {f"params/{p}": leaf for p, leaf in loaded["params"].items()}))
        if record.finite is None and not all_finite(loaded["params"]):
            raise BadCheckpointError(NOT_FINITE)
        return as_like(unflatten(loaded["params"], like), like)

    def _load(self, step: int, trees: dict[str, dict[str, Any]], data: str | None) -> tuple[Record, dict[str, Any]]:
        """What the checkpoint says of itself, and these arrays as they were saved."""
        folder = self._directory / str(step)
        # Each process reads for itself, without waiting for the others, so that what one cannot read hangs none.
        alone = local({jax.process_index()})

        def look_there() -> tuple[Record, dict[str, dict[str, Any]]]:
            with alone, quietly():
                return look(folder, trees, data)

        def read() -> dict[str, Any]:
            with alone, quietly():
                return ocp.load_checkpointables(folder, wanted)

        record, wanted = self._agreed(step, look_there)
        # All or none get here: Orbax counts a process's loads and saves, and a save waits for those of the same number.
        return record, self._agreed(step, read)

    def _agreed(self, step: int, read: Callable[[], Any]) -> Any:
        """What reading a checkpoint returns on this process; raises on all what is worst on any."""
        mine, result = _GOOD, None
        problem: Exception | None = None
        try:
            result = read()
        except BadCheckpointError as error:
            mine, problem = _BAD, error
        except BadInputError as error:
            mine, problem = _MISFIT, error
        except Exception as error:
            mine, problem = self._judge(step, error)
        found = everyone([mine])[:, 0].tolist()
        worst = max(found)
        if worst == _GOOD:
            return result
        first = found.index(worst)
        if problem is not None and jax.process_index() == first != 0:
            # Only process 0 writes events and has a terminal.
            print(f"checkpoint {self._directory / str(step)}: {problem}", file=sys.stderr, flush=True)
        if mine == worst and problem is not None:
            raise problem
        elsewhere = f"process {first} says what is wrong with checkpoint {self._directory / str(step)}"
        raise {_BAD: BadCheckpointError, _MISFIT: BadInputError, _NOT_NOW: HaltedError}[worst](elsewhere)

    def _judge(self, step: int, error: Exception) -> tuple[int, Exception]:
        """Whether an error says something against the checkpoint, or only that it cannot be read at the moment."""
        folder = self._directory / str(step)
        cause = files.unreadable(folder)
        if cause is None and "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
            return _BAD, BadCheckpointError(files.first_line(error))
        reason = files.first_line(cause or error)
        return _NOT_NOW, HaltedError(
            f"checkpoint {folder} cannot be read at the moment ({reason}); it is left where it is: see to that, and "
            "run the same command again"
        )

    def _differences(self, record: Record, arrays: dict[str, jax.Array]) -> list[str]:
        """Paths of arrays that are not what the record says; none where it says nothing. A collective."""
        if record.leaves is None:
            return []
        found = self._fingerprints(arrays)
        return [path for path, text in as_text(found).items() if text != record.leaves[path].fingerprint]

    def _fingerprints(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The fingerprints of arrays, still being computed; a collective."""
        if self._compiled is not None and self._likely == _kinds(arrays):
            return self._compiled.result()(arrays)
        return fingerprint_all(arrays)

    def _refuse(self, step: int, different: list[str]) -> None:
        """Raises BadCheckpointError on all processes where there are differences on any."""
        if everyone([len(different)]).max():
            named = ", ".join(different[:3]) or "what another process read"
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise BadCheckpointError(f"not what was saved: {named}{more}")

    def put_aside_after(self, step: int) -> list[tuple[int, str]]:
        """Moves every numbered folder after a step to the quarantine, newest first; returns each and where it went."""
        self.wait()
        later = [each for each in files.newest(files.numbered(self._directory), None) if each > step]
        everyone([0])  # all have looked before one moves
        return [(each, self.put_aside(each)) for each in later]

    def put_aside(self, step: int) -> str:
        """Moves a bad checkpoint to the quarantine; returns where, relative to the run's directory."""
        moved, problem = "", ""
        if jax.process_index() == 0:
            try:
                moved = str(files.quarantine(self._directory / str(step)).relative_to(self._directory.parent))
            except OSError as error:
                problem = f": {error.strerror or error}"
        if everyone([bool(problem)]).max():
            raise HaltedError(f"bad checkpoint {self._directory / str(step)} cannot be put aside{problem}")
        return moved

    def delete_after(self, step: int) -> None:
        """Deletes every checkpoint after a step, newest first; all processes call it, and return once it is done.

        A numbered folder that holds no checkpoint is moved to the quarantine: a later save needs its name.
        """
        self.wait()
        everyone([0])  # nobody looks at the directory while it changes
        if jax.process_index() == 0:
            whole = set(self.steps())
            for each in files.newest(files.numbered(self._directory), None):
                if each > step:
                    (files.delete if each in whole else files.quarantine)(self._directory / str(each))
        everyone([0])

    def close(self) -> None:
        """Finishes the save in flight and lets go of the thread."""
        self.wait()
        self._writer.shutdown()
