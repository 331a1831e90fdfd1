"""`blobjax report RUN`: from a run's directory to its page."""

from importlib.util import find_spec
from pathlib import Path

from blobjax.config import BadInputError
from blobjax.report.prices import Prices
from blobjax.runs import output
from blobjax.runs.directory import refuse_links

NAME = "report.html"


def check(directory: Path, out: str) -> Path:
    """Where the page goes; all that can be wrong with it, before anything is read.

    Args:
      directory: of a run or a study.
      out: a file; empty: report.html in the directory.

    Raises:
      BadInputError: no directory, no matplotlib, or nowhere to write.
    """
    if not directory.is_dir():
        raise BadInputError(f"{directory}: is no directory; give a run's, such as runs/laptop, or a study's")
    if find_spec("matplotlib") is None:
        raise BadInputError("a report draws plots, and matplotlib is not installed; pip install 'blobjax[plot]'")
    if not out:
        refuse_links(directory, [NAME], "a report")
    return output.check(out or str(directory / NAME), ".html", [directory])


write = output.write


def run(directory: Path, out: str, prices: Prices) -> Path:
    """Writes a run's page; where.

    Raises:
      BadInputError: there is no run, or no page can be made or written.
    """
    path = check(directory, out)
    from blobjax.report import facts, run_page

    write(path, run_page.page(facts.read(directory), prices))
    return path
