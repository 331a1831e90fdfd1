"""`blobjax train|status|sample`: one run."""

import json
import sys
from typing import Annotated

import typer

from blobjax.cli.arguments import AsJson, ConfigName, Overrides, RunPath, Size
from blobjax.cli.began import BEGAN
from blobjax.config.errors import BadInputError


def train(
    config: ConfigName,
    overrides: Overrides = None,
    size: Size = None,
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

    settings = load(config, overrides or [], size)
    if restarts:
        from blobjax.processes import supervisor

        raise typer.Exit(supervisor.supervise_training(sys.argv[1:], restarts, settings.logging.run_dir))
    from blobjax.processes.clock import Clock
    from blobjax.processes.stopping import Stopping

    clock = Clock(BEGAN)

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


def status(
    run: RunPath,
    as_json: AsJson = False,
) -> None:
    """How a run stands, how much of its time counted, and what the rest went to."""
    from blobjax.runs import status as found

    what = found.status(run)
    for line in [json.dumps(what)] if as_json else found.lines(what):
        typer.echo(line)


def sample(
    run: RunPath,
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
    from blobjax.compute import runtime
    from blobjax.training.inference import sample_run

    runtime.set_needed_flags()
    text = sample_run(run, prompt, tokens, seed=seed, temperature=temperature, top_p=top_p)
    typer.echo(prompt + text)
