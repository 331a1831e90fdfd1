"""`blobjax plan`: from a config and the name of a machine to what a run on it would be like."""

import json
from collections.abc import Sequence
from pathlib import Path

from blobjax.config import BadInputError, load
from blobjax.reliability.run_directory import write_atomically
from blobjax.scaling.plan.compile import TooLargeError, compile_step
from blobjax.scaling.plan.estimate import Assumptions, make_plan
from blobjax.scaling.plan.hardware import find_machine
from blobjax.scaling.plan.render import render


def plan(
    name: str,
    overrides: Sequence[str],
    on: str,
    slices: int,
    assumed: Assumptions,
    as_json: bool = False,
) -> str:
    """What to print of a plan.

    Raises:
      BadInputError: a wrong name or number, a missing compiler, or a step that does not fit at all.
    """
    assumed.check()
    config = load(name, overrides)
    machine = find_machine(on, slices)
    try:
        step = compile_step(config, machine)
    except TooLargeError as error:
        raise BadInputError(
            f"--on {on}: the step does not fit into a device's memory ({error}); take more chips, another mesh, "
            "compute.remat=full or a larger compute.gradient_accumulation, or let --search find one that does"
        ) from None
    made = make_plan(step, machine, assumed)
    return json.dumps(made.as_json(), indent=2) if as_json else render(made)


def search(
    name: str, overrides: Sequence[str], on: str, slices: int, assumed: Assumptions, compiles: int, out: str
) -> tuple[str, str]:
    """The YAML of the fastest layout that fits, and what to say of the way there.

    Args:
      compiles: layouts that fit to compile, at most.
      out: a file to write the YAML to; empty: none.

    Raises:
      BadInputError: as `plan`; or nothing fits.
    """
    from blobjax.scaling.plan.search import find_layout

    assumed.check()
    config = load(name, overrides)
    found = find_layout(config, find_machine(on, slices), assumed, compiles)
    text = found.as_yaml(name, overrides)
    if out:
        write_atomically(Path(out), text)
    return text, found.report
