"""Which size is best for a budget of compute, and what that predicts for the next one.

Chinchilla's second approach (parabolas) for the best size, length and loss of each budget, and the third (parametric)
on the same runs beside it. Source: Hoffmann et al. 2022, sections 3.2 and 3.3.
"""

from typing import Any

import numpy as np

from blobjax.config import BadInputError
from blobjax.laws import certainty, fit_file, prediction, text
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.formulas.isoflop import best_of_budgets, settled, valleys
from blobjax.laws.formulas.lowest import Lowest
from blobjax.laws.multiplier import worth
from blobjax.report import plots
from blobjax.studies import noise
from blobjax.studies.analyses import fits
from blobjax.studies.axis import label
from blobjax.studies.finding import Finding, Picture, Prediction, verdict
from blobjax.studies.results import Result

PARABOLAS, PARAMETRIC = "chinchilla-2", "chinchilla-3"
# Exponents of the best size, the published three within it (0.46 to 0.50), that count as about one half.
ABOUT_HALF = (0.4, 0.6)
_UNCHECKED = "no budget has more than three sizes, so no noise is known"


def analyse(results: list[Result]) -> Finding:
    """The best of each budget, its laws, and the loss and size that they predict for the next budget."""
    rows = fits.ends(results)
    numbers: dict[str, Any] = {fits.LOSS: {result.cell.name: row[fits.LOSS] for result, row in rows}}
    laws, words = {}, []
    for name in (PARABOLAS, PARAMETRIC):
        try:
            laws[name] = fits.fit(name, rows)
        except BadInputError as error:
            words.append(f"{name} could not be fitted: {'; '.join(error.problems)}.")
    columns = _columns(rows)
    pictures = [_parabolas(columns)] if columns else []
    if PARABOLAS not in laws:
        return Finding(None, tuple(words), numbers, tuple(pictures), laws)
    content = laws[PARABOLAS]
    best = content["details"]["budgets"]
    refused = [note for note in content["notes"] if note.startswith("budget ")]
    numbers |= {
        f"best_{name}": {f"{C:.3g} FLOPs": value for C, value in zip(best["flops"], best[name], strict=True)}
        for name in ("params", "tokens", "loss")
    }
    exponents = {name: content["parameters"][name] for name in ("a", "b", "gamma")}
    half = fits.inside(exponents["a"], *ABOUT_HALF)
    # Where no budget has more than three sizes, nothing tells the lowest points from noise.
    checked = len(best_of_budgets(columns, Settings()).scatter) > 0
    words = [
        f"The best size grows as the budget to the {fits.with_interval(exponents['a'])}, the best number of tokens as "
        f"the budget to the {fits.with_interval(exponents['b'])}.",
        f"At the largest budget, {best['flops'][-1]:.3g} FLOPs, the best is {best['params'][-1]:,.0f} parameters on "
        f"{best['tokens'][-1]:,.0f} tokens, {best['tokens'][-1] / best['params'][-1]:.0f} for each.",
        noise.claim(
            half,
            "The exponent of the size is about one half.",
            "The exponent of the size is not about one half: not as expected.",
            f"the exponent of the size is about one half, {ABOUT_HALF[0]} to {ABOUT_HALF[1]}",
            fits.doubt(exponents["a"]) if checked else _UNCHECKED,
        ),
        *([] if checked else [noise.cannot_tell("the best size of every budget", _UNCHECKED)]),
        *(noise.cannot_tell("the best size of every budget", each) for each in refused),
        *words,
    ]
    largest = [rows[i] for each in valleys(columns, Settings()) if each.flops == best["flops"][-1] for i in each.group]
    return Finding(
        reproduced=verdict(True if checked and not refused else None, half),
        words=tuple(words),
        numbers=numbers,
        pictures=(*pictures, _growth(content, columns)),
        laws=laws,
        worth={result.cell.name: worth(content, row["flops"], row[fits.LOSS]) for result, row in largest},
        prediction=_next(laws, columns, rows),
    )


def _columns(rows: fits.Ends) -> dict[str, np.ndarray]:
    names = {"flops": "flops", "params": "params", "tokens": "tokens", "loss": fits.LOSS}
    return {ours: np.array([row[theirs] for _, row in rows]) for ours, theirs in names.items()} if rows else {}


def _next(laws: dict[str, dict[str, Any]], x: dict[str, np.ndarray], rows: fits.Ends) -> Prediction:
    """For the budget that follows in the series: its best size, as a model, and what each law says of it."""
    centres = [each.flops for each in valleys(x, Settings())]
    flops = float(f"{centres[-1] ** 2 / centres[-2]:.2g}")
    best = prediction.predict(laws[PARABOLAS], {"flops": flops})
    settings = scaled(rows, best["optimum"]["params"]["value"]) | {"duration.length": f"{label(flops)} flops"}
    params, tokens = best["optimum"]["params"]["value"], best["optimum"]["tokens"]["value"]
    expected = {PARABOLAS: best["loss"]}
    if PARAMETRIC in laws:
        expected[PARAMETRIC] = prediction.predict(laws[PARAMETRIC], {"params": params, "tokens": tokens})["loss"]
    width = settings["model.d_model"]
    what = f"{flops:.3g} FLOPs at the best size, {text.number(params)} parameters (width {width})"
    return Prediction(f"{label(flops)}-flops_{width}", what, settings, expected)


def scaled(rows: fits.Ends, params: float) -> dict[str, Any]:
    """Keys of a model with about so many parameters: the nearest of the cells, made wider or narrower head by head."""
    sizes = [row["params"] for _, row in rows]
    at = int(np.argmin(np.abs(np.log(np.array(sizes) / params))))
    near = rows[at][0].cell
    model = near.config.model
    # Params are a quadratic in the width, nearly a square of it; the tables are the linear part.
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size
    square = (sizes[at] - tables * model.d_model) / model.d_model**2
    width = (-tables + (tables**2 + 4 * square * params) ** 0.5) / (2 * square)
    heads = max(round(width / model.d_head), 1)
    return near.overrides | {
        "model.d_model": heads * model.d_head,
        "model.n_heads": heads,
        "model.d_ff": round(model.d_ff / model.d_model * heads * model.d_head),
    }


def _parabolas(x: dict[str, np.ndarray]) -> Picture:
    """The measured points of each budget, its parabola, and the lowest point where there is one."""
    found = best_of_budgets(x, Settings())
    figure, (axes,) = plots.charts()
    curved = False
    bar = float(np.sqrt(np.mean(found.scatter**2))) if len(found.scatter) else 0.0
    for n, valley in enumerate(valleys(x, Settings())):
        order = valley.group[np.argsort(x["params"][valley.group])]
        size, loss = x["params"][order], x["loss"][order]
        colour = plots.colour(n)
        reach = bar * loss if bar else None
        label = f"{valley.flops:.2g} FLOPs"
        axes.errorbar(size, loss, yerr=reach, fmt=plots.marker(n), color=colour, capsize=3, label=label)
        if isinstance(valley.params, Lowest):
            curved = True
            used = np.log(x["params"][valley.group[valley.params.used]])
            fine = np.linspace(used.min(), used.max(), 100)
            axes.plot(np.exp(fine), valley.params.curve(fine), color=colour, linewidth=1.2)
    axes.plot(found.columns["params"], found.columns["loss"], "*", color="black", markersize=11, label="lowest point")
    ticks = plots.decade_ticks(x["params"].min() / 1.3, x["params"].max() * 1.3)
    plots.draw(axes, {}, "parameters", "held-out loss, nats per token", log_x=True, log_y=True, ticks=ticks)
    axes.legend(frameon=False, fontsize=10)
    caption = "IsoFLOP curves: each colour is one budget, used up by models of several sizes"
    caption += ", and the parabola through those near the lowest point." if curved else "."
    if bar:
        caption += " Error bars: the root mean square distance of these points from their parabolas."
    return Picture("isoflop", caption, figure)


def _growth(content: dict[str, Any], x: dict[str, np.ndarray]) -> Picture:
    """Best size, best number of tokens and loss against the budget, with the fitted laws and their intervals."""
    law = LAWS[PARABOLAS]
    best = content["details"]["budgets"]
    values, draws = fit_file.values(content), fit_file.draws(content)
    spread = _spread(x, content["bootstrap"]["share"]) if len(draws) else {}
    last = best["flops"][-1]
    C = np.geomspace(best["flops"][0] / 1.3, last**2 / best["flops"][-2] * 1.3, 60)
    figure, charts = plots.charts(3)
    named = (("params", "best parameters"), ("tokens", "best tokens"), ("loss", "held-out loss, nats"))
    for n, (name, title) in enumerate(named):
        axes = charts[n]
        if len(draws):
            curves = np.stack([_curve(law, draw, C, name) for draw in draws])
            plots.band(axes, C.tolist(), *certainty.band(curves, content["bootstrap"]["share"]), n)
        axes.plot(C, _curve(law, values, C, name), color=plots.colour(n))
        measured = np.array(best[name])
        errors = None
        if spread:
            ends = np.array([spread[name].get(round(float(np.log(at)), 6), (m, m)) for at, m in
                             zip(best["flops"], measured, strict=True)])  # fmt: skip
            errors = np.abs(ends.T - measured)
        axes.errorbar(best["flops"], measured, yerr=errors, fmt="o", color=plots.colour(n), capsize=3)
        ticks = [float(f"{at:.2g}") for at in (*best["flops"], last**2 / best["flops"][-2])]
        plots.draw(axes, {}, "FLOPs", title, log_x=True, log_y=True, ticks=ticks)
    level = f"{content['settings']['level']:.0%}"
    of_each, of_laws = (f", with {level} intervals from resampled parabolas,", "; bands: their intervals")
    if not spread:
        of_each, of_laws = "", "; there are no intervals"
    caption = (
        f"What is best at each budget{of_each} and the power laws through them, drawn to the next budget{of_laws}."
    )
    return Picture("growth", caption, figure)


def _curve(law: Any, values: np.ndarray, C: np.ndarray, name: str) -> np.ndarray:
    if name == "loss":
        return law.predict(values, {"flops": C})
    return np.array([law.optimum(law, values, float(at), {})[("params", "tokens").index(name)] for at in C])


def _spread(x: dict[str, np.ndarray], within: float) -> dict[str, dict[float, tuple[float, float]]]:
    """Quantity to (rounded log of the budget to where a share of the resampled losses' values lies)."""
    law, rng, settings = LAWS[PARABOLAS], np.random.default_rng(0), settled(x, Settings())
    assert law.resampler is not None
    draw = law.resampler(x, settings)
    found: dict[str, dict[float, list[float]]] = {name: {} for name in ("params", "tokens", "loss")}
    for _ in range(fits.RESAMPLES):
        columns = best_of_budgets(draw(rng), settings).columns
        for i, C in enumerate(columns["flops"]):
            for name, each in found.items():
                each.setdefault(round(float(np.log(C)), 6), []).append(float(columns[name][i]))
    return {
        name: {C: certainty.interval(np.array(those), within) for C, those in each.items()}
        for name, each in found.items()
    }
