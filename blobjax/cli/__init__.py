"""`blobjax …`: a thin skin over the rooms. Imports nothing heavy until a command needs it."""

import blobjax.cli.began  # noqa: F401  (first: what follows takes time)

# isort: split
import contextlib
import os
import sys
from typing import Annotated

import typer

from blobjax.cli import checkpoint, config, data, laws, run, scaling
from blobjax.cli.doctor import doctor
from blobjax.cli.report import report
from blobjax.reliability.leaving import TOGETHER_SECONDS, leave, verdict

app = typer.Typer(
    name="blobjax",
    help="Train a sharded transformer, from a laptop CPU to a pod, with one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (run.train, run.status, run.sample, scaling.plan, report, doctor):
    app.command()(command)
for name, group in (
    ("data", data.app),
    ("config", config.app),
    ("checkpoint", checkpoint.app),
    ("laws", laws.app),
    ("study", scaling.study),
):
    app.add_typer(group, name=name)


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


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (clear lines, no traceback), 75 resumable, 1 anything else."""
    _open_standard_streams()
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


def _open_standard_streams() -> None:
    """Gives a process that was started without stdin, stdout or stderr (a daemon) ones that lead nowhere: files would
    get their numbers else, and libraries write to them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue  # not a closed one
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))


def _run() -> tuple[int, str]:
    """The exit code, and what is to be said on stderr."""
    try:
        return app(standalone_mode=False) or 0, ""
    except typer.Exit as done:
        return done.exit_code, ""
    except SystemExit as done:
        return (done.code, "") if isinstance(done.code, int) else (1 if done.code else 0, str(done.code or ""))
    except BaseException as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # of the command line itself
            message, context = error.format_message(), getattr(error, "ctx", None)
            if "\n" in message:  # the help of a group that was given no command
                return error.exit_code, message
            return error.exit_code, f"blobjax: {message} (see {context.command_path if context else 'blobjax'} --help)"
        return verdict(error)
