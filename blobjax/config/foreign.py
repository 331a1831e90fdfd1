"""Included files: an error names their keys and what was expected, and shows none of their values.

Whoever writes `include` chooses a file; whoever sees the errors need not be allowed to read it.
"""

import difflib
import re

from blobjax.config.errors import BadInputError
from blobjax.config.schema import Config

# Where PyYAML begins to quote from the file. What is quoted may itself have quotes, and the last one may be cut off.
_QUOTE = re.compile("['\"]")
# So alike are two keys at least of which one is a slip of the other. `secret` and `seed` are 0.6.
_ALIKE = 0.75


def without_quotes(error: BadInputError) -> BadInputError:
    """The error of a file that is no YAML, without what it quotes from the file and all that follows."""
    parts = [problem.partition(": not valid YAML: ") for problem in error.problems]
    return BadInputError(*(f"{head}{mark}{_QUOTE.split(rest, 1)[0]}…" if mark else head for head, mark, rest in parts))


def check(content: dict, where: str) -> None:
    """Refuses keys and values most of whose keys a config cannot have.

    Raises:
      BadInputError: says how many, and names none.
    """
    known = ["include", *Config.model_fields]
    strange = [key for key in content if not difflib.get_close_matches(str(key)[:80], known, 1, _ALIKE)]
    if 2 * len(strange) > len(content):
        raise BadInputError(
            f"{where}: is included and is not a config: {len(strange)} of its {len(content)} keys are unknown; "
            f"known: {', '.join(known)}"
        )


def without_values(line: str) -> str:
    """A line of ours without the values that it quotes, and what is between them."""
    before, *values = _QUOTE.split(line)
    return f"{before}'…'{values[-1]}" if values else line
