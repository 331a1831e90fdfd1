"""How much the final loss depends on the learning rate (Wortsman et al. 2023, section 2.2).

With loss(η) the final loss at learning rate η, no worse than that at initialisation, and loss* the lowest over all η:

    sensitivity = mean over η of loss(η) - loss*

over learning rates at equal distances on a logarithmic scale. 0: any of them does as well as the best.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blobjax.report import plots
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.results import Result, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axes, and what must be called so on the first.
CONDITIONING, RATE = "conditioning", "learning_rate"
PLAIN, QK_NORM, Z_LOSS = "neither", "qk_norm", "z_loss"

# Training diverged at every scale of the paper where the largest logit passed it (section 3.1.1).
LOGIT_THRESHOLD = 1e4


def sensitivity(results: list[Result]) -> float:
    """The sensitivity over the learning rates of these cells, in nats."""
    losses = [result.capped_loss for result in results]
    return sum(losses) / len(losses) - min(losses)


def analyse(results: list[Result]) -> Finding:
    """Sensitivity, largest attention logit and log Z of each kind of conditioning."""
    groups = grouped(sorted(results, key=_rate), CONDITIONING)
    found = {name: sensitivity(group) for name, group in groups.items()}
    best = {name: min(group, key=lambda result: result.capped_loss) for name, group in groups.items()}
    logits = {name: max(result.flow_of("attention_logit_max") for result in group) for name, group in groups.items()}
    words = ["Sensitivity: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()) + " nats."]
    claims: list[bool | None] = [] if {PLAIN, QK_NORM, Z_LOSS} <= found.keys() else [None]
    for name, what in ((QK_NORM, "QK-norm"), (Z_LOSS, "The z-loss")):
        if name in found and PLAIN in found:
            claims.append(found[name] < found[PLAIN])
            change = f"from {found[PLAIN]:.3f} to {found[name]:.3f}"
            words.append(
                f"{what} lowers it {change}."
                if claims[-1]
                else f"{what} does not lower it ({change}): this part did not reproduce at this size."
            )
    if {PLAIN, QK_NORM} <= groups.keys():
        claims.append(logits[QK_NORM] < logits[PLAIN])
        words.append(
            f"The largest attention logit of any run is {logits[PLAIN]:,.0f} without QK-norm and "
            f"{logits[QK_NORM]:,.0f} with it; {LOGIT_THRESHOLD:,.0f} is where the paper's runs diverged."
        )
    words.append(
        "The best learning rate is "
        + ", ".join(f"{_rate(result):g} for {name} (loss {result.capped_loss:.3f})" for name, result in best.items())
        + "."
    )
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "sensitivity": found,
            "largest_attention_logit": logits,
            "best_learning_rate": {name: _rate(result) for name, result in best.items()},
            "lowest_loss": {name: result.capped_loss for name, result in best.items()},
            "loss_at_initialisation": {name: group[0].initial_loss for name, group in groups.items()},
        },
        pictures=_pictures(groups),
    )


def _rate(result: Result) -> float:
    return result.cell.config.optimizer.learning_rate


def _pictures(groups: dict[str, list[Result]]) -> tuple[Picture, ...]:
    rates = sorted({_rate(result) for group in groups.values() for result in group})

    def against_rate(axes: "Axes", value: Callable[[Result], float], y: str, **how: Any) -> None:
        lines = {name: ([_rate(r) for r in group], [value(r) for r in group]) for name, group in groups.items()}
        plots.draw(axes, lines, "learning rate", y, log_x=True, ticks=rates, **how)

    losses, (axes,) = plots.charts()
    against_rate(axes, lambda result: result.capped_loss, "final loss, nats per token")
    initial = max(result.initial_loss for group in groups.values() for result in group)
    if any(result.capped_loss > 0.8 * initial for group in groups.values() for result in group):
        plots.level(axes, initial, "at initialisation")
    probes, (left, right) = plots.charts(2)
    against_rate(left, lambda result: result.flow_of("attention_logit_max"), "largest attention logit", log_y=True)
    plots.level(left, LOGIT_THRESHOLD, "diverged beyond (paper)")
    against_rate(
        right, lambda result: result.flow_of("log_z_mean", "last"), "mean log Z at the end, nats", legend=False
    )
    return (
        Picture(
            "loss_by_learning_rate",
            "Final loss against learning rate; a run that diverged counts with its loss at initialisation. The flatter "
            "a line, the lower its sensitivity.",
            losses,
        ),
        Picture(
            "logits_by_learning_rate",
            "Left, the largest attention logit of any block at any probed step. Right, the logarithm of the output "
            "softmax's normaliser, which the z-loss keeps near zero.",
            probes,
        ),
    )
