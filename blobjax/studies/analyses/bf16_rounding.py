"""Parameters in bfloat16: what rounding to the nearest loses, and whether other ways of rounding keep it.

An update below half a unit in the last place, 2^-9 of its parameter, is lost by rounding to the nearest (Zamirai et al.
2020, section 3). So the loss should suffer the more, the smaller the learning rate is.
"""

from blobjax.report import plots
from blobjax.studies.analyses.reference import SAME, gap, listed, loss_curves, same
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result, grouped

PARAMETERS, RATE = "parameters", "learning_rate"
REFERENCE, NEAREST = "float32", "nearest"


def analyse(results: list[Result]) -> Finding:
    """Final losses against float32's at each learning rate; the claims are about the smallest."""
    rates = grouped(sorted(results, key=lambda result: result.cell.config.optimizer.learning_rate), RATE)
    by_rate = {rate: {result.label(PARAMETERS): result for result in group} for rate, group in rates.items()}
    gaps = {
        rate: {name: gap(result, cells[REFERENCE]) for name, result in cells.items() if name != REFERENCE}
        for rate, cells in by_rate.items()
    }
    smallest, cells = next(iter(by_rate.items()))
    losses = {name: result.final_loss for name, result in cells.items()}
    words = [f"At the smallest learning rate, {smallest}, the final losses are: {listed(losses)} nats per token."]
    claims: list[bool | None] = [] if NEAREST in cells else [None]
    for name, result in cells.items():
        if name == NEAREST:
            claims.append(gap(result, cells[REFERENCE]) > SAME)
            lost = f"Rounding to the nearest ends {gaps[smallest][name]:.3f} nats above float32"
            words.append(f"{lost}." if claims[-1] else f"{lost}, which is no loss worth the name: not reproduced.")
        elif name != REFERENCE:
            claims.append(same(result, cells[REFERENCE]))
            trained = f"{name} ends {gaps[smallest][name]:+.3f} nats from float32"
            words.append(f"{trained}." if claims[-1] else f"{trained}, more than {SAME}: not reproduced.")
    if len(gaps) > 1:
        largest = list(gaps)[-1]
        words.append(f"At {largest} rounding to the nearest costs {gaps[largest].get(NEAREST, 0):.3f} nats.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={f"final_loss_at_{rate}": {n: r.final_loss for n, r in by_rate[rate].items()} for rate in by_rate}
        | {f"gap_at_{rate}": each for rate, each in gaps.items()}
        | {
            f"update_ratio_at_{smallest}": {
                name: result.flow_of("update_ratio", "last") for name, result in cells.items()
            }
        },
        pictures=(
            loss_curves(cells.values(), PARAMETERS, "loss_curves", "Training loss.", f"learning rate {smallest}"),
            _gaps(gaps),
        ),
    )


def _gaps(gaps: dict[str, dict[str, float]]) -> Picture:
    figure, (axes,) = plots.charts()
    plots.bars(axes, gaps, "final loss above float32's, nats")
    axes.set_xlabel("learning rate")
    return Picture("gaps", "What each way of rounding costs, by learning rate.", figure)
