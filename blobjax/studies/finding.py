"""What an analysis finds in the cells of a study: a verdict, words, numbers and pictures."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from blobjax.laws.multiplier import Worth

Verdict = bool | Literal["partly"] | None
"""Whether what was expected came out; None where nothing definite was expected."""


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
      name: of its file, without a suffix.
      caption: what it shows, in a sentence or two.
      figure: the plot itself.
    """

    name: str
    caption: str
    figure: "Figure"


@dataclass(frozen=True)
class Prediction:
    """What fitted laws say of a run that has not been made, and the run that tests it: `blobjax study NAME --confirm`.

    Attributes:
      name: of the run's directory.
      what: which run it is, in words.
      settings: dotted keys and values that make the run of the study's base.
      expected: law to the loss it predicts: `value`, `low` and `high` of the law, `run_low` and `run_high` of a single
        run; the first decides whether the prediction held.
    """

    name: str
    what: str
    settings: dict[str, Any]
    expected: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """The answer to a study's question.

    Attributes:
      reproduced: the verdict; None where nothing that was claimed could be told, or where nothing is claimed.
      words: paragraphs; also what did not come out.
      numbers: name to a number, a text, or a dict of them.
      pictures: plots, the most telling first.
      laws: name to the content of a fit file; each is written into the study's directory as fit-NAME.json.
      worth: what was varied to what it was worth in compute.
      prediction: of the next run, where laws were fitted that tell it.
      claims: whether anything is claimed. Where it is, no verdict means that these cells cannot tell.
    """

    reproduced: Verdict
    words: tuple[str, ...]
    numbers: dict[str, Any]
    pictures: tuple[Picture, ...]
    laws: dict[str, dict[str, Any]] = field(default_factory=dict)
    worth: "dict[str, Worth]" = field(default_factory=dict)
    prediction: Prediction | None = None
    claims: bool = True


def verdict(*claims: bool | None) -> Verdict:
    """True where all claims hold, False where all that could be tested failed, else partly.

    Args:
      claims: what the paper found; None where these cells cannot tell, so that a part of a study is no reproduction of
        the whole. Without one that could be tested there is no verdict.
    """
    tested = [claim for claim in claims if claim is not None]
    if not tested:
        return None
    return True if all(claims) else "partly" if any(tested) else False
