"""A narrow domain against a broad mixture at equal tokens, in every domain and in one that no run was trained on.

GPT-1 (Radford et al. 2018) learned from books; GPT-2 (Radford et al. 2019) from a broad crawl, and did tasks that it
had not been trained for. Here the loss of held-out text is measured, by domain.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from blobjax.laws.multiplier import Worth
from blobjax.report import plots
from blobjax.runs import mixture
from blobjax.studies import noise
from blobjax.studies.analyses import law_plots
from blobjax.studies.analyses.fits import Point, fit_points, held_against, points
from blobjax.studies.analyses.reference import listed
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
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
    ends = {length: {name: [p for p in group if p.tokens == length] for name, group in even.items()}
            for length in (min(lengths), max(lengths))}  # fmt: skip
    compared = [point.result for group in even.values() for point in group if point.tokens == max(lengths)]
    losses = {domain: noise.each(compared, TRAINING, partial(_loss_of, domain)) for domain in domains(runs)}
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
        best = _lead(ends[max(lengths)], [name], [other for other in runs if other != name], own)
        claims.append(best.above(0) if best.seeds else None)
        if not claims[-1]:
            words.append(noise.claim(claims[-1], "", f"In {own} the run trained on it alone is not the best: not as "
                                     "expected.", f"in {own} the run trained on it alone is the best "
                                     f"({best.shown('+.3f')} nats ahead)", best.doubt))  # fmt: skip
    for domain in unseen if broad and narrow else ():
        first, last = (_lead(ends[length], [broad], [*narrow], domain) for length in (min(lengths), max(lengths)))
        grown = noise.mean_of([]) if len(lengths) < 2 else _grown(ends, broad, [*narrow], domain)
        holds = [last.above(0), grown.above(0) if grown.seeds else None]
        claims += holds
        words.append(
            f"In {domain} the broad run is {_ahead(last)} the best narrow one at the end, and {_ahead(first)} it at "
            "the shortest length" + (": not as expected." if False in holds else ".")
        )
        for held, what, of in ((holds[0], "the broad run is ahead there", last),
                               (holds[1], "its lead there grows with the length", grown)):  # fmt: skip
            if held is None:
                words.append(noise.cannot_tell(f"whether {what}", of.doubt if of.seeds else "there is one length"))
        values |= {f"{name}, in {domain} against {broad}": _worth(laws, broad, ends[max(lengths)][name], domain)
                   for name in narrow}  # fmt: skip
    words += [
        f"No law of {name} in {domain} could be fitted: {why}." for (name, domain), (_, why) in fits.items() if why
    ]
    if broad:
        values |= {
            f"{broad}, in {own} against {name}": _worth(laws, name, ends[max(lengths)][broad], own)
            for name, own in narrow.items()
        }
        shares = shares_of(even[broad][-1])
        gained: list[bool | None] = []
        for name, own in narrow.items():
            found = values[f"{broad}, in {own} against {name}"]
            if found.multiplier is None:
                continue
            low, high = found.low, found.high
            helped = (
                True
                if low is not None and low > shares[own]
                else False
                if high is not None and high <= shares[own]
                else None
            )
            gained.append(helped)
            span = "" if low is None or high is None else f" ({low:.0%} to {high:.0%})"
            words.append(
                f"In {own} the broad run did as well as one trained on it alone for {found.multiplier:.0%} of the "
                f"compute{span}, while {shares[own]:.0%} of its tokens were of it"
                + {True: ": the others helped too.", False: ": the others brought nothing: not as expected.",
                   None: "."}[helped]
            )  # fmt: skip
            if helped is None:
                count = len(ends[max(lengths)][broad])
                words.append(noise.cannot_tell(f"whether the others helped in {own}", _doubt(found, count)))
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


def _loss_of(domain: str, result: Result) -> float:
    return loss(points([result])[0], domain)


def _column(domain: str) -> str:
    return f"eval/{domain}/cross_entropy"


Ends = dict[str, list[Point]]
"""What was trained on to the runs of one length, one for each seed."""


def _leads(ends: Ends, ours: list[str], others: list[str], domain: str) -> dict[int, float]:
    """Seed to how far the best of ours is ahead of the best of the others in a domain, nats."""
    found = {}
    for seed in {point.result.cell.config.seed for name in ours for point in ends[name]}:
        best = [min((loss(p, domain) for name in names for p in ends[name] if p.result.cell.config.seed == seed),
                    default=math.nan) for names in (ours, others)]  # fmt: skip
        if not any(map(math.isnan, best)):
            found[seed] = best[1] - best[0]
    return found


def _lead(ends: Ends, ours: list[str], others: list[str], domain: str) -> Mean:
    return noise.mean_of([*_leads(ends, ours, others, domain).values()])


def _grown(ends: dict[float, Ends], broad: str, narrow: list[str], domain: str) -> Mean:
    """By how much the lead at the longest length is more than that at the shortest, compared within each seed."""
    first, last = (_leads(ends[length], [broad], narrow, domain) for length in (min(ends), max(ends)))
    return noise.mean_of([last[seed] - first[seed] for seed in last if seed in first])


def _ahead(lead: Mean) -> str:
    span = f" ({lead.low:+.3f} to {lead.high:+.3f})" if lead.known else ""
    return f"{abs(lead.mean):.3f} nats{span} {'ahead of' if lead.mean > 0 else 'behind'}"


def _worth(laws: Laws, baseline: str, group: list[Point], domain: str) -> Worth:
    """What runs that differ in the seed were worth in a domain, in the compute of runs of other data.

    Multipliers have a geometric mean. The interval is that of the mean over the seeds, and on either side as much wider
    as the law leaves the seed it knows least about; of one seed there is none.
    """
    mean = sum(loss(point, domain) for point in group) / len(group)
    each = [held_against(laws.get((baseline, domain)), point.flops, loss(point, domain)) for point in group]
    found = [worth for worth in each if worth.multiplier is not None]
    if len(found) < len(each):
        return replace(next(worth for worth in each if worth.multiplier is None), loss=mean)
    over = noise.mean_of([math.log(worth.multiplier or math.nan) for worth in found])
    multiplier, flops = math.exp(over.mean), group[0].flops
    low = high = None
    if over.known and all(worth.low is not None for worth in found):
        low = math.exp(over.low) * min((worth.low or 0) / (worth.multiplier or math.nan) for worth in found)
    if over.known and all(worth.high is not None for worth in found):
        high = math.exp(over.high) * max((worth.high or 0) / (worth.multiplier or math.nan) for worth in found)
    return Worth(flops, mean, multiplier * flops, multiplier, low, high)


def _doubt(worth: Worth, seeds: int) -> str:
    """Why what a run was worth does not decide."""
    if seeds < 2:
        return noise.mean_of([worth.multiplier or math.nan]).doubt
    if worth.low is None or worth.high is None:
        return "the fit leaves it without an interval"
    return f"the interval over {seeds} seeds and of the law, {worth.low:.0%} to {worth.high:.0%}, allows both"


def _curves(runs: dict[str, list[Point]], domain: str, laws: Laws) -> Picture:
    figure, (axes,) = plots.charts()
    lines = {name: noise.mean_points([p.tokens / 1e3 for p in group], [loss(p, domain) for p in group])
             for name, group in runs.items()}  # fmt: skip
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


def _by_domain(losses: dict[str, dict[str, Mean]]) -> Picture:
    figure, (axes,) = plots.charts()
    noise.bars(axes, losses, "held-out loss, nats per token")
    axes.set_xlabel("evaluated on")
    caption = "The longest runs in every domain; a bar for each kind of training."
    caption += noise.caption([mean for each in losses.values() for mean in each.values()])
    return Picture("by_domain", caption, figure)
