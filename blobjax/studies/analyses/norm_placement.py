"""Where norms stand, at several depths, with and without warm-up: what trains, and how the residual stream grows.

Xiong et al. 2020, section 3: with norms after the sum, gradients near the output are large at initialisation and those
of early blocks small, so that training needs a warm-up; with norms before the sublayers they are even, and the stream
grows with depth.
"""

import math

from blobjax.report import plots
from blobjax.studies.finding import Finding, Picture, verdict
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


def trained(result: Result, best: float) -> bool:
    """Whether a cell ended with a finite loss, near the best."""
    return result.status == "finished" and result.final_loss < best + BEHIND


def analyse(results: list[Result]) -> Finding:
    """Which cells train, the growth of the residual stream, and whether gradients reach the first block."""
    best = min(result.capped_loss for result in results)
    failed = [result.cell.name for result in results if not trained(result, best)]
    deepest = max(results, key=lambda result: result.cell.config.model.n_layers).label(DEPTH)
    deep = {
        placement: sorted(cells, key=lambda result: result.cell.config.duration.warmup.amount)
        for placement, cells in grouped([r for r in results if r.label(DEPTH) == deepest], PLACEMENT).items()
    }
    growth = {placement: max(map(_growth, cells)) for placement, cells in deep.items()}
    largest = {placement: max(r.flow_of("residual_rms") for r in cells) for placement, cells in deep.items()}
    words = [
        f"{len(failed)} of {len(results)} cells did not train (no finite loss, or over {BEHIND} nats behind the best)"
        + (f": {', '.join(failed)}." if failed else ".")
    ]
    whole = {PRE, POST} <= deep.keys() and len(deep[POST]) > 1
    claims: list[bool | None] = [] if whole else [None]
    if PRE in deep:
        claims.append(all(trained(result, best) for result in results if result.label(PLACEMENT) == PRE))
        always = "trains at every depth, with and without warm-up" if claims[-1] else "does not always train"
        words.append(f"pre {always}.")
    for placement, (without, *_, with_it) in ((name, cells) for name, cells in deep.items() if len(cells) > 1):
        needs = trained(with_it, best) and not trained(without, best)
        helps = trained(with_it, best) and not without.final_loss < with_it.final_loss + HELPS
        words.append(
            f"{placement} with {deepest} blocks ends at {without.final_loss:.3f} nats without warm-up and at "
            f"{with_it.final_loss:.3f} with it{': it needs it' if needs else ', which helps' if helps else ''}."
        )
        if placement == POST:
            claims.append(helps)
            if not helps:
                words[-1] += " That warm-up rescues post did not reproduce at this size."
    if {PRE, POST} <= deep.keys():
        claims.append(growth[PRE] > growth[POST])
        words.append(
            f"From the embedding to the last of {deepest} blocks the RMS of the residual stream grows "
            f"{growth[PRE]:.3g}-fold with pre and {growth[POST]:.3g}-fold with post."
        )
    if vanished := [result.cell.name for result in results if _first_gradient(result) < VANISHED]:
        words.append(
            f"In {', '.join(vanished)} the gradients have vanished on their way to the first block (RMS under "
            f"{VANISHED:g}): what is behind it learns letter frequencies and no more."
        )
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
                "final loss without warm-up": {placement: cells[0].final_loss for placement, cells in deep.items()},
                "final loss with warm-up": {placement: cells[-1].final_loss for placement, cells in deep.items()},
                "first block's gradient RMS at the end": {p: _first_gradient(cells[-1]) for p, cells in deep.items()},
            }.items()
        },
        pictures=(_losses(results), _growths(deep)),
    )


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
    for n, (depth, group) in enumerate(depths.items()):
        bars = {
            placement: {f"warm-up {result.label(WARMUP)}": result.capped_loss for result in cells}
            for placement, cells in grouped(group, PLACEMENT).items()
        }
        plots.bars(charts[n], bars, "final loss, nats per token" if n == 0 else "")
        charts[n].set_title(f"{depth} blocks")
    charts[0].set_ylim(bottom=0.8 * min(result.capped_loss for result in results))
    caption = "Final loss by placement of the norms, depth and warm-up; one above the initial loss is shown as that."
    return Picture("final_loss", caption, figure)


def _growths(deep: dict[str, list[Result]]) -> Picture:
    figure, (left, right) = plots.charts(2)
    warmest = {name: group[-1] for name, group in deep.items()}

    def by_block(probe: str) -> dict[str, plots.Line]:
        return {name: (list(range(len(r.by_block(probe)))), r.by_block(probe)) for name, r in warmest.items()}

    plots.draw(left, by_block("residual_rms"), "block", "RMS of the residual stream", log_y=True)
    plots.draw(right, by_block("grad_rms"), "block", "RMS of the gradients", log_y=True, legend=False)
    which = next(iter(warmest.values())).label(WARMUP)
    caption = f"The deepest models at the last probed step (warm-up: {which}), block by block."
    return Picture("blocks", caption, figure)
