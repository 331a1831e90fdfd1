"""Windows of the stream that a run leaves out.

A run counts the sequences it uses, the stream counts all it has. Which sequence of the stream is the n-th that is used
follows from the windows alone, so a position stays one integer, and a restart that knows the windows sees the same
data.
"""

from collections.abc import Iterable
from dataclasses import dataclass

Window = tuple[int, int]
"""First and last sequence, by their number in the stream; the last is excluded."""


@dataclass(frozen=True)
class PassedOver:
    """Windows in ascending order, which neither overlap nor touch. Made by `of`."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def of(cls, windows: Iterable[Window]) -> "PassedOver":
        """From windows in any order, which may overlap."""
        merged: list[Window] = []
        for first, last in sorted(windows):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    def before(self, used: int) -> tuple[Window, ...]:
        """The windows that come before the used sequence of this number, counted from 0."""
        found = []
        for first, last in self.windows:
            if used < first:
                break
            found.append((first, last))
            used += last - first
        return tuple(found)

    def number(self, used: int) -> int:
        """The number in the stream of the used sequence of this number; both are counted from 0."""
        return used + sum(last - first for first, last in self.before(used))
