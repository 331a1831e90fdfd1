"""`blobjax doctor`."""

from typing import Annotated

import typer

from blobjax.cli.arguments import complete_config, no_url


def doctor(
    directory: Annotated[str, typer.Argument(help="A directory runs will be written to.", callback=no_url)] = ".",
    config: Annotated[
        str | None,
        typer.Option(help="Set the devices up as this config would.", autocompletion=complete_config),
    ] = None,
) -> None:
    """Check this machine: devices, versions, memory, a collective across all devices, a write probe."""
    from blobjax.compute import doctor as checks
    from blobjax.compute import runtime

    if config is not None:
        from blobjax.config import load

        runtime.configure(load(config).compute)
    else:
        runtime.set_needed_flags()
    results = checks.report(directory)
    for check in results:
        typer.echo(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:<12} {check.detail}")
    raise typer.Exit(0 if all(check.ok for check in results) else 1)
