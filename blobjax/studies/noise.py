"""What seeds say of a number: its mean, its interval, and whether a claim about it holds outside of that.

A run with another seed has other initial weights and other batches, and so another loss. Cells of one seed share both:
what is compared is therefore compared within each seed first, and the mean and interval are those of the differences.
The interval is Student's for the mean of a few normal values (Student 1908). One seed has no interval, and then nothing
that depends on the number's size can be told.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from blobjax.report import plots
from blobjax.studies.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = TypeVar("Key", bound=Hashable)

# Of the intervals, as of those of the fitted laws.
LEVEL = 0.9
AXIS = "seed"
"""The grid's axis that sets the key `seed`."""
INTERVAL = f"the mean over the seeds, with Student's t interval ({LEVEL:.0%}) of that mean"
"""What stands beside a number, in the words of a page."""


@dataclass(frozen=True)
class Mean:
    """A number that was measured once for each seed.

    Attributes:
      mean: over the seeds.
      low, high: ends of its interval; infinite with one seed, or where some of the seeds have no finite value.
      seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def above(self, bound: float) -> bool | None:
        """Whether the number is larger than this; None where the interval has both in it."""
        return True if self.low > bound else False if self.high <= bound else None

    def below(self, bound: float) -> bool | None:
        """Whether it is smaller."""
        return True if self.high < bound else False if self.low >= bound else None

    def within(self, bound: float) -> bool | None:
        """Whether it is nearer to zero than this."""
        if -bound < self.low and self.high < bound:
            return True
        return False if self.low >= bound or self.high <= -bound else None

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def shown(self, form: str = ".3f") -> str:
        """`0.290 (0.271 to 0.309)`; of one seed the number alone."""
        span = f" ({self.low:{form}} to {self.high:{form}})" if self.known else ""
        return f"{self.mean:{form}}{span}"

    @property
    def doubt(self) -> str:
        """Why a claim about it cannot be told."""
        if self.seeds < 2:
            return "there is one seed, and so no interval; give grid.seed=[0,1,2]"
        if not self.known:
            return f"of {self.seeds} seeds some came to no finite value"
        return f"the interval over {self.seeds} seeds, {self.low:.3g} to {self.high:.3g}, allows both"

    def record(self) -> dict[str, Any]:
        """As in summary.json; the ends are null where there is no interval."""
        ends = {"low": self.low, "high": self.high} if self.known else {"low": None, "high": None}
        return {"mean": self.mean, **ends, "seeds": self.seeds}


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of what each seed came to, and Student's interval of it.

    Infinities of one sign in all seeds are that, and no doubt remains: every one of them diverged.
    """
    # scipy takes half a second to import, which `blobjax study --help` can do without.
    from scipy.special import stdtrit

    count = len(values)
    if count > 1 and all(value == values[0] for value in values):
        return Mean(values[0], values[0], values[0], count)
    mean = sum(values) / count if count else math.nan
    if count < 2 or not math.isfinite(mean):
        return Mean(mean, -math.inf, math.inf, count)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    return Mean(mean, mean - reach, mean + reach, count)


def by_seed(results: list[Result]) -> dict[int, list[Result]]:
    """The cells of each seed, in the order of the grid."""
    seeds: dict[int, list[Result]] = {}
    for result in results:
        seeds.setdefault(result.cell.config.seed, []).append(result)
    return seeds


def across(results: list[Result], measure: Callable[[list[Result]], Mapping[Key, float]]) -> dict[Key, Mean]:
    """What is measured within each seed, over the seeds.

    Args:
      measure: from the cells of one seed to numbers by name; a seed that lacks a name is left out of that mean.
    """
    found: defaultdict[Key, list[float]] = defaultdict(list)
    for cells in by_seed(results).values():
        for name, value in measure(cells).items():
            found[name].append(value)
    return {name: mean_of(values) for name, values in found.items()}


def each(results: list[Result], axis: str, value: Callable[[Result], float]) -> dict[str, Mean]:
    """A number of every cell, by its label on an axis, over the seeds."""
    return across(results, lambda cells: {result.label(axis): value(result) for result in cells})


def always(facts: Sequence[bool]) -> bool | None:
    """Whether something that is the case or not was so with all seeds; None: with some."""
    return True if all(facts) else None if any(facts) else False


def every(holds: Iterable[bool | None]) -> bool | None:
    """A claim of several parts: it fails where one fails, and cannot be told where one cannot."""
    parts = list(holds)
    return False if False in parts else None if None in parts else True


def name(result: Result) -> str:
    """A cell's name without its seed."""
    labels = [label for axis, label in result.cell.labels.items() if axis != AXIS]
    return "_".join(labels) or result.cell.name


def edge(best: float, tried: Sequence[float], what: str) -> str:
    """Why a best value among those tried may not be the best there is; empty where it lies between others.

    Args:
      what: was tried: `learning rate`.
    """
    if len(set(tried)) < 3:
        return f"{len(set(tried))} {what}{'' if len(set(tried)) == 1 else 's'} cannot have the best of them inside"
    if best in (min(tried), max(tried)):
        return f"the best {what}, {best:g}, is at the edge of what was tried"
    return ""


def edge_in_a_seed(results: list[Result], value: Callable[[Result], float], what: str) -> str:
    """Why the best value of some seed may not be the best there is; empty where each seed's lies between others.

    A claim compares the best of each seed, and the mean over the seeds can have its best elsewhere.

    Args:
      results: of cells that differ in the value and the seed.
      value: that was tried.
      what: it is: `learning rate`.
    """
    seeds = by_seed(results)
    for seed, cells in seeds.items():
        best = min(cells, key=lambda result: result.capped_loss)
        if why := edge(value(best), [value(result) for result in cells], what):
            return why + (f" with seed {seed}" if len(seeds) > 1 else "")
    return ""


def claim(holds: bool | None, yes: str, no: str, asked: str, doubt: str) -> str:
    """The sentence about a claim.

    Args:
      holds: of the claim.
      yes, no: what is said where it is decided.
      asked: what cannot be told otherwise, after "whether".
      doubt: why.
    """
    return cannot_tell(f"whether {asked}", doubt) if holds is None else yes if holds else no


def cannot_tell(what: str, why: str) -> str:
    """The sentence about what these cells do not answer."""
    return f"Cannot tell {what}: {why}."


def mean_line(lines: Sequence[plots.Line]) -> plots.Line:
    """The mean of several seeds' lines over the same x, as far as all of them go."""
    length = min((len(xs) for xs, _ in lines), default=0)
    if not length:
        return [], []
    return lines[0][0][:length], [sum(ys[n] for _, ys in lines) / len(lines) for n in range(length)]


def mean_points(xs: Sequence[float], ys: Sequence[float]) -> plots.Line:
    """The mean of the y at each x, in the order of x: several seeds as one line."""
    found: dict[float, list[float]] = {}
    for x, y in sorted(zip(xs, ys, strict=True)):
        found.setdefault(x, []).append(y)
    return list(found), [sum(those) / len(those) for those in found.values()]


def error_bars(axes: "Axes", xs: Sequence[float], means: Sequence[Mean], n: int) -> None:
    """The intervals at the points of the n-th line; none where there is one seed."""
    known = [(x, m) for x, m in zip(xs, means, strict=True) if m.known]
    if known:
        reach = [m.high - m.mean for _, m in known]
        axes.errorbar([x for x, _ in known], [m.mean for _, m in known], yerr=reach, fmt="none",
                      ecolor=plots.colour(n), elinewidth=1.2, capsize=3)  # fmt: skip


def caption(means: Sequence[Mean]) -> str:
    """What error bars are, to end a caption with; empty where a plot has none."""
    return f" Error bars: {LEVEL:.0%} intervals of the mean over the seeds." if any(m.known for m in means) else ""


def bars(axes: "Axes", groups: Mapping[str, Mapping[str, Mean]], y: str) -> None:
    """Bars in groups, with their intervals."""
    reach = {g: {name: m.high - m.mean if m.known else 0.0 for name, m in group.items()} for g, group in groups.items()}
    heights = {g: {name: m.mean for name, m in group.items()} for g, group in groups.items()}
    plots.bars(axes, heights, y, reach=reach)
