"""Before a run computes anything: whatever about it cannot work is found out, and nothing is written."""

import json
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec

import jax

from blobjax import data
from blobjax.checkpointing import files as checkpoint_files
from blobjax.checkpointing import stored
from blobjax.checkpointing.files import Record
from blobjax.compute.sharding import make_layout
from blobjax.config import BadInputError, Config
from blobjax.data import Stream, Tokenizer
from blobjax.processes.agreement import check_agreement, check_programs, check_shared, failing_together
from blobjax.processes.timers import refuse_together
from blobjax.program.program import Program, make_program
from blobjax.runs.directory import RunDirectory, read_jsonl
from blobjax.runs.passages import Passage, passages_of, read_passages
from blobjax.training import branching
from blobjax.training.branching import Trunk
from blobjax.training.inputs import Inputs, check_config, check_passages, newest_record, windows
from blobjax.training.memory import state_problem


@dataclass(frozen=True)
class Past:
    """What a run's directory says of the attempts before this one.

    Attributes:
      resuming: whether a run lives there already.
      saved: steps with a checkpoint, ascending.
      recorded: what the newest checkpoint records besides arrays; empty where there is none.
      trunk: where the run begins, or began; None: from nothing.
      passages: windows of data that rollbacks left out.
      checked: steps that a check for silent corruption found good.
    """

    resuming: bool
    saved: list[int]
    recorded: Inputs
    trunk: Trunk | None
    passages: list[Passage]
    checked: list[int]

    @property
    def first(self) -> int:
        """The step the run begins from."""
        return self.trunk.step if self.trunk else 0


@dataclass(frozen=True)
class Ready:
    """Everything an attempt at a run needs before it starts.

    Attributes:
      began: when it began, by time.monotonic().
      program: the config bound to the devices there are.
      stream: its data.
      data: fingerprint of that data.
      directory: where the run lives.
      past: what is there of it.
    """

    began: float
    program: Program
    stream: Stream
    data: str
    directory: RunDirectory
    past: Past

    @property
    def config(self) -> Config:
        """The run's."""
        return self.program.config

    @property
    def length(self) -> int:
        """The run's, in steps."""
        return self.program.clockwork.length

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes into the directory."""
        return jax.process_index() == 0


def preflight(config: Config, allow_config_change: bool) -> Ready:
    """Checks everything, prepares the data, and returns once all processes have come to the same.

    Raises:
      BadInputError: what cannot work, and how it could.
    """
    began = time.monotonic()
    # First of all: processes that differ may wait for each other in anything that follows.
    check_programs(config, allow_config_change=allow_config_change)
    # Paths may differ between hosts, so each may have a problem that the others know nothing of.
    with failing_together():
        directory = RunDirectory(config.logging.run_dir)
        config, note = directory.as_it_began(config)
        if note and jax.process_index() == 0:
            print(f"blobjax: {note}", file=sys.stderr)
        resuming = directory.check(config, allow_config_change)
        if reason := stored.refused(directory.checkpoints):
            raise BadInputError(
                f"no checkpoint can be saved in {str(directory.checkpoints.resolve())!a}: {reason}; choose another "
                "directory with logging.run_dir=…"
            )
        _check_wandb(config)
    check_shared(directory.path)
    with failing_together():
        layout = make_layout(config)
        with data.show_progress() as progress:
            prepared = data.prepare(config, progress)
        stream = data.open_stream(config, prepared)
        if jax.process_index() == 0:
            for note in prepared.notes + stream.notes:
                print(note, file=sys.stderr)
        _check_sample(config, stream.tokenizer)
        program = make_program(config, layout, stream.tokens_per_epoch)
        saved = checkpoint_files.committed(directory.checkpoints) if resuming else []
        record = newest_record(directory.checkpoints) if resuming else None
        recorded = (record.inputs if record else None) or {}
        trunk = branching.find(config, program.clockwork, bool(saved), recorded.get("trunk"))
        if record and not allow_config_change:
            check_config(record, config)
        passages = _passages(directory, record, trunk, bool(saved))
        if trunk and not saved:
            # Each host may read it from another path.
            origin = f"step {trunk.step}, whose arrays and data are {trunk.contents()}"
        else:
            origin = f"step {trunk.step if trunk else 0}"
        stream.passed_over = windows(passages)
        checked = [
            event["step"]
            for event in read_jsonl(directory.events)
            if event.get("event") == "check" and isinstance(event.get("step"), int)
        ]
        if recorded.get("good_step") is not None:
            checked.append(recorded["good_step"])
    # Also a barrier: no process may look at the directory while process 0 claims it.
    check_agreement(
        # What must be the same on all processes, as text.
        data=prepared.fingerprint,
        checkpoints=str(saved[-1:]),
        trunk=origin,
        **{"data passed over": json.dumps(passages), "steps checked for corruption": str(checked)},
    )
    refuse_together(state_problem(program))
    past = Past(resuming, saved, recorded, trunk, passages, checked)
    return Ready(began, program, stream, prepared.fingerprint, directory, past)


def _passages(directory: RunDirectory, record: Record | None, trunk: Trunk | None, begun: bool) -> list[Passage]:
    """The windows of data that this run leaves out.

    Args:
      record: the newest checkpoint's, if it says what decides.
      begun: the run has a checkpoint of its own.
    """
    if directory.passed_over.exists():
        passages = read_passages(directory.passed_over)
        if record:
            check_passages(record, passages, directory.passed_over)
        # A branch's file has the trunk's too; an empty one is of a run that has yet to take them.
        return passages or (trunk.passages() if trunk and not begun else [])
    if record and record.inputs is not None:
        return list(record.inputs["passed_over"])
    # Once a branch has begun, its trunk may be gone.
    inherited = trunk.passages() if trunk and (not begun or trunk.exists()) else []
    return inherited + passages_of(directory)


def _check_sample(config: Config, tokenizer: Tokenizer) -> None:
    """Finds a passage that cannot be sampled before training rather than after it."""
    wanted = 1 + len(tokenizer.encode(config.evaluation.sample_prompt)) + config.evaluation.sample_tokens
    if config.evaluation.sample_prompt and wanted > config.model.max_seq_len:
        raise BadInputError(
            f"evaluation.sample_prompt and evaluation.sample_tokens {config.evaluation.sample_tokens} make {wanted} "
            f"tokens, more than model.max_seq_len {config.model.max_seq_len}; ask for fewer"
        )


def _check_wandb(config: Config) -> None:
    """Finds a missing W&B before the run directory is touched."""
    if config.logging.wandb is not None and find_spec("wandb") is None:
        raise BadInputError("logging.wandb is set but wandb is not installed; pip install 'blobjax[wandb]'")
