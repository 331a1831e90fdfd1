"""Arguments that several commands take."""

from typing import Annotated

import typer


def complete_config(incomplete: str) -> list[str]:
    from blobjax.config.load import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def no_url(path: str | None) -> str | None:
    """A path that is no URL, whatever becomes of it: as a path `gs://b/x` is a folder `gs:` here."""
    from blobjax.config.errors import BadInputError
    from blobjax.config.paths import url_problem

    if problem := url_problem(path or "", "the path"):
        raise BadInputError(problem)
    return path


def run_path(path: str) -> str:
    """The directory of a run or a study: no URL, and no empty text, which as a path is the working directory."""
    from blobjax.config.errors import BadInputError

    no_url(path)
    if not path.strip():
        raise BadInputError("the run directory is empty text; give one such as runs/laptop")
    return path


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
RunPath = Annotated[str, typer.Argument(help="A run directory, such as runs/laptop.", callback=run_path)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
