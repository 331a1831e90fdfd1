"""`blobjax checkpoint …`."""

import json
from typing import Annotated

import typer

from blobjax.cli.arguments import AsJson, RunPath
from blobjax.cli.once import Commands

app = Commands(help="Look at a run's checkpoints; no model, no accelerator.", no_args_is_help=True)


@app.command("list")
def checkpoint_list(run: RunPath, as_json: AsJson = False) -> None:
    """Which there are: step, size, time, fingerprints, and which rule keeps it."""
    from blobjax.checkpointing import inspection as command

    found = command.describe(run)
    for line in [json.dumps(found)] if as_json else command.list_lines(found):
        typer.echo(line)


@app.command("verify")
def checkpoint_verify(
    run: RunPath,
    step: Annotated[int | None, typer.Option(help="One only; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every array and compare its fingerprint; exit code 1 when one is bad."""
    from blobjax.checkpointing import inspection as command

    bad = False
    for found in command.verify(run, step):
        typer.echo(json.dumps(found) if as_json else command.verify_line(found))
        bad = bad or bool(found["bad"])
    raise typer.Exit(1 if bad else 0)


@app.command("show")
def checkpoint_show(
    run: RunPath,
    step: Annotated[int | None, typer.Option(help="Which; the newest by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """What one holds: every array with shape, dtype, size and fingerprint."""
    from blobjax.checkpointing import inspection as command

    found = command.show(run, step)
    for line in [json.dumps(found)] if as_json else command.show_lines(found):
        typer.echo(line)


@app.command("prune")
def checkpoint_prune(
    run: RunPath,
    keep: Annotated[int | None, typer.Option(min=1, help="The newest to keep; checkpoint.keep by default.")] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=0, help="Keep multiples of it; checkpoint.keep_every by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which would go.")] = False,
) -> None:
    """Delete what no rule keeps; refused while the run trains."""
    from blobjax.checkpointing import inspection as command

    for line in command.prune(run, keep, keep_every, dry_run):
        typer.echo(line)
