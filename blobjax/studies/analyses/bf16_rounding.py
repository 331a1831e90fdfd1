"""Parameters in bfloat16: what rounding to the nearest loses, and whether other ways of rounding keep it.

An update below half a unit in the last place, 2^-9 of its parameter, is lost by rounding to the nearest (Zamirai et al.
2020, section 3). So the loss should suffer the more, the smaller the learning rate is.
"""

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses.reference import SAME, gaps, listed, loss_curves
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

PARAMETERS, RATE = "parameters", "learning_rate"
REFERENCE, NEAREST = "float32", "nearest"


def analyse(results: list[Result]) -> Finding:
    """Final losses against float32's at each learning rate; the claims are about the smallest."""
    by_rate = grouped(sorted(results, key=lambda result: result.cell.config.optimizer.learning_rate), RATE)
    above = {rate: gaps(cells, PARAMETERS, REFERENCE) for rate, cells in by_rate.items()}
    losses = {rate: noise.each(cells, PARAMETERS, lambda result: result.final_loss) for rate, cells in by_rate.items()}
    smallest, cells = next(iter(by_rate.items()))
    words = [f"At the smallest learning rate, {smallest}, the final losses are: {listed(losses[smallest])} nats per "
             "token."]  # fmt: skip
    claims: list[bool | None] = [] if NEAREST in above[smallest] else [None]
    for name, more in above[smallest].items():
        if name == NEAREST:
            claims.append(more.above(SAME))
            lost = f"Rounding to the nearest ends {more.shown()} nats above float32"
            no = f"{lost}, which is no loss worth the name: not reproduced."
            asked = f"rounding to the nearest ends more than {SAME} nats above float32 ({more.shown()})"
            words.append(noise.claim(claims[-1], f"{lost}.", no, asked, more.doubt))
        else:
            claims.append(more.within(SAME))
            trained = f"{name} ends {more.shown('+.3f')} nats from float32"
            no = f"{trained}, more than {SAME}: not reproduced."
            asked = f"{name} ends within {SAME} nats of float32 ({more.shown('+.3f')})"
            words.append(noise.claim(claims[-1], f"{trained}.", no, asked, more.doubt))
    largest = list(above)[-1]
    if largest != smallest and NEAREST in above[largest]:
        words.append(f"At {largest} rounding to the nearest costs {above[largest][NEAREST].shown()} nats.")
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={f"final_loss_at_{rate}": each for rate, each in losses.items()}
        | {f"gap_at_{rate}": each for rate, each in above.items()}
        | {
            f"update_ratio_at_{smallest}": noise.each(
                cells, PARAMETERS, lambda result: result.flow_of("update_ratio", "last")
            )
        },
        pictures=(
            loss_curves(cells, PARAMETERS, "loss_curves", "Training loss.", f"learning rate {smallest}"),
            _gaps(above),
        ),
    )


def _gaps(above: dict[str, dict[str, Mean]]) -> Picture:
    figure, (axes,) = plots.charts()
    noise.bars(axes, above, "final loss above float32's, nats")
    axes.set_xlabel("learning rate")
    means = [more for each in above.values() for more in each.values()]
    return Picture("gaps", f"What each way of rounding costs, by learning rate.{noise.caption(means)}", figure)
