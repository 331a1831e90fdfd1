"""`blobjax laws …`."""

from typing import Annotated

import typer

from blobjax.cli.once import Commands

app = Commands(help="Fit scaling laws to points, and predict from them.", no_args_is_help=True)


@app.command("fit")
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
    starts: Annotated[
        int | None,
        typer.Option(min=1, show_default="40", help="How many of the best starts are descended from."),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(min=0, show_default="200", help="Resamples for the intervals.")
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(min=0.5, max=0.999, show_default="0.9", help="Probability that an interval is to hold."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default="0", help="Of the resampling.")] = None,
    budget_tolerance: Annotated[
        float | None,
        typer.Option(show_default="0.02", help="chinchilla-2: FLOPs that differ by this part are one budget."),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            show_default="the data choose", help="chinchilla-2: fit sizes within this factor of the lowest point."
        ),
    ] = None,
    vertex: Annotated[
        str | None,
        typer.Option(show_default="parabola", help="chinchilla-2: lowest points by parabola or akima (a spline)."),
    ] = None,
    out: Annotated[str, typer.Option(help="Where the fit file goes.")] = "fit.json",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Fit a scaling law to points, with intervals and a table of how it would have predicted the future."""
    from blobjax.laws import fit_command, fit_file, text
    from blobjax.runs import output

    # A fit file that is fitted again may be replaced: by the same.
    path = output.check(out, ".json", [each for each in points if not each.endswith(".json")])
    content = fit_command.fit(
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
        budget_tolerance=budget_tolerance,
        window=window,
        vertex=vertex,
    )
    fit_file.write(content, path)
    typer.echo(fit_command.as_json(content) if as_json else f"{text.fit(content)}\n\nfit file: {out}")


@app.command("predict")
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
    from blobjax.laws import fit_command

    result, words = fit_command.predict(fit, {"flops": flops, "params": params, "tokens": tokens}, at or [])
    typer.echo(fit_command.as_json(result) if as_json else words)
