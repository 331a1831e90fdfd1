"""`blobjax plan`: from a config and the name of a machine to what a run on it would be like."""

import json
from collections.abc import Sequence

from blobjax.config import BadInputError, load
from blobjax.plan.compile import TooLargeError, compile_step
from blobjax.plan.estimate import Assumptions, make_plan
from blobjax.plan.hardware import find_machine
from blobjax.plan.render import render
from blobjax.runs import output


def plan(
    name: str,
    overrides: Sequence[str],
    on: str,
    slices: int,
    assumed: Assumptions,
    as_json: bool = False,
    size: str | None = None,
) -> str:
    """What to print of a plan.

    Args:
      size: such as `5M`, as of `train`.

    Raises:
      BadInputError: a wrong name or number, a missing compiler, or a step that does not fit at all.
    """
    assumed.check()
    config = load(name, overrides, size)
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
    name: str,
    overrides: Sequence[str],
    on: str,
    slices: int,
    assumed: Assumptions,
    compiles: int,
    out: str | None = None,
    as_json: bool = False,
    size: str | None = None,
) -> tuple[str, str]:
    """What to print of the fastest layout that fits, its YAML or its plan as JSON; and what to say of the way there.

    Args:
      compiles: layouts that fit to compile, at most.
      out: a file to write the YAML to; None: none.
      size: such as `5M`, as of `train`.

    Raises:
      BadInputError: as `plan`; nothing fits; or `out` cannot be written, which is known before the first compilation.
    """
    from blobjax.plan.search import find_layout

    assumed.check()
    path = None if out is None else output.check(out, ".yaml", [name])
    config = load(name, overrides, size)
    found = find_layout(config, find_machine(on, slices), assumed, compiles)
    text = found.as_yaml()
    if path is not None:
        output.write(path, text)
    return json.dumps(found.as_json(), indent=2) + "\n" if as_json else text, found.report
