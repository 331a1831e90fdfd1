"""`blobjax study` and `blobjax plan`: many runs, and the one that is not yet paid for."""

from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from blobjax.cli.arguments import ConfigName, Overrides, Size, no_url
from blobjax.cli.once import Commands, Once
from blobjax.config.errors import BadInputError


def _complete_study(incomplete: str) -> list[str]:
    from blobjax.config.load import shipped_studies

    return [name for name in shipped_studies() if name.startswith(incomplete)]


class _RunByDefault(TyperGroup):
    """`blobjax study NAME` is `blobjax study run NAME`, and its help is the group's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        run = self.commands["run"]
        return run.get_help(run.make_context("run", [], parent=ctx, resilient_parsing=True))


class _Run(Once):
    """The command whose name may be left out, and is in its help."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.parent.command_path, " ".join(self.collect_usage_pieces(ctx)))


study = Commands(
    cls=_RunByDefault,
    help="Many ordinary runs as one question. `blobjax study NAME` runs what is left of it.",
    no_args_is_help=True,
)

StudyName = Annotated[
    str,
    typer.Argument(
        help="A path, or a name in configs/studies/ such as 'lr-sensitivity'.", autocompletion=_complete_study
    ),
]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="For every cell: model.d_model=128; for the grid: grid.depth=[2,4]"),
]
StudyDirectory = Annotated[str, typer.Option("--dir", help="Where; studies/NAME by default.", callback=no_url)]


@study.command("run", cls=_Run)
def study_run(
    name: StudyName,
    overrides: StudyOverrides = None,
    jobs: Annotated[int, typer.Option(min=0, help="Cells at once; 0: as many as suit the machine.")] = 0,
    directory: StudyDirectory = "",
    on: Annotated[
        Literal["local", "here", "slurm"],
        typer.Option(help="Cells run in processes of this machine, in this very process, or as jobs of Slurm."),
    ] = "local",
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For sbatch: partition=gpu, time=120 (minutes).")
    ] = None,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Also make the run that tests what the study predicts.")
    ] = False,
) -> None:
    """Run a grid of ordinary runs as one question, or what is left of it; the answer is a page.

    `blobjax study status NAME` says how its cells stand, without running any.
    """
    from blobjax.studies import study_command

    if slurm and on != "slurm":
        raise BadInputError("--slurm is for --on slurm; give both")
    if jobs > 1 and on == "here":
        raise BadInputError(f"--jobs {jobs}: one process runs one cell at a time; leave out --jobs, or --on here")
    raise typer.Exit(study_command.study(name, overrides or [], directory, jobs, confirm, on, slurm or []))


@study.command("status")
def study_status(name: StudyName, overrides: StudyOverrides = None, directory: StudyDirectory = "") -> None:
    """How the cells of a study stand, without running any."""
    from blobjax.studies import study_command

    study_command.status(name, overrides or [], directory)


def plan(
    config: ConfigName,
    overrides: Overrides = None,
    size: Size = None,
    on: Annotated[
        str, typer.Option(metavar="CHIP:SIZES", help="v5p:4x4x8, v6e:16x16, h100:16x8 (hosts x GPUs of one) or cpu:8.")
    ] = "cpu:8",
    slices: Annotated[int, typer.Option(min=1, help="How many such TPU slices.")] = 1,
    price: Annotated[float | None, typer.Option(help="Of one chip-hour.")] = None,
    grid: Annotated[float | None, typer.Option(help="Carbon intensity of the electricity, gCO2e per kWh.")] = None,
    watts: Annotated[float | None, typer.Option(help="Power of one chip; default: what its vendor publishes.")] = None,
    host_overhead: Annotated[float, typer.Option(help="Power of hosts over that of their chips.")] = 1.5,
    pue: Annotated[float, typer.Option(help="Power of the building over that of its hosts.")] = 1.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    search: Annotated[bool, typer.Option("--search", help="Find the fastest layout that fits; print YAML.")] = False,
    compiles: Annotated[
        int | None, typer.Option(min=1, help="Layouts that fit to compile in a --search; 3 by default.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Where --search also writes the YAML.")] = None,
) -> None:
    """Compile the train step for hardware that is not here: memory, collectives, time, energy, cost."""
    from blobjax.plan import plan_command
    from blobjax.plan.estimate import Assumptions

    assumed = Assumptions(watts=watts, host_overhead=host_overhead, pue=pue, price=price, grid=grid)
    if not search and (out is not None or compiles is not None):
        raise BadInputError(f"{'--compiles' if out is None else '--out'} is for --search; give both, or neither")
    if search:
        found, report = plan_command.search(
            config, overrides or [], on, slices, assumed, 3 if compiles is None else compiles, out, as_json, size
        )
        typer.echo(report, err=True)
        typer.echo(found, nl=False)
    else:
        typer.echo(plan_command.plan(config, overrides or [], on, slices, assumed, as_json, size))
