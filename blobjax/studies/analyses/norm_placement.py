"""Where norms stand, at several depths, with and without warm-up: what trains, and how the residual stream grows.

Xiong et al. 2020, section 3: with norms after the sum, gradients near the output are large at initialisation and those
of early blocks small, so that training needs a warm-up; with norms before the sublayers they are even, and the stream
grows with depth.
"""

import math

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses.reference import gap
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

PLACEMENT, DEPTH, WARMUP = "placement", "depth", "warmup"
PRE, POST, NONE = "pre", "post", "none"

# Nats behind the best cell from which a cell counts as not trained; a model of nothing but letter frequencies is 0.8 or
# more behind after 200 steps.
BEHIND = 0.7
# Nats that a warm-up must be worth to be a help.
HELPS = 0.1
# RMS of the gradients of the first block below which none reaches it.
VANISHED = 1e-9


def analyse(results: list[Result]) -> Finding:
    """Which cells train, the growth of the residual stream, and whether gradients reach the first block."""
    behind = noise.across(results, _behind)
    failed = [name for name, by in behind.items() if not by.mean < BEHIND]
    deepest = max(results, key=lambda result: result.cell.config.model.n_layers).label(DEPTH)
    deep = {
        placement: grouped(sorted(cells, key=lambda result: result.cell.config.duration.warmup.amount), WARMUP)
        for placement, cells in grouped([r for r in results if r.label(DEPTH) == deepest], PLACEMENT).items()
    }
    least, most = ({name: list(cells.values())[at] for name, cells in deep.items()} for at in (0, -1))
    growth = {name: noise.across(_all(cells), lambda those: {"": max(map(_growth, those))})[""]
              for name, cells in deep.items()}  # fmt: skip
    words = [
        f"{len(failed)} of {len(behind)} cells did not train (no finite loss, or over {BEHIND} nats behind the best)"
        + (f": {', '.join(failed)}." if failed else ".")
    ]
    whole = {PRE, POST} <= deep.keys() and len(deep[POST]) > 1
    claims: list[bool | None] = [] if whole else [None]
    if PRE in deep:
        names = dict.fromkeys(noise.name(result) for result in results if result.label(PLACEMENT) == PRE)
        trains = [behind[name].below(BEHIND) for name in names]
        claims.append(noise.every(trains))
        doubt = next((behind[name].doubt for name in names if behind[name].below(BEHIND) is None), "")
        words.append(noise.claim(claims[-1], "pre trains at every depth, with and without warm-up.",
                                 "pre does not always train.", "pre always trains", doubt))  # fmt: skip
    for placement in (name for name, cells in deep.items() if len(cells) > 1):
        without, with_it = (_final(cells[placement]) for cells in (least, most))
        worth = noise.across([*least[placement], *most[placement]], _of_warmup)[""]
        trained = behind[noise.name(most[placement][0])].below(BEHIND)
        helps = trained if trained is not True else worth.above(HELPS)
        needs = helps and behind[noise.name(least[placement][0])].below(BEHIND) is False
        words.append(
            f"{placement} with {deepest} blocks ends at {without.shown()} nats without warm-up and at "
            f"{with_it.shown()} with it{': it needs it' if needs else ', which helps' if helps else ''}."
        )
        if placement == POST:
            claims.append(helps)
            if helps is False:
                words[-1] += " That warm-up rescues post did not reproduce at this size."
            elif helps is None:
                doubt = worth.doubt if trained else behind[noise.name(most[placement][0])].doubt
                words.append(noise.cannot_tell(f"whether warm-up is worth more than {HELPS} nats to post", doubt))
    if {PRE, POST} <= deep.keys():
        ratio = noise.across(_all(deep[PRE]) + _all(deep[POST]), _pre_over_post)[""]
        claims.append(ratio.above(1))
        grows = (
            f"From the embedding to the last of {deepest} blocks the RMS of the residual stream grows "
            f"{growth[PRE].shown('.3g')}-fold with pre and {growth[POST].shown('.3g')}-fold with post"
        )
        asked = f"it grows more with pre ({growth[PRE].shown('.3g')}-fold) than with post ({growth[POST].shown('.3g')})"
        words.append(noise.claim(claims[-1], f"{grows}.", f"{grows}: not as expected.", asked, ratio.doubt))
    vanished = [noise.name(result) for result in results if _first_gradient(result) < VANISHED]
    if vanished := list(dict.fromkeys(vanished)):
        words.append(
            f"In {', '.join(vanished)} the gradients have vanished on their way to the first block (RMS under "
            f"{VANISHED:g}): what is behind it learns letter frequencies and no more."
        )
    largest = {name: max(r.flow_of("residual_rms") for r in _all(cells)) for name, cells in deep.items()}
    if NONE in largest:
        words.append(f"Without norms the residual stream once reached an RMS of {largest[NONE]:,.3g}.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            f"{name}, {deepest} blocks": values
            for name, values in {
                "growth of the residual stream": growth,
                "its largest RMS": largest,
                "final loss without warm-up": {name: _final(cells) for name, cells in least.items()},
                "final loss with warm-up": {name: _final(cells) for name, cells in most.items()},
                "first block's gradient RMS at the end": {
                    name: noise.mean_of([_first_gradient(result) for result in cells]) for name, cells in most.items()
                },
            }.items()
        },
        pictures=(_losses(results), _growths(most)),
    )


def _all(cells: dict[str, list[Result]]) -> list[Result]:
    return [result for group in cells.values() for result in group]


def _behind(cells: list[Result]) -> dict[str, float]:
    """Cell to its final loss above the best of the same seed, nats; infinite without a finite one."""
    best = min(result.capped_loss for result in cells)
    ended = {noise.name(r): r.final_loss - best if r.status == "finished" else math.inf for r in cells}
    return {name: by if math.isfinite(by) else math.inf for name, by in ended.items()}


def _of_warmup(cells: list[Result]) -> dict[str, float]:
    """What a warm-up is worth: the loss without it above that with it, of one seed."""
    without, with_it = (pick(cells, key=lambda r: r.cell.config.duration.warmup.amount) for pick in (min, max))
    return {"": gap(without, with_it)}


def _pre_over_post(cells: list[Result]) -> dict[str, float]:
    """How many times as much as with post the stream grows with pre, of one seed."""
    growth = {name: max(map(_growth, group)) for name, group in grouped(cells, PLACEMENT).items()}
    return {"": growth[PRE] / growth[POST]} if growth.keys() >= {PRE, POST} else {}


def _final(cells: list[Result]) -> Mean:
    """Final loss over the seeds, nats."""
    return noise.mean_of([result.final_loss for result in cells])


def _growth(result: Result) -> float:
    """RMS of the residual stream after the last block over that of the embedding, at the end."""
    stream, embedded = result.by_block("residual_rms"), result.flow.get("flow/embedding/residual_rms")
    return stream[-1] / embedded["last"] if stream and embedded else math.nan


def _first_gradient(result: Result) -> float:
    gradients = result.by_block("grad_rms")
    return gradients[0] if gradients else math.nan


def _losses(results: list[Result]) -> Picture:
    depths = grouped(results, DEPTH)
    figure, charts = plots.charts(len(depths), share_y=True)
    means: list[Mean] = []
    for n, (depth, group) in enumerate(depths.items()):
        bars = {
            placement: noise.across(cells, lambda those: {f"warm-up {r.label(WARMUP)}": r.capped_loss for r in those})
            for placement, cells in grouped(group, PLACEMENT).items()
        }
        noise.bars(charts[n], bars, "final loss, nats per token" if n == 0 else "")
        charts[n].set_title(f"{depth} blocks")
        means += [mean for each in bars.values() for mean in each.values()]
    charts[0].set_ylim(bottom=0.8 * min(result.capped_loss for result in results))
    caption = "Final loss by placement of the norms, depth and warm-up; one above the initial loss is shown as that."
    return Picture("final_loss", caption + noise.caption(means), figure)


def _growths(warmest: dict[str, list[Result]]) -> Picture:
    figure, (left, right) = plots.charts(2)

    def by_block(probe: str) -> dict[str, plots.Line]:
        lines = {name: [result.by_block(probe) for result in cells] for name, cells in warmest.items()}
        return {name: noise.mean_line([(range(len(ys)), ys) for ys in each]) for name, each in lines.items()}

    plots.draw(left, by_block("residual_rms"), "block", "RMS of the residual stream", log_y=True)
    plots.draw(right, by_block("grad_rms"), "block", "RMS of the gradients", log_y=True, legend=False)
    which = next(iter(warmest.values()))[0].label(WARMUP)
    caption = f"The deepest models at the last probed step (warm-up: {which}), block by block"
    several = len(next(iter(warmest.values()))) > 1
    return Picture("blocks", f"{caption}{', the mean over the seeds' if several else ''}.", figure)
