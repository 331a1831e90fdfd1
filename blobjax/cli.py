"""`blobjax …`: a thin skin over the rooms. Imports nothing heavy until a command needs it."""

import contextlib
import json
import os
import sys
import traceback
from typing import Annotated

import typer

from blobjax.config.errors import BadInputError, HaltedError

app = typer.Typer(
    name="blobjax",
    help="Train a sharded transformer, from a laptop CPU to a pod, with one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Prepare and describe training data.", no_args_is_help=True)
config_app = typer.Typer(help="Look at configs.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


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
    pass


def _complete_config(incomplete: str) -> list[str]:
    from blobjax.config.load import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


ConfigName = Annotated[
    str,
    typer.Argument(help="A path, or a name in configs/ such as 'laptop'.", autocompletion=_complete_config),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides: model.d_model=512 seed=1"),
]


@app.command()
def train(
    config: ConfigName,
    overrides: Overrides = None,
    allow_config_change: Annotated[
        bool, typer.Option("--allow-config-change", help="Resume although the config's maths changed.")
    ] = False,
    coordinator: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of process 0, for several processes; detected on known clusters."),
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="How many processes there are.")] = None,
    process_id: Annotated[int | None, typer.Option(help="Which of them this is, from 0.")] = None,
    local_device_ids: Annotated[
        str | None, typer.Option(help="Comma-separated ids of the devices this process uses; all by default.")
    ] = None,
) -> None:
    """Train, or resume the run in the config's run directory."""
    from blobjax.config import load

    settings = load(config, overrides or [])
    from blobjax.compute import runtime

    runtime.configure(settings.compute)
    ids = None
    if local_device_ids is not None:
        try:
            ids = [int(each) for each in local_device_ids.split(",")]
        except ValueError:
            raise BadInputError(
                f"--local-device-ids {local_device_ids!r} is not a list of numbers such as 0,1,2,3"
            ) from None
    runtime.initialize_distributed(coordinator, num_processes, process_id, ids)
    from blobjax.training.trainer import train as run

    raise typer.Exit(run(settings, allow_config_change))


@app.command()
def sample(
    run: Annotated[str, typer.Argument(help="A run directory, such as runs/laptop.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to draw.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens that hold this probability."),
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides the draw.")] = 0,
) -> None:
    """Continue a prompt with a run's newest checkpoint."""
    from blobjax.training.inference import sample_run

    text = sample_run(run, prompt, tokens, seed=seed, temperature=temperature, top_p=top_p)
    typer.echo(prompt + text)


def _complete_study(incomplete: str) -> list[str]:
    from blobjax.config.load import shipped_studies

    return [name for name in shipped_studies() if name.startswith(incomplete)]


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="A path, or a name in configs/studies/ such as 'lr-sensitivity'.", autocompletion=_complete_study
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="For every cell: model.d_model=128; for the grid: grid.depth=[2,4]"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Cells at once; 0: as many as suit the machine.")] = 0,
    directory: Annotated[str, typer.Option("--dir", help="Where; studies/NAME by default.")] = "",
    status: Annotated[bool, typer.Option("--status", help="Only print how its cells stand.")] = False,
) -> None:
    """Run a grid of ordinary runs as one question, or what is left of it; the answer is a page."""
    from blobjax.studies import command

    if status:
        command.status(name, overrides or [], directory)
    else:
        raise typer.Exit(command.study(name, overrides or [], directory, jobs))


@app.command()
def plan(
    config: ConfigName,
    overrides: Overrides = None,
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
    compiles: Annotated[int, typer.Option(min=1, help="Layouts that --search compiles, at most.")] = 4,
    out: Annotated[str, typer.Option(help="Where --search also writes the YAML.")] = "",
) -> None:
    """Compile the train step for hardware that is not here: memory, collectives, time, energy, cost."""
    from blobjax.scaling.plan import command
    from blobjax.scaling.plan.estimate import Assumptions

    assumed = Assumptions(watts=watts, host_overhead=host_overhead, pue=pue, price=price, grid=grid)
    if search:
        found, report = command.search(config, overrides or [], on, slices, assumed, compiles, out)
        typer.echo(report, err=True)
        typer.echo(found, nl=False)
    else:
        typer.echo(command.plan(config, overrides or [], on, slices, assumed, as_json))


@data_app.command("prepare")
def data_prepare(
    config: ConfigName,
    overrides: Overrides = None,
    train_bpe: Annotated[
        int | None, typer.Option(min=257, max=1_000_000, help="First train a byte-level BPE tokenizer of this size.")
    ] = None,
    tokenizer_out: Annotated[str, typer.Option(help="Where --train-bpe writes the tokenizer.")] = "tokenizer.json",
) -> None:
    """Tokenise every domain of the mixture into token shards, once."""
    from blobjax import data
    from blobjax.config import load

    given = list(overrides or [])
    if train_bpe is not None:
        learnt = data.train_bpe(load(config, [*given, "data.tokenizer=bytes"]), train_bpe, tokenizer_out)
        given += [f"data.tokenizer={json.dumps(tokenizer_out)}", f"model.vocab_size={learnt}"]
        typer.echo(f"tokenizer of {learnt} ids; train with {' '.join(given[-2:])}")
    settings = load(config, given)
    with data.show_progress() as progress:
        prepared = data.prepare(settings, progress)
    for domain in prepared.domains.values():
        typer.echo(f"prepared: {domain.folder}")


@data_app.command("describe")
def data_describe(config: ConfigName, overrides: Overrides = None) -> None:
    """What the mixture holds: documents, tokens, held-out share, epochs, a glimpse of the text."""
    from rich.console import Console

    from blobjax import data
    from blobjax.config import load

    settings = load(config, overrides or [])
    with data.show_progress() as progress:
        prepared = data.prepare(settings, progress)
    from blobjax.training.program import make_clockwork

    clockwork = make_clockwork(settings, data.open_stream(settings, prepared).tokens_per_epoch)
    sequences = clockwork.batches.sequences(clockwork.length)
    Console().print(data.render(data.describe(settings, prepared, sequences)))


@config_app.command("show")
def config_show(config: ConfigName, overrides: Overrides = None) -> None:
    """The resolved config as YAML, every derived value filled in."""
    from blobjax.config import dump, load

    typer.echo(dump(load(config, overrides or [])), nl=False)


@app.command()
def doctor(
    directory: Annotated[str, typer.Argument(help="A directory runs will be written to.")] = ".",
    config: Annotated[
        str | None,
        typer.Option(help="Set the devices up as this config would.", autocompletion=_complete_config),
    ] = None,
) -> None:
    """Check this machine: devices, versions, memory, a collective across all devices, a write probe."""
    from blobjax.compute import doctor as checks
    from blobjax.compute import runtime

    if config is not None:
        from blobjax.config import load

        runtime.configure(load(config).compute)
    results = checks.report(directory)
    for check in results:
        typer.echo(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:<12} {check.detail}")
    raise typer.Exit(0 if all(check.ok for check in results) else 1)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (clear lines, no traceback), 75 resumable, 1 anything else."""
    code: int | str | None
    try:
        code = app(standalone_mode=False)
    except BadInputError as error:
        for problem in error.problems:
            print(f"blobjax: {problem}", file=sys.stderr)
        code = 2
    except HaltedError as error:
        print(f"blobjax: {error}", file=sys.stderr)
        code = 1
    except typer.Exit as done:
        code = done.exit_code
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            code = error.exit_code
        else:
            traceback.print_exc()
            code = 1
    for stream in (sys.stdout, sys.stderr):
        # Closed by the other end, or never open: nothing to say it to, and no reason to fail.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if code not in (0, None, 75) and "jax" in sys.modules:
        # A process that fails must not wait: not in jax's shutdown barrier for the others, who wait for it, nor for the
        # threads of a save that cannot succeed. (75 is no failure: all processes come to it together.)
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
