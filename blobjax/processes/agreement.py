"""What all processes of a run must have the same of, compared before any of them computes.

Processes that differ do not fail by themselves: with another constant in one process's code a run trains to its end on
wrong numbers, and with another number of evaluations one process waits in a collective that no other enters.

The comparison itself must not need what may differ: no mesh, no device, no compiled program. So each process writes its
facts as text into the key-value store of jax's coordinator, process 0 compares them, and all read what it found.
"""

import hashlib
import itertools
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import blobjax
from blobjax.config import BadInputError, Config, HaltedError
from blobjax.config.diff import OWN_TO_A_HOST, leaves, own_to_a_host

# Whose code decides numbers, or the order of collectives. Of the accelerators' plugins those that are installed.
_PACKAGES = (
    *("jax", "jaxlib", "numpy", "flax", "optax", "qwix", "orbax-checkpoint", "grain", "tensorstore"),
    *("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin"),
)
# Variables that hold XLA's flags, and one by which cuBLAS multiplies with other digits.
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VARIABLES = ("NVIDIA_TF32_OVERRIDE",)
# Flags and values of jax's config that are about one host: where it writes, what it logs, which devices it has, how
# long it waits. All others must be the same: most change what is compiled, and a new one may.
_FLAG_OF_A_HOST = re.compile(r"dump|cache|host_platform_device_count")
_JAX_OF_A_HOST = re.compile(
    r"cache|dump|_log_|logging|explain|traceback|pprint|debug_info|visible_devices|num_cpu_devices|default_device|"
    r"cross_host|mtls|timeout|pjrt_client_create"
)
# How long process 0 waits for what the others run: they have joined it, and only import the rest of the package now.
# One whose code knows nothing of this never answers.
_FIRST_ANSWER_SECONDS = 300.0
# How long what one host has written may take to be seen by another, over caches of a network's file system.
_SEEING_SECONDS = 10.0
# Until Python looks at the clock, and at signals, again.
_SLICE_MS = 10_000
_LONGEST_VALUE, _MOST_LINES = 200, 30
_ABSENT = "(absent)"
_calls = itertools.count()


def check_programs(config: Config, **options: object) -> None:
    """Returns once every process has come here with the same code, versions, flags and config.

    Args:
      config: the run; keys that may differ between hosts (`config.diff.OWN_TO_A_HOST`) are left out.
      options: what else was asked for on the command line.

    Raises:
      BadInputError: on every process: each thing that differs, its values, and which process has which.
    """
    if not jax.distributed.is_initialized():
        return
    asked = {f"--{name.replace('_', '-')}": str(value) for name, value in options.items()}
    facts = {**_code(), **_environment(), **_jax_values(), **asked, **_keys(config)}
    _agree(
        facts,
        "give all processes the same code, versions, environment and config; only these keys may differ: "
        + ", ".join(OWN_TO_A_HOST),
        _FIRST_ANSWER_SECONDS,
    )


def check_agreement(**facts: str) -> None:
    """Returns once every process has come here with the same facts; the others are waited for however long it takes.

    Raises:
      BadInputError: on every process, naming what differs: data or a run directory that is not the same for all would
        train on mixed batches or wait for ever.
    """
    if jax.distributed.is_initialized():
        _agree(facts, "give all the same data and one run directory on a file system that all share")


def check_shared(directory: Path) -> None:
    """Returns once every process has seen a file that process 0 writes into a directory, or where it will be made.

    Args:
      directory: the same one, by whatever path this host knows it.

    Raises:
      BadInputError: on every process, naming those that do not see it: they have another directory, or a file system
        that is not shared.
    """
    if not jax.distributed.is_initialized():
        return
    client, rank, _ = _store()
    call = f"blobjax/directory/{next(_calls)}"
    with ExitStack() as stack:
        if rank == 0:
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=_existing(directory), prefix=".blobjax-"))
            client.key_value_set(f"{call}/name", Path(file.name).name)
        seen = sees(directory, _read(client, call, None, "name"))
        check_agreement(**{"the run directory": "shared" if seen else f"{directory}, without process 0's files"})


def sees(directory: Path, name: str, seconds: float = _SEEING_SECONDS) -> bool:
    """Waits until a file is seen in a directory, or where that will be made; whether it was in time."""
    began = time.monotonic()
    # A host that does not see the file yet may not see its directory yet either, and look beside it.
    while not (seen := (_existing(directory) / name).exists()) and time.monotonic() - began < seconds:
        time.sleep(0.1)
    return seen


def _existing(directory: Path) -> Path:
    """The directory, or the nearest above it that is there."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


@contextmanager
def failing_together() -> Iterator[None]:
    """What fails in this block on one process ends every process, once all have come to the end of the block.

    Without it the others would wait for a process that has ended, until jax ends them without a cause. Nothing in the
    block may wait for another process after something in it could have failed.

    Raises:
      BadInputError: another process raised one, which is named with its line.
      HaltedError: another process raised anything else.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed: list[tuple[bool, str]] = []
    if jax.distributed.is_initialized():
        # What this process has to say is worth more than that another ended meanwhile.
        with suppress(*() if failure is None else (jax.errors.JaxRuntimeError,)):
            failed = _together(_said(failure), _failures)
    if failure is not None:
        raise failure
    if failed:
        refused = [line for bad_input, line in failed if bad_input]
        raise BadInputError(*refused) if refused else HaltedError(failed[0][1])


def _said(failure: Exception | None) -> tuple[bool, str] | None:
    """Whether a failure is bad input, and its first line."""
    if isinstance(failure, BadInputError):
        return True, failure.problems[0]
    if isinstance(failure, HaltedError):
        return False, str(failure)
    return None if failure is None else (False, f"{type(failure).__name__}: {failure}".splitlines()[0])


def _failures(said: Sequence[Sequence[Any] | None]) -> list[tuple[bool, str]]:
    """For each failure that differs: whether it is bad input, and a line that names the processes."""
    owners: dict[tuple[bool, str], list[int]] = {}
    for process, each in enumerate(said):
        if each:
            owners.setdefault((each[0], each[1]), []).append(process)
    lines = [(bad, f"process {_numbers(who)} cannot go on: {line}") for (bad, line), who in owners.items()]
    return lines[:_MOST_LINES]


def source_digest(package: Path | None = None) -> str:
    """16 hexadecimal digits that tell the source of a package (None: this one) from any other, wherever it lies."""
    root = package or Path(blobjax.__file__).parent
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
        digest.update(f"{name}\0".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def _code() -> dict[str, str]:
    facts = {"the version of blobjax": blobjax.__version__, "the source of blobjax": source_digest()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts[f"the version of {package}"] = metadata.version(package)
    return facts | {"the version of Python": platform.python_version()}


def _environment() -> dict[str, str]:
    facts = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    for variable in _FLAGS:
        for flag in os.environ.get(variable, "").split():
            name, _, value = flag.partition("=")
            if not _FLAG_OF_A_HOST.search(name):
                facts[f"{variable} {name}"] = value  # of two equal flags XLA takes the last
    return facts


def _jax_values() -> dict[str, str]:
    values = jax.config.values
    return {name: str(value) for name, value in values.items() if not _JAX_OF_A_HOST.search(name)}


def _keys(config: Config) -> dict[str, str]:
    every = leaves(config.model_dump(mode="json"))
    return {key: str(value) for key, value in every.items() if not own_to_a_host(key)}


def _agree(facts: Mapping[str, str], fix: str, patience_seconds: float | None = None) -> None:
    """Compares facts; None: the other processes are waited for without a limit."""
    if lines := _together(facts, differences, patience_seconds):
        raise BadInputError(*lines, fix)


def _together(mine: Any, judge: Callable[[list[Any]], list[Any]], patience_seconds: float | None = None) -> list[Any]:
    """What process 0 finds in what all processes have said, on every process.

    Also a barrier: none goes on before all have come.

    Args:
      mine: what this process says, as JSON has it.
      judge: what everyone has said, by process, to what is wrong with it; empty if nothing is.
      patience_seconds: how long each is waited for; None: without a limit.
    """
    client, rank, processes = _store()
    call = f"blobjax/agreement/{next(_calls)}"
    read = partial(_read, client, call, patience_seconds)
    client.key_value_set(f"{call}/{rank}", json.dumps(mine))
    if rank == 0:
        wrong = judge([json.loads(read(str(process))) for process in range(processes)])
        client.key_value_set(f"{call}/wrong", json.dumps(wrong))
    found: list[Any] = json.loads(read("wrong"))
    if found:
        # The store lives in process 0, which must not end before the others have read it.
        with suppress(jax.errors.JaxRuntimeError):
            client.wait_at_barrier(f"{call}/read", _SLICE_MS)
    return found


def _read(client: Any, call: str, patience_seconds: float | None, name: str) -> str:
    began = time.monotonic()
    while True:
        try:
            return client.blocking_key_value_get(f"{call}/{name}", _SLICE_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if patience_seconds is not None and time.monotonic() - began > patience_seconds:
            whom = f"process {name}" if name.isdigit() else "process 0"
            raise BadInputError(
                f"{whom} has not said within {patience_seconds:g} s what it runs; its log says why, or it runs another "
                "version of blobjax"
            )


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each fact that is not the same for all processes, in the order of the facts.

    Args:
      facts: name to value, of each process.
    """
    lines = []
    for name in dict.fromkeys(itertools.chain(*facts)):
        owners: dict[str, list[int]] = {}
        for process, those in enumerate(facts):
            owners.setdefault(those.get(name, _ABSENT), []).append(process)
        if len(owners) > 1:
            values = ", ".join(f"{_short(value)} (process {_numbers(who)})" for value, who in owners.items())
            lines.append(f"the processes disagree on {name}: {values}")
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"and on {more} things more"]


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"


def _numbers(processes: list[int]) -> str:
    """`0, 2-7`"""
    runs: list[list[int]] = []
    for process in processes:
        if runs and process == runs[-1][1] + 1:
            runs[-1][1] = process
        else:
            runs.append([process, process])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _store() -> tuple[Any, int, int]:
    """The key-value store of jax's coordinator, to which jax has no public way; this process's number, and of how many.

    jax's own `process_count` would start a backend.
    """
    from jax._src.distributed import global_state

    return global_state.client, global_state.process_id, global_state.num_processes
