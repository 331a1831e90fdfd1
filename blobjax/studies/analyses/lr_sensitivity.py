"""How much the final loss depends on the learning rate (Wortsman et al. 2023, section 2.2).

With loss(η) the final loss at learning rate η, no worse than that at initialisation, and loss* the lowest over all η:

    sensitivity = mean over η of loss(η) - loss*

over learning rates at equal distances on a logarithmic scale. 0: any of them does as well as the best. Each seed has
its own; a claim is about their differences.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses.reference import listed
from blobjax.studies.finding import Finding, Picture, verdict
from blobjax.studies.noise import Mean
from blobjax.studies.results import Result, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The axes, and what must be called so on the first.
CONDITIONING, RATE = "conditioning", "learning_rate"
PLAIN, QK_NORM, Z_LOSS = "neither", "qk_norm", "z_loss"

# Training diverged at every scale of the paper where the largest logit passed it (section 3.1.1).
LOGIT_THRESHOLD = 1e4


def sensitivity(results: list[Result]) -> float:
    """The sensitivity over the learning rates of these cells, of one seed, in nats."""
    losses = [result.capped_loss for result in results]
    return sum(losses) / len(losses) - min(losses)


def largest_logit(results: list[Result]) -> float:
    """The largest attention logit of any of these cells at any probed step."""
    return max((result.flow_of("attention_logit_max") for result in results), default=math.nan)


def analyse(results: list[Result]) -> Finding:
    """Sensitivity, largest attention logit and log Z of each kind of conditioning."""
    groups = grouped(sorted(results, key=_rate), CONDITIONING)
    found = _by_kind(results, sensitivity)
    losses = {name: noise.each(group, RATE, lambda result: result.capped_loss) for name, group in groups.items()}
    rates = {name: {result.label(RATE): _rate(result) for result in group} for name, group in groups.items()}
    best = {name: min(each, key=lambda rate: each[rate].mean) for name, each in losses.items()}
    edges = {name: noise.edge_in_a_seed(group, _rate, "learning rate") for name, group in groups.items()}
    logits = _by_kind(results, largest_logit)
    words = [f"Sensitivity: {listed(found)} nats."]
    claims: list[bool | None] = [] if {PLAIN, QK_NORM, Z_LOSS} <= found.keys() else [None]
    for name, what in ((QK_NORM, "QK-norm"), (Z_LOSS, "the z-loss")):
        if not {name, PLAIN} <= found.keys():
            continue
        change = f"from {found[PLAIN].mean:.3f} to {found[name].mean:.3f}"
        less = _less(results, sensitivity, name)
        doubt = next((f"of {each}, {edges[each]}" for each in (PLAIN, name) if edges[each]), "")
        claims.append(None if doubt else less.above(0))
        by = f"by {less.shown()} nats, {change}" if less.known else change
        yes, no = f"{what} lowers it {by}.", f"{what} does not lower it ({change}): this part did not reproduce."
        words.append(noise.claim(claims[-1], _capital(yes), _capital(no), f"{what} lowers it ({change})",
                                 doubt or less.doubt))  # fmt: skip
    words.append(
        f"The largest attention logit of any run of a kind: {listed(logits, ',.0f')}; {LOGIT_THRESHOLD:,.0f} is where "
        "the paper's runs diverged."
    )
    if {PLAIN, QK_NORM} <= groups.keys():
        # Logits span orders of magnitude, so that their ratios have a mean and their differences none.
        lower = _less(results, lambda cells: math.log(max(largest_logit(cells), 1e-30)), QK_NORM)
        claims.append(lower.above(0))
        asked = "QK-norm lowers the largest attention logit"
        yes, no = "QK-norm lowers the largest logit.", "QK-norm does not lower the largest logit: not as expected."
        words.append(noise.claim(claims[-1], yes, no, asked, lower.doubt))
    words.append(
        "The best learning rate is "
        + ", ".join(f"{rates[name][rate]:g} for {name} (loss {losses[name][rate].shown()})"
                    for name, rate in best.items())
        + "."
    )  # fmt: skip
    return Finding(
        reproduced=verdict(*claims),
        words=tuple(words),
        numbers={
            "sensitivity": found,
            "largest_attention_logit": logits,
            "best_learning_rate": {name: rates[name][rate] for name, rate in best.items()},
            "lowest_loss": {name: losses[name][rate] for name, rate in best.items()},
            "loss_at_initialisation": _by_kind(results, lambda cells: cells[0].initial_loss),
        },
        pictures=_pictures(groups),
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _by_kind(results: list[Result], measure: Callable[[list[Result]], float]) -> dict[str, Mean]:
    return noise.across(
        results, lambda cells: {name: measure(group) for name, group in grouped(cells, CONDITIONING).items()}
    )


def _less(results: list[Result], measure: Callable[[list[Result]], float], name: str) -> Mean:
    """By how much a kind has less of something than the plain one, compared within each seed."""

    def less(cells: list[Result]) -> dict[str, float]:
        groups = grouped(cells, CONDITIONING)
        return {name: measure(groups[PLAIN]) - measure(groups[name])} if {PLAIN, name} <= groups.keys() else {}

    return noise.across(results, less).get(name, noise.mean_of([]))


def _rate(result: Result) -> float:
    return result.cell.config.optimizer.learning_rate


def _pictures(groups: dict[str, list[Result]]) -> tuple[Picture, ...]:
    rates = sorted({_rate(result) for group in groups.values() for result in group})

    def against_rate(axes: "Axes", value: Callable[[Result], float], y: str, **how: Any) -> list[Mean]:
        found = {name: noise.across(group, lambda cells: {_rate(r): value(r) for r in cells})
                 for name, group in groups.items()}  # fmt: skip
        lines = {name: (list(each), [mean.mean for mean in each.values()]) for name, each in found.items()}
        plots.draw(axes, lines, "learning rate", y, log_x=True, ticks=rates, **how)
        for n, each in enumerate(found.values()):
            noise.error_bars(axes, list(each), list(each.values()), n)
        return [mean for each in found.values() for mean in each.values()]

    losses, (axes,) = plots.charts()
    drawn = against_rate(axes, lambda result: result.capped_loss, "final loss, nats per token")
    initial = max(result.initial_loss for group in groups.values() for result in group)
    if any(result.capped_loss > 0.8 * initial for group in groups.values() for result in group):
        plots.level(axes, initial, "at initialisation")
    probes, (left, right) = plots.charts(2)
    probed = against_rate(left, lambda result: result.flow_of("attention_logit_max"), "largest attention logit",
                          log_y=True)  # fmt: skip
    plots.level(left, LOGIT_THRESHOLD, "diverged beyond (paper)")
    probed += against_rate(
        right, lambda result: result.flow_of("log_z_mean", "last"), "mean log Z at the end, nats", legend=False
    )
    return (
        Picture(
            "loss_by_learning_rate",
            "Final loss against learning rate; a run that diverged counts with its loss at initialisation. The flatter "
            f"a line, the lower its sensitivity.{noise.caption(drawn)}",
            losses,
        ),
        Picture(
            "logits_by_learning_rate",
            "Left, the largest attention logit of any block at any probed step, the mean over the seeds. Right, the "
            "logarithm of the output softmax's normaliser, which the z-loss pulls towards zero."
            + noise.caption(probed),
            probes,
        ),
    )
