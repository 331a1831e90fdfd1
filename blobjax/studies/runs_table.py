"""What the cells of a study took: the same figures that each run's own page has, a line a cell."""

from html import escape

from blobjax.report import facts
from blobjax.report.facts import Facts
from blobjax.report.html import human, paragraph, table
from blobjax.report.prices import Prices
from blobjax.runs.directory import RunDirectory
from blobjax.runs.energy import measured, shown
from blobjax.studies.results import Result


def html(results: list[Result], prices: Prices) -> str:
    """The table, a line for all of them, and what must be known of it."""
    runs = {}
    for result in results:
        directory = RunDirectory(result.cell.config.logging.run_dir)
        if result.status != "waiting" and directory.config.is_file():
            runs[result.cell.name] = facts.read(directory.path)
    if not runs:
        return paragraph("No cell has begun.")
    sources = _summed([run.energy for run in runs.values()])
    head = ["cell", "tokens", "FLOPs", "tokens/s", "goodput", "skips, rollbacks", "tokens/param", "chip-hours"]
    head += [f"energy, {escape(_named(source, list(sources)))}" for source in sources]
    head += ["cost"] if prices.price is not None else []
    rows = [_row(name, run, list(sources), prices) for name, run in runs.items()]
    hours = sum(run.chip_hours for run in runs.values())
    # A counter of processor packages has all that ran on the machine: of cells that ran at once, each has them all.
    shared = {"rapl"} & sources.keys() if _at_once(list(runs.values())) else set()
    summed = {source: joules for source, joules in sources.items() if source not in shared}
    whole = [
        "in all",
        human(sum(run.own_tokens for run in runs.values())),
        human(sum(run.own_flops for run in runs.values())),
        *[""] * 4,
        f"{hours:.3g}",
        *("no sum" if source in shared else shown(joules) for source, joules in sources.items()),
        *([f"{hours * prices.price:,.2f}"] if prices.price is not None else []),
    ]
    words = (
        "FLOPs: forward and backward, attention causal, lost steps out. tokens/s: the median. tokens/param: embeddings "
        "out, as a length in tokens/param counts, rounded to whole steps. Energy at the chips "
        f"({', '.join(sources) or 'not known'}): each source by itself."
    )
    if shared:
        words += (
            " Cells ran at once, and a counter of processor packages (rapl) has all that ran on the machine: each "
            "cell's figure has the others in it, so that there is no sum of them, and no emissions."
        )
    if any(run.own_tokens < run.tokens for run in runs.values()):
        words += (
            " Of a cell that began from another, tokens and FLOPs are its own; tokens/param has those of the other too."
        )
    listed = table(head, [*rows, whole], frozenset(range(1, len(head))))
    return listed + paragraph(words, small=True) + _emissions(summed, prices)


def _named(source: str, sources: list[str]) -> str:
    """A source in the words of a column's head; what an estimate was made from only where there are several."""
    estimates = [each for each in sources if not measured(each)]
    return "estimate" if estimates == [source] else source


def _at_once(runs: list[Facts]) -> bool:
    """Whether attempts of different runs were up at the same time. Nothing tells on which machine they were."""
    spans = sorted((each.began, each.ended, n) for n, run in enumerate(runs) for each in run.ledger.attempts)
    latest, of = 0.0, -1
    for began, ended, n in spans:
        if began < latest and n != of:
            return True
        latest, of = max((latest, of), (ended, n))
    return False


def _row(name: str, run: Facts, sources: list[str], prices: Prices) -> list[str]:
    events = run.status["events"]
    return [
        escape(name),
        human(run.own_tokens),
        human(run.own_flops),
        human(run.median("tokens_per_second")) if run.finite("tokens_per_second") else "",
        f"{run.ledger.goodput:.0%}",
        f"{events.get('skip', 0)}, {events.get('rollback', 0)}",
        f"{run.tokens_per_param:.3g}",
        f"{run.chip_hours:.3g}",
        *(shown(run.energy[source]) if source in run.energy else "" for source in sources),
        *([f"{run.chip_hours * prices.price:,.2f}"] if prices.price is not None else []),
    ]


def _summed(accounts: list[dict[str, float]]) -> dict[str, float]:
    sources = dict.fromkeys(source for each in accounts for source, joules in each.items() if joules)
    return {source: sum(each.get(source, 0.0) for each in accounts) for source in sources}


def _emissions(sources: dict[str, float], prices: Prices) -> str:
    if prices.grid is None or not sources:
        return ""
    said = ", ".join(
        f"{prices.wall_kwh(joules) * prices.grid / 1000:.3g} kg CO2e ({source})" for source, joules in sources.items()
    )
    return paragraph(
        f"At the wall, as an estimate: {said}, with {prices.host_overhead:g} for hosts, {prices.pue:g} for "
        f"the building and {prices.grid:g} gCO2e a kWh."
    )
