"""The exceptions that are shown as clear lines on stderr, with no traceback."""


class BadInputError(Exception):
    """Something the user gave cannot be used; exit code 2.

    Args:
      problems: one clear line each; every line names the thing and the fix.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


class HaltedError(Exception):
    """A run ended itself, because going on would waste what it costs: one line that says why; exit code 1."""


class DivergedError(HaltedError):
    """A run halted because its loss or its parameters are not finite; no later step can mend that."""
