"""What decides a run's future besides the arrays of its state, as every checkpoint records it.

A restart reads the same things again from files that anybody can change or lose: the config, the windows of rollbacks,
events.jsonl. What it reads there has to agree with what its newest checkpoint says, and what is lost is taken from
there. (The data itself is in the record by its fingerprint.) Nothing here imports jax.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blobjax.checkpointing import files
from blobjax.checkpointing.files import BadCheckpointError, Record
from blobjax.config import BadInputError, Config
from blobjax.config.diff import changed_since, maths
from blobjax.data.passed_over import PassedOver
from blobjax.runs.passages import Passage, pairs

Inputs = Mapping[str, Any]
"""`maths`: each config key that decides what is computed, to its value · `passed_over`: windows of rollbacks · `trunk`:
`run`, `step` and `sequences` that the run began from · `good_step`: the last that a check for silent corruption found
good · `ranked_by`: the metric of `checkpoint.keep_best` · `tokenizer`: its fingerprint. Null where there is none. ·
`events_bytes`: size of events.jsonl, which only grows."""


def inputs(
    config: Config,
    tokenizer: str,
    passages: list[Passage],
    trunk: dict[str, Any] | None,
    good_step: int | None,
    events: Path,
) -> dict[str, Any]:
    """What a checkpoint that is saved now records, as JSON has it.

    Args:
      tokenizer: its fingerprint.
      events: the run's events.jsonl.
    """
    best = config.checkpoint.keep_best
    return {
        "maths": maths(config),
        # A copy: the list grows, and the record is written later.
        "passed_over": list(passages),
        "trunk": trunk,
        "good_step": good_step,
        "ranked_by": best.metric if best else None,
        "tokenizer": tokenizer,
        "events_bytes": files.size(events),
    }


def newest_record(checkpoints: Path) -> Record | None:
    """What the newest checkpoint that can be read says of itself; None where there is none that says anything."""
    for step in reversed(files.committed(checkpoints)):
        try:
            record = files.read_record(checkpoints / str(step))
        except (BadCheckpointError, OSError):
            continue  # the restore will find out
        if record.inputs is not None:
            return record
    return None


def windows(passages: list[Passage]) -> PassedOver:
    """What a stream leaves out after these passages."""
    return PassedOver.of(pairs(passages))


def agree(passages: list[Passage], recorded: list[Passage], sequences: int) -> bool:
    """Whether a run may go on with these windows from a checkpoint that was saved with the recorded ones.

    Args:
      sequences: the checkpoint's position in the stream; what it has seen cannot be left out any more.
    """
    known, here = pairs(recorded), windows(recorded).number(sequences)
    found = pairs(passages)
    return found[: len(known)] == known and all(first >= here for first, _ in found[len(known) :])


def check_config(record: Record, config: Config) -> None:
    """Refuses a config with other maths than a checkpoint was trained with.

    The run's config.yaml is compared before (`RunDirectory.check`), but it is a file like any other.

    Raises:
      BadInputError: names each key.
    """
    changed = changed_since((record.inputs or {}).get("maths", {}), config)
    if changed:
        raise BadInputError(
            f"checkpoint {record.step} was trained with another config, whatever config.yaml says now; restore that "
            "file, or give --allow-config-change to go on with the new one. Changed:",
            *(f"  {line}" for line in changed),
        )


def check_passages(record: Record, passages: list[Passage], path: Path) -> None:
    """Refuses windows that the run cannot have decided before or after a checkpoint.

    Args:
      path: the file that they are from.

    Raises:
      BadInputError: says how to go on.
    """
    if record.inputs is not None and not agree(passages, record.inputs["passed_over"], record.sequences or 0):
        raise BadInputError(
            f"{path} does not go with checkpoint {record.step}, which records other windows of left-out data; restore "
            "the file, or remove it: the run then takes the windows that the checkpoint records"
        )
