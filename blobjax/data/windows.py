"""Windows: the rows of T + 1 tokens that a domain's flat tokens are cut into.

Text is cut wherever a window ends. Examples are packed whole, in their order: a row takes the next examples while they
fit, and the rest of it is padding.
"""

from typing import NamedTuple, Protocol

import numpy as np

from blobjax.config import BadInputError
from blobjax.config.schema import Source
from blobjax.data.examples import COUNTS, OPENS


class Row(NamedTuple):
    """One window of T + 1 tokens.

    Attributes:
      tokens: int32 [T + 1].
      filled: how many of them are no padding.
      opens: bool [T], where a document opens; None: at every separator.
      counts: bool [T], which targets count; None: all.
    """

    tokens: np.ndarray
    filled: int
    opens: np.ndarray | None = None
    counts: np.ndarray | None = None


class Windows(Protocol):
    """A split of one domain, cut into rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, window: int) -> Row: ...


class TextWindows:
    """Windows of flat text.

    Args:
      flat: tokens.
      length: T.
      partial: whether a last window that is not full counts, so that there is at least one.
    """

    def __init__(self, flat: np.ndarray, length: int, partial: bool):
        self._flat, self._length = flat, length
        whole = max((len(flat) - 1) // length, 0)
        self._count = max(-(-(len(flat) - 1) // length), 1) if partial else whole

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, window: int) -> Row:
        part = self._flat[window * self._length : (window + 1) * self._length + 1]
        tokens = np.zeros(self._length + 1, np.int32)
        tokens[: len(part)] = part
        return Row(tokens, len(part))


class PackedExamples:
    """Rows of whole examples.

    Args:
      flat: tokens of all examples; marks: as `examples.assemble` makes them.
      length: T.
      separator: ends a row's last example.

    Attributes:
      examples: how many there are.
      skipped: how many of them are longer than a row and were left out.

    Raises:
      BadInputError: an example is longer than a row and `long_examples` is not skip, or none fits.
    """

    def __init__(
        self, flat: np.ndarray, marks: np.ndarray, length: int, separator: int, domain: str, source: Source
    ) -> None:
        self._flat, self._marks, self._length, self._separator = flat, marks, length, separator
        starts = np.flatnonzero(marks & OPENS)
        sizes = np.diff(np.append(starts, len(flat)))
        fits = sizes <= length
        self.examples, self.skipped = len(starts), int(np.sum(~fits))
        if self.skipped and (source.long_examples == "error" or not fits.any()):
            skip = f", or set data.sources.{domain}.long_examples=skip" if fits.any() else ""
            raise BadInputError(
                f"domain '{domain}': {self.skipped:,} of {self.examples:,} examples are longer than data.seq_len "
                f"{length}, the longest {sizes.max():,} tokens; raise data.seq_len{skip}"
            )
        self._starts, self._sizes = starts[fits], sizes[fits]
        ends = np.append(0, np.cumsum(self._sizes))
        firsts = [0]
        while firsts[-1] < len(self._sizes):
            firsts.append(int(np.searchsorted(ends, ends[firsts[-1]] + length, side="right")) - 1)
        self._firsts = np.array(firsts)

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def __getitem__(self, window: int) -> Row:
        tokens, marks = np.zeros(self._length + 1, np.int32), np.zeros(self._length, np.uint8)
        at = 0
        for example in range(self._firsts[window], self._firsts[window + 1]):
            start, size = self._starts[example], self._sizes[example]
            tokens[at : at + size] = self._flat[start : start + size]
            marks[at : at + size] = self._marks[start : start + size]
            at += size
        tokens[at] = self._separator
        return Row(tokens, at + 1, (marks & OPENS) > 0, (marks & COUNTS) > 0)
