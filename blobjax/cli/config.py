"""`blobjax config …`."""

import typer

from blobjax.cli.arguments import ConfigName, Overrides, Size
from blobjax.cli.once import Commands

app = Commands(help="Look at configs.", no_args_is_help=True)


@app.command("show")
def config_show(config: ConfigName, overrides: Overrides = None, size: Size = None) -> None:
    """The resolved config as YAML, every derived value filled in."""
    from blobjax.config import dump, load

    typer.echo(dump(load(config, overrides or [], size)), nl=False)
