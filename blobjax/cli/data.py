"""`blobjax data …`."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from blobjax.cli.arguments import ConfigName, Overrides, no_url
from blobjax.cli.once import Commands

# Columns of what no terminal shows.
WIDE = 1000

app = Commands(help="Prepare and describe training data.", no_args_is_help=True)


@app.command("prepare")
def data_prepare(
    config: ConfigName,
    overrides: Overrides = None,
    train_bpe: Annotated[
        int | None, typer.Option(min=257, max=1_000_000, help="First train a byte-level BPE tokenizer of this size.")
    ] = None,
    tokenizer_out: Annotated[
        str,
        typer.Option(help="Where --train-bpe writes the tokenizer; it replaces no other one.", callback=no_url),
    ] = "tokenizer.json",
) -> None:
    """Tokenise every domain of the mixture into token shards, once."""
    from blobjax import data
    from blobjax.config import load

    given = list(overrides or [])
    with contextlib.ExitStack() as undo:
        if train_bpe is not None:
            file = f"data.tokenizer={json.dumps(tokenizer_out)}"
            load(config, [*given, file, f"model.vocab_size={train_bpe}"])  # refused here, nothing was trained for it
            if not os.path.lexists(tokenizer_out):  # a tokenizer that nothing can be prepared with is not left there
                undo.callback(Path(tokenizer_out).unlink, missing_ok=True)
            learnt = data.train_bpe(load(config, [*given, "data.tokenizer=bytes"]), train_bpe, tokenizer_out)
            given += [file, f"model.vocab_size={learnt}"]
        settings = load(config, given)
        with data.show_progress() as progress:
            prepared = data.prepare(settings, progress)
        undo.pop_all()
    if train_bpe is not None:
        typer.echo(f"tokenizer of {learnt} ids; train with {' '.join(given[-2:])}")
    for domain in prepared.domains.values():
        typer.echo(f"prepared: {domain.folder}")
    for note in prepared.notes:
        typer.echo(note)


@app.command("describe")
def data_describe(config: ConfigName, overrides: Overrides = None) -> None:
    """What the mixture holds: documents, tokens, held-out share, epochs, a glimpse of the text."""
    from rich.console import Console

    from blobjax import data
    from blobjax.config import load

    settings = load(config, overrides or [])
    with data.show_progress() as progress:
        prepared = data.prepare(settings, progress)
    from blobjax.program.program import make_clockwork

    clockwork = make_clockwork(settings, data.open_stream(settings, prepared).tokens_per_epoch)
    sequences = clockwork.batches.sequences(clockwork.length)
    # Into a file or a pipe as wide as it is, and not cut at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(data.render(data.describe(settings, prepared, sequences)))
