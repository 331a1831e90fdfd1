"""All commands, by their names."""

from typing import Annotated

import typer

from blobjax.cli import checkpoint, config, data, early, laws, run, scaling
from blobjax.cli.doctor import doctor
from blobjax.cli.once import Commands
from blobjax.cli.report import report

app = Commands(
    name="blobjax",
    help="Train a sharded transformer, from a laptop CPU to a pod, with one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run.train, run.status, run.sample, scaling.plan, report, doctor):
    app.command()(command)
for name, group in (
    ("data", data.app),
    ("config", config.app),
    ("checkpoint", checkpoint.app),
    ("laws", laws.app),
    ("study", scaling.study),
):
    app.add_typer(group, name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        from blobjax import __version__

        typer.echo(f"blobjax {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    early.command_begins()
