"""`blobjax report`: what a run or a study looked like, as one page."""

from typing import Annotated

import typer

from blobjax.cli.arguments import no_url
from blobjax.config.errors import BadInputError


def report(
    directory: Annotated[
        str, typer.Argument(metavar="RUN|STUDY", help="A run's directory, or a study's.", callback=no_url)
    ],
    out: Annotated[str | None, typer.Option(help="The file; report.html in that directory by default.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one chip-hour.")] = None,
    grid: Annotated[float | None, typer.Option(help="Carbon intensity of the electricity, gCO2e per kWh.")] = None,
    host_overhead: Annotated[float, typer.Option(help="Power of hosts over that of what was metered.")] = 1.5,
    pue: Annotated[float, typer.Option(help="Power of the building over that of its hosts.")] = 1.1,
) -> None:
    """Write one self-contained page: loss, speed, time, flow, energy and cost; also of what crashed or still runs."""
    from blobjax.config.paths import expanded
    from blobjax.report.prices import Prices

    if out is not None and not out.strip():
        raise BadInputError("--out: an empty name; give a file, or leave --out away")
    page = out or ""
    path, prices = expanded(directory, "the directory"), Prices(price, grid, host_overhead, pue)
    if (path / "study.yaml").is_file():
        from blobjax.studies import study_report

        typer.echo(f"page: {study_report.report(path, page, prices)}")
    else:
        from blobjax.report import report_command

        typer.echo(f"page: {report_command.run(path, page, prices)}")
