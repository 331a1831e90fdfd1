"""`blobjax …`: a thin skin over the rooms. Imports nothing heavy until a command needs it."""

import time

_BEGAN = time.monotonic()  # before the imports, which take time too

import contextlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from blobjax.config.errors import BadInputError  # noqa: E402
from blobjax.reliability.leaving import TOGETHER_SECONDS, leave, verdict  # noqa: E402

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
checkpoint_app = typer.Typer(help="Look at a run's checkpoints; no model, no accelerator.", no_args_is_help=True)
app.add_typer(checkpoint_app, name="checkpoint")
laws_app = typer.Typer(help="Fit scaling laws to points, and predict from them.", no_args_is_help=True)
app.add_typer(laws_app, name="laws")


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
    restarts: Annotated[
        int, typer.Option(min=0, help="Start again this often when it fails; not on bad input, nor without progress.")
    ] = 0,
) -> None:
    """Train, or resume the run in the config's run directory."""
    from blobjax.config import load

    settings = load(config, overrides or [])
    if restarts:
        from blobjax.reliability import supervisor

        raise typer.Exit(supervisor.supervise_training(sys.argv[1:], restarts, settings.logging.run_dir))
    from blobjax.reliability.clock import Clock
    from blobjax.reliability.stopping import Stopping

    clock = Clock(_BEGAN)

    stopping = Stopping(settings.reliability.grace.seconds or 0)
    stopping.listen()  # for good: this process does nothing else
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
    stopping.join()
    from blobjax.training.trainer import train as run

    raise typer.Exit(run(settings, allow_config_change, stopping, clock))


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="A run directory, such as runs/laptop.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How a run stands, how much of its time counted, and what the rest went to."""
    from blobjax.reliability import status as found

    what = found.status(run)
    for line in [json.dumps(what)] if as_json else found.lines(what):
        typer.echo(line)


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


RunPath = Annotated[str, typer.Argument(help="A run directory, such as runs/laptop.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@checkpoint_app.command("list")
def checkpoint_list(run: RunPath, as_json: AsJson = False) -> None:
    """Which there are: step, size, time, fingerprints, and which rule keeps it."""
    from blobjax.training import checkpoint_command as command

    found = command.describe(run)
    for line in [json.dumps(found)] if as_json else command.list_lines(found):
        typer.echo(line)


@checkpoint_app.command("verify")
def checkpoint_verify(
    run: RunPath,
    step: Annotated[int | None, typer.Option(help="One only; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every array and compare its fingerprint; exit code 1 when one is bad."""
    from blobjax.training import checkpoint_command as command

    bad = False
    for found in command.verify(run, step):
        typer.echo(json.dumps(found) if as_json else command.verify_line(found))
        bad = bad or not found["good"]
    raise typer.Exit(1 if bad else 0)


@checkpoint_app.command("show")
def checkpoint_show(
    run: RunPath,
    step: Annotated[int | None, typer.Option(help="Which; the newest by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """What one holds: every array with shape, dtype, size and fingerprint."""
    from blobjax.training import checkpoint_command as command

    found = command.show(run, step)
    for line in [json.dumps(found)] if as_json else command.show_lines(found):
        typer.echo(line)


@checkpoint_app.command("prune")
def checkpoint_prune(
    run: RunPath,
    keep: Annotated[int | None, typer.Option(min=1, help="The newest to keep; checkpoint.keep by default.")] = None,
    keep_every: Annotated[
        int | None, typer.Option(min=0, help="Keep multiples of it; checkpoint.keep_every by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which would go.")] = False,
) -> None:
    """Delete what no rule keeps; refused while the run trains."""
    from blobjax.training import checkpoint_command as command

    for line in command.prune(run, keep, keep_every, dry_run):
        typer.echo(line)


@config_app.command("show")
def config_show(config: ConfigName, overrides: Overrides = None) -> None:
    """The resolved config as YAML, every derived value filled in."""
    from blobjax.config import dump, load

    typer.echo(dump(load(config, overrides or [])), nl=False)


@laws_app.command("fit")
def laws_fit(
    points: Annotated[
        list[str], typer.Argument(help="Tables (.csv, .jsonl), run or study directories; or a fit file, fitted again.")
    ],
    law: Annotated[str, typer.Option(help="Which law, such as chinchilla-3; docs/scaling.md lists them.")] = "",
    col: Annotated[list[str] | None, typer.Option(help="A column with another name: --col 'loss=Final loss'.")] = None,
    drop_highest_loss: Annotated[int, typer.Option(min=0, help="Leave out so many points of the highest loss.")] = 0,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave out rows with empty cells.")] = False,
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Keep one of rows that are alike.")
    ] = False,
    counted: Annotated[str, typer.Option(help="What params and flops count, for the record.")] = "",
    fix: Annotated[list[str] | None, typer.Option(help="A parameter that is not fitted: --fix alpha=0.35.")] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Where the Huber loss turns linear; inf: least squares; the law's own by default."),
    ] = None,
    starts: Annotated[int, typer.Option(min=1, help="How many of the grid's best starts are descended from.")] = 40,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals.")] = 200,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Probability that an interval is to hold.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    out: Annotated[str, typer.Option(help="Where the fit file goes.")] = "fit.json",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Fit a scaling law to points, with intervals and a table of how it would have predicted the future."""
    from pathlib import Path

    from blobjax.scaling import command, fit_file, text

    content = command.fit(
        points,
        law,
        columns=col or [],
        drop_highest_loss=drop_highest_loss,
        drop_missing=drop_missing,
        drop_duplicates=drop_duplicates,
        counted=counted,
        fixed=fix or [],
        delta=delta,
        starts=starts,
        bootstrap=bootstrap,
        level=level,
        seed=seed,
    )
    fit_file.write(content, Path(out))
    typer.echo(command.as_json(content) if as_json else f"{text.fit(content)}\n\nfit file: {out}")


@laws_app.command("predict")
def laws_predict(
    fit: Annotated[str, typer.Argument(help="A fit file.")],
    flops: Annotated[
        float | None, typer.Option(help="A budget; alone, with the best params and tokens for it.")
    ] = None,
    params: Annotated[float | None, typer.Option(help="Parameters, counted as in the fit.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training tokens.")] = None,
    at: Annotated[list[str] | None, typer.Option(help="Another column: --at unique_tokens=1e9.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Predict from a fit: the value with its interval, and the best size for a budget."""
    from blobjax.scaling import command

    result, words = command.predict(fit, {"flops": flops, "params": params, "tokens": tokens}, at or [])
    typer.echo(command.as_json(result) if as_json else words)


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
    code, last_words = _run()
    if "jax" in sys.modules:
        # Processes come to 0 and 75 together, and to 2 often; one that fails must not wait for those who wait for it.
        together = {0: TOGETHER_SECONDS, 75: TOGETHER_SECONDS, 2: 1}
        leave(code, last_words, together.get(code, 0))
    if last_words:
        print(last_words.rstrip(), file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        # Closed by the other end, or never open: nothing to say it to, and no reason to fail.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    sys.exit(code)


def _run() -> tuple[int, str]:
    """The exit code, and what is to be said on stderr."""
    try:
        return app(standalone_mode=False) or 0, ""
    except typer.Exit as done:
        return done.exit_code, ""
    except SystemExit as done:
        return (done.code, "") if isinstance(done.code, int) else (1 if done.code else 0, str(done.code or ""))
    except BaseException as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # of the command line itself
            error.show()
            return error.exit_code, ""
        return verdict(error)


if __name__ == "__main__":
    main()
