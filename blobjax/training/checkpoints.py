"""Checkpoints: everything that decides the future, in one atomic save, and the only file that talks to Orbax.

The state is saved as flat dictionaries from path to array, so that a checkpoint does not depend on the classes that
optax happens to build its state from, and so that parameters can be read alone.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from blobjax.config import BadInputError
from blobjax.config.schema import Checkpoint
from blobjax.reliability.timers import check_agreement
from blobjax.training.state import TrainState

# Orbax logs every phase of every save at INFO; a run's own events.jsonl says what a reader needs.
logging.getLogger("absl").setLevel(logging.WARNING)


# Orbax writes this file into a checkpoint's folder.
_COMMITTED = "_CHECKPOINT_METADATA"


def _flatten(tree: Any) -> dict[str, Any]:
    """Path to leaf; a path reads like `blocks/attention/wq`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The tree shaped as `like` whose leaves are those of the flat dictionary."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: flat[jax.tree_util.keystr(path, simple=True, separator="/")], like
    )


class Checkpointer:
    """Saves and restores one run's states.

    Args:
      directory: where the checkpoints live; made if it is missing.
      policy: how many are kept; None for reading only.
    """

    def __init__(self, directory: Path, policy: Checkpoint | None = None):
        policies = ocp.training.preservation_policies
        keep = None
        if policy is not None:
            rules: list[Any] = [policies.LatestN(policy.keep)]
            if policy.keep_every:
                rules.append(policies.EveryNSteps(policy.keep_every))
            keep = policies.AnyPreservationPolicy(rules)
        self._orbax = ocp.training.Checkpointer(
            directory.resolve(), preservation_policy=keep, cleanup_tmp_directories=policy is not None
        )
        self._pending: Any = None

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending; any other numbered folder is none."""
        steps = [checkpoint.step for checkpoint in self._orbax.checkpoints]
        return [step for step in steps if (Path(self._orbax.directory) / str(step) / _COMMITTED).is_file()]

    def save(self, state: TrainState, step: int, sequences: int, data: str) -> None:
        """Starts a save and returns once the state is off the devices; waits for the previous save first.

        Args:
          step: optimizer steps taken; names the checkpoint.
          sequences: position of the data stream, in training sequences.
          data: fingerprint of the data that position counts in.
        """
        self.wait()
        self._pending = self._orbax.save_checkpointables_async(
            step,
            {
                "params": _flatten(state.params),
                "optimizer": _flatten(state.opt_state),
                "progress": {"step": state.step, "sequences": sequences},
            },
            custom_metadata={"data": data},
            force=True,
        )

    def wait(self) -> None:
        """Returns when the save in flight, if any, is committed; raises what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, step: int, like: TrainState, data: str | None) -> tuple[TrainState, int]:
        """The state at a step, on the mesh and shardings of `like`, and the data stream's position in sequences.

        Args:
          data: fingerprint of the data training goes on with; None: any.

        Raises:
          BadInputError: the checkpoint holds other parameters than `like`, or was trained on other data.
        """
        with self._readable(step):
            self._check(step, {"params": like.params, "optimizer": like.opt_state}, data)
            loaded = self._orbax.load_checkpointables(
                step,
                {
                    "params": _flatten(like.params),
                    "optimizer": _flatten(like.opt_state),
                    "progress": {"step": like.step, "sequences": 0},
                },
            )
        state = TrainState(
            loaded["progress"]["step"],
            _unflatten(loaded["params"], like.params),
            _unflatten(loaded["optimizer"], like.opt_state),
        )
        return state, int(loaded["progress"]["sequences"])

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone, on the shardings of `like`."""
        with self._readable(step):
            self._check(step, {"params": like}, None)
            loaded = self._orbax.load_checkpointables(step, {"params": _flatten(like)})
        return _unflatten(loaded["params"], like)

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns whatever a damaged checkpoint makes Orbax raise into one line that says which it is."""
        try:
            yield
        except BadInputError:
            raise
        except Exception as error:
            older = [each for each in self.steps() if each < step]
            instead = f"to go on from step {older[-1]}" if older else "to start again"
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
            raise BadInputError(
                f"checkpoint {self._orbax.directory / str(step)} cannot be read ({reason}); move it away {instead}"
            ) from error

    def _check(self, step: int, trees: dict[str, Any], data: str | None) -> None:
        """Refuses a checkpoint whose arrays or data are not the expected ones, naming the first that differ."""
        described = ocp.checkpointables_metadata(self._orbax.directory / str(step))
        if data is not None and described.custom_metadata["data"] != data:
            raise BadInputError(
                f"checkpoint {self._orbax.directory / str(step)} was trained on other data: the sources changed since; "
                "restore them, or give --allow-config-change to go on with the new ones"
            )
        found = described.metadata
        for name, tree in trees.items():
            there = {path: tuple(leaf.shape) for path, leaf in found[name].items()}
            here = {path: tuple(leaf.shape) for path, leaf in _flatten(tree).items()}
            different = sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))
            if different:
                raise BadInputError(
                    f"checkpoint {self._orbax.directory / str(step)} does not fit this config: "
                    + _differences(different, there, here)
                )

    def delete_after(self, step: int) -> None:
        """Deletes every checkpoint after a step; all processes call it, and return once it is done.

        Orbax's own deletion takes a checkpoint apart file by file. Here its folder is moved away first, so that a
        process killed at any moment leaves whole checkpoints only; and the newest goes first.
        """
        self.wait()
        undone = [each for each in self.steps() if each > step]
        # A barrier before, lest one looks when another has begun; and one after.
        check_agreement(checkpoints=str(undone))
        if jax.process_index() == 0:
            checkpoints = Path(self._orbax.directory)
            aside = checkpoints.parent / ".blobjax-undone"
            for each in reversed(undone):
                shutil.rmtree(aside, ignore_errors=True)
                (checkpoints / str(each)).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        check_agreement(checkpoints=str(undone))
        self._orbax.reload()

    def close(self) -> None:
        """Finishes the save in flight and lets go of Orbax's threads."""
        self.wait()
        self._orbax.close()


def _differences(paths: Iterable[str], there: dict[str, tuple], here: dict[str, tuple]) -> str:
    paths = list(paths)
    listed = [f"{path} is {there.get(path, 'absent')} there, {here.get(path, 'absent')} here" for path in paths[:3]]
    return "; ".join(listed) + (f"; and {len(paths) - 3} more" if len(paths) > 3 else "")
