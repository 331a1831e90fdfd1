"""Arguments that several commands take."""

from typing import Annotated

import typer


def complete_config(incomplete: str) -> list[str]:
    from blobjax.config.load import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


ConfigName = Annotated[
    str,
    typer.Argument(help="A path, or a name in configs/ such as 'laptop'.", autocompletion=complete_config),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides: model.d_model=512 seed=1"),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="5M", help="Shape, learning rate, batch, decay and length for so many parameters."),
]
RunPath = Annotated[str, typer.Argument(help="A run directory, such as runs/laptop.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
