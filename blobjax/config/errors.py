"""The exceptions that are shown as clear lines on stderr, with no traceback."""

from typing import Any

# Longer than any line of ours; what is beyond it came from the input.
_LONGEST_LINE = 4000


class BadInputError(Exception):
    """Something the user gave cannot be used; exit code 2.

    Args:
      problems: one clear line each; every line names the thing and the fix.
    """

    def __init__(self, *problems: str):
        # What UTF-8 cannot hold came from the input too, and would make printing the line fail.
        lines = (line.encode(errors="backslashreplace").decode() for line in problems)
        self.problems = tuple(line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…" for line in lines)
        super().__init__("\n".join(self.problems))


def brief(value: Any, most: int = 60) -> str:
    """A value for an error message: as Python writes it, cut to `most` characters."""
    if isinstance(value, str):
        # Cut first: all of a text of megabytes need not be quoted to show where it begins.
        return repr(value) if len(value) < most else f"{repr(value[:most])[: most - 3]}..."
    try:
        text = repr(value)
    except ValueError:  # Python does not write out an integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."


class HaltedError(Exception):
    """A run ended itself, because going on would waste what it costs: one line that says why; exit code 1."""


class DivergedError(HaltedError):
    """A run halted because its loss or its parameters are not finite; no later step can mend that."""
