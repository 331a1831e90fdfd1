"""A narrow domain against a broad mixture at equal tokens, in every domain and in one that no run was trained on.

GPT-1 (Radford et al. 2018) learned from books; GPT-2 (Radford et al. 2019) from a broad crawl, and did tasks that it
had not been trained for. Here the loss of held-out text is measured, by domain.
"""

from typing import Any

import numpy as np

from blobjax.reliability import mixture
from blobjax.report import plots
from blobjax.scaling.multiplier import Worth
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import Point, fit_points, held_against, points
from blobjax.studies.analyses.reference import listed
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result

TRAINING = "training"

Laws = dict[tuple[str, str], dict[str, Any]]
"""(what was trained on, where it was evaluated) to a fitted law of the loss there, by compute."""


def analyse(results: list[Result]) -> Finding:
    """The losses of the longest runs by domain, the broad run's lead in the unseen one, and what it was worth."""
    runs: dict[str, list[Point]] = {}
    for point in sorted(points(results), key=lambda point: point.tokens):
        runs.setdefault(point.result.label(TRAINING), []).append(point)
    narrow = {name: trained(group[0])[0] for name, group in runs.items() if len(trained(group[0])) == 1}
    others = [name for name in runs if name not in narrow]
    broad = max(others, key=lambda name: len(trained(runs[name][0])), default="")
    seen = sorted({domain for group in runs.values() for domain in trained(group[0])})
    unseen = [domain for domain in domains(runs) if domain not in seen]
    # What is compared had as many tokens; of a length that not all came to the end of nothing is known.
    lengths = set.intersection(*({p.tokens for p in group} for group in runs.values())) if runs else set()
    even = {name: [p for p in group if p.tokens in lengths] for name, group in runs.items()}
    if not lengths:
        return Finding(None, ("There is no length to whose end each kind of training came.",), {}, ())
    losses = {domain: {name: loss(group[-1], domain) for name, group in even.items()} for domain in domains(runs)}
    words = [
        f"After {max(lengths):,.0f} tokens, {domain}"
        f"{' (trained on by none)' if domain in unseen else ''}: {listed(each)} nats per token."
        for domain, each in losses.items()
    ]
    claims: list[bool | None] = [] if broad and narrow and unseen else [None]
    # Of what is held against something: each in what it was trained on alone, and all in what none was trained on.
    asked = [*narrow.items(), *((name, domain) for name in runs for domain in unseen)]
    fits = {(name, domain): fit_points("power-flops", runs[name], loss=_column(domain)) for name, domain in asked}
    laws = {each: law for each, (law, _) in fits.items() if law}
    values: dict[str, Worth] = {}
    for name, own in narrow.items():
        claims.append(losses[own][name] == min(losses[own].values()))
        if not claims[-1]:
            words.append(f"In {own} the run trained on it alone is not the best: not as expected.")
    for domain in unseen if broad and narrow else ():
        leads = [min(loss(even[name][i], domain) for name in narrow) - loss(even[broad][i], domain)
                 for i in range(len(lengths))]  # fmt: skip
        claims += [leads[-1] > 0, leads[-1] > leads[0] if len(leads) > 1 else None]
        words.append(
            f"In {domain} the broad run is {_ahead(leads[-1])} the best narrow one at the end, and {_ahead(leads[0])} "
            "it at the shortest length" + _fails(False not in claims[-2:])
        )
        values |= {
            f"{name}, in {domain} against {broad}": _worth(laws, broad, even[name][-1], domain) for name in narrow
        }
    words += [
        f"No law of {name} in {domain} could be fitted: {why}." for (name, domain), (_, why) in fits.items() if why
    ]
    if broad:
        values |= {
            f"{broad}, in {own} against {name}": _worth(laws, name, even[broad][-1], own)
            for name, own in narrow.items()
        }
        shares, gained = shares_of(even[broad][-1]), []
        for name, own in narrow.items():
            found = values[f"{broad}, in {own} against {name}"].multiplier
            if found is not None:
                gained.append(found > shares[own])
                words.append(
                    f"In {own} the broad run did as well as one trained on it alone for {found:.0%} of the compute, "
                    f"while {shares[own]:.0%} of its tokens were of it: the others "
                    + ("helped too." if gained[-1] else "brought nothing: not as expected.")
                )
        claims += gained
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={f"loss_in_{domain}": each for domain, each in losses.items()},
        pictures=(_curves(runs, (unseen or seen)[0], laws), _by_domain(losses)),
        laws={f"{name}-in-{domain}": law for (name, domain), law in laws.items()},
        worth=values,
    )


def trained(point: Point) -> list[str]:
    """The domains that a run was trained on."""
    return [domain for domain, weight in point.result.cell.config.data.mixture.items() if weight]


def shares_of(point: Point) -> dict[str, float]:
    """Domain to its share of the tokens."""
    config = point.result.cell.config
    return dict.fromkeys(config.data.mixture, 0.0) | mixture.shares(config)


def domains(runs: dict[str, list[Point]]) -> list[str]:
    """All that were evaluated, in the order of the mixture."""
    return list(dict.fromkeys(domain for group in runs.values() for domain in group[0].result.cell.config.data.mixture))


def loss(point: Point, domain: str) -> float:
    """Of held-out text of a domain, nats per token."""
    return float(point.row[_column(domain)])


def _column(domain: str) -> str:
    return f"eval/{domain}/cross_entropy"


def _ahead(lead: float) -> str:
    return f"{abs(lead):.3f} nats {'ahead of' if lead > 0 else 'behind'}"


def _fails(holds: bool) -> str:
    return "." if holds else ": not as expected."


def _worth(laws: Laws, baseline: str, point: Point, domain: str) -> Worth:
    """What a run was worth in a domain, in the compute of runs of other data."""
    return held_against(laws.get((baseline, domain)), point.flops, loss(point, domain))


def _curves(runs: dict[str, list[Point]], domain: str, laws: Laws) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {name: ([p.tokens / 1e3 for p in group], [loss(p, domain) for p in group]) for name, group in runs.items()}
    ticks = sorted({round(x) for xs, _ in lines.values() for x in xs})
    x, y = "thousand tokens trained on", "held-out loss, nats per token"
    plots.draw(axes, lines, x, y, log_x=True, log_y=True, ticks=ticks, title=f"in {domain}")
    for n, (name, group) in enumerate(runs.items()):
        if law := laws.get((name, domain)):
            tokens = np.geomspace(group[0].tokens, group[-1].tokens, 60)
            law_plots.curve(axes, law, {"flops": tokens * group[0].flops / group[0].tokens}, (tokens / 1e3).tolist(), n)
            law_plots.error_bars(axes, law, lines[name], n)
    caption = f"Loss in {domain} by what was trained on, and for how long."
    if any((name, domain) in laws for name in runs):
        caption += (
            " Thin, fitted power laws with their intervals; error bars: the root mean square distance of all points "
            "from their law."
        )
    return Picture("unseen_domain", caption, figure)


def _by_domain(losses: dict[str, dict[str, float]]) -> Picture:
    figure, (axes,) = plots.charts()
    plots.bars(axes, losses, "held-out loss, nats per token")
    axes.set_xlabel("evaluated on")
    return Picture("by_domain", "The longest runs in every domain; a bar for each kind of training.", figure)
