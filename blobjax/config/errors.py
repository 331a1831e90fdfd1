"""The one exception that means "the input is wrong": shown as clear lines on stderr, exit code 2, no traceback."""


class BadInputError(Exception):
    """Something the user gave cannot be used.

    Args:
      problems: one clear line each; every line names the thing and the fix.
    """

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))
