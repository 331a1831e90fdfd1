"""Where norms stand, at several depths, with and without warm-up: what trains, and how the residual stream grows.

Xiong et al. 2020, section 3: with norms after the sum, gradients near the output are large at initialisation and those
of early blocks small, so that training needs a warm-up; with norms before the sublayers they are even, and the stream
grows with depth.
"""

import math

from blobjax.studies import plots
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result, grouped

PLACEMENT, DEPTH, WARMUP = "placement", "depth", "warmup"
PRE, POST, NONE = "pre", "post", "none"

# Nats behind the best cell of the same depth and warm-up from which a cell counts as not trained. A model of nothing
# but letter frequencies is further behind.
BEHIND = 0.5
# RMS of the gradients of the first block below which none reaches it.
VANISHED = 1e-9


def trained(result: Result, best: float) -> bool:
    """Whether a cell ended with a finite loss, near the best."""
    return result.status == "finished" and result.final_loss < best + BEHIND


def analyse(results: list[Result]) -> Finding:
    """Which cells train, the growth of the residual stream, and whether gradients reach the first block."""
    best = min(result.capped_loss for result in results)
    failed = [result for result in results if not trained(result, best)]
    deepest = max(results, key=lambda result: result.cell.config.model.n_layers).label(DEPTH)
    deep = grouped([result for result in results if result.label(DEPTH) == deepest], PLACEMENT)
    growth = {name: max(_growth(result) for result in group) for name, group in deep.items()}
    largest = {name: max(result.flow_of("residual_rms") for result in group) for name, group in deep.items()}
    words = [
        f"{len(failed)} of {len(results)} cells did not train (no finite loss, or over {BEHIND} nats behind the best)"
        + (f": {', '.join(result.cell.name for result in failed)}." if failed else ".")
    ]
    claims = []
    if PRE in deep:
        claims.append(all(trained(result, best) for result in results if result.label(PLACEMENT) == PRE))
        words.append(f"pre {'trains' if claims[-1] else 'does not train'} at every depth, with and without warm-up.")
    if {PRE, POST} <= deep.keys():
        claims.append(growth[PRE] > growth[POST])
        words.append(
            f"Over the {deepest} blocks the RMS of the residual stream grows {growth[PRE]:.2g}-fold with pre, "
            f"{growth[POST]:.2g}-fold with post."
        )
        claims.append(_needs_warmup(deep[POST], best, words))
    vanished = [result.cell.name for result in results if _first_gradient(result) < VANISHED]
    if vanished:
        words.append(
            f"In {', '.join(vanished)} the gradients that reach the first block have vanished (RMS under "
            f"{VANISHED:g}): what is behind it learns letter frequencies and no more."
        )
    if NONE in largest:
        words.append(f"Without norms the residual stream once reached an RMS of {largest[NONE]:,.3g}.")
    return Finding(
        reproduced=verdict(*claims) if claims else None,
        words=tuple(words),
        numbers={
            f"growth_over_{deepest}_blocks": growth,
            f"largest_residual_rms_at_{deepest}_blocks": largest,
            "final_loss": {result.cell.name: result.final_loss for result in results},
            "first_block_gradient_rms": {result.cell.name: _first_gradient(result) for result in results},
        },
        pictures=(_losses(results), _growths(deep)),
    )


def _needs_warmup(post: list[Result], best: float, words: list[str]) -> bool:
    """Whether post trains with the longest warm-up and is worse without any; appends what was found."""
    first, *_, last = sorted(post, key=lambda result: result.cell.config.duration.warmup.amount)
    without, with_it = first.final_loss, last.final_loss
    helps = trained(last, best) and not without < with_it + 0.1
    words.append(
        f"post ends at {without:.3f} nats without warm-up and at {with_it:.3f} with it: "
        + ("it needs the warm-up." if helps else "that warm-up rescues it did not reproduce here.")
    )
    return helps


def _growth(result: Result) -> float:
    """RMS of the residual stream after the last block over that after the first."""
    stream = result.by_block("residual_rms")
    return stream[-1] / stream[0] if stream and stream[0] else math.nan


def _first_gradient(result: Result) -> float:
    gradients = result.by_block("grad_rms")
    return gradients[0] if gradients else math.nan


def _losses(results: list[Result]) -> Picture:
    depths = grouped(results, DEPTH)
    figure, charts = plots.charts(len(depths), share_y=True)
    for n, (depth, group) in enumerate(depths.items()):
        bars = {
            placement: {f"warm-up {result.label(WARMUP)}": result.final_loss for result in cells}
            for placement, cells in grouped(group, PLACEMENT).items()
        }
        plots.bars(charts[n], bars, "final loss, nats per token" if n == 0 else "")
        charts[n].set_title(f"{depth} blocks")
    lowest = min((result.final_loss for result in results if math.isfinite(result.final_loss)), default=0)
    charts[0].set_ylim(bottom=0.8 * lowest)
    return Picture("final_loss", "Final loss by placement of the norms, depth and warm-up.", figure)


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
