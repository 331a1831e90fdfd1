"""Commands that refuse an option given twice: the last one would win, and which was meant is not known."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from blobjax.config import BadInputError


class Once(TyperCommand):
    """A command whose options are given once each, but for those that collect values."""

    # Of the context typer brings a class of its own, which it does not name.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments of a command line.

        Raises:
          BadInputError: an option is given twice.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        single = [each for each in order if isinstance(each, TyperOption) and not (each.multiple or each.is_flag)]
        if twice := [each for each in dict.fromkeys(single) if single.count(each) > 1]:
            raise BadInputError(f"{max(twice[0].opts, key=len)}: is given twice; give it once")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of commands that all do."""

    def command(self, name: str | None = None, **given: Any) -> Callable[[Any], Any]:
        """As Typer's."""
        return super().command(name, **{"cls": Once} | given)
