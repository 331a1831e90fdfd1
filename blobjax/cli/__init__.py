"""`blobjax …`: a thin skin over the rooms. Imports nothing heavy until a command needs it.

What is imported here is imported before signals are taken, so it is next to nothing.
"""

import blobjax.cli.began  # noqa: F401  (first: what follows takes time)

# isort: split
import contextlib
import sys

from blobjax.cli import early


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (clear lines, no traceback), 75 resumable, 1 anything else."""
    early.listen(sys.argv[1:])
    from blobjax.processes import streams

    streams.open_standard()
    code, last_words = _run()
    if "jax" in sys.modules:
        from blobjax.processes.leaving import TOGETHER_SECONDS, leave

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
        import typer

        from blobjax.cli.commands import app

        try:
            code = app(standalone_mode=False) or 0
            # What Typer makes of a KeyboardInterrupt, without a word.
            return code, "blobjax: interrupted" if code == early.INTERRUPTED else ""
        except typer.Exit as done:
            return done.exit_code, ""
    except SystemExit as done:
        return (done.code, "") if isinstance(done.code, int) else (1 if done.code else 0, str(done.code or ""))
    except BaseException as error:
        if early.interrupted():
            return early.INTERRUPTED, "blobjax: interrupted"
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # of the command line itself
            message, context = error.format_message(), getattr(error, "ctx", None)
            if "\n" in message:  # the help of a group that was given no command
                return error.exit_code, message
            return error.exit_code, f"blobjax: {message} (see {context.command_path if context else 'blobjax'} --help)"
        from blobjax.processes.leaving import verdict

        return verdict(error)
