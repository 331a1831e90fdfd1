"""A power law above a floor, in one quantity: x is FLOPs, parameters or tokens.

    L(x) = E + A x^-alpha

Source: Hestness et al. 2017 (section 2, with the irreducible error); Henighan et al. 2020 (equation 1.1).
"""

from functools import partial

import numpy as np

from blobjax.laws.formulas.law import Columns, Law, Parameter, log, log_non_negative, log_sum_exp

SOURCE = "Hestness et al. 2017, section 2; Henighan et al. 2020, equation 1.1"


def _curve(name: str, x: Columns, log_E: np.ndarray, log_A: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return log_sum_exp(log_E, log_A - alpha * log(x, name))


def _starts(name: str, x: Columns) -> np.ndarray:
    exponents = np.geomspace(0.02, 2, 15)
    features = [[np.ones_like(x[name]), x[name] ** -alpha] for alpha in exponents]
    return np.array([[*log_non_negative(f, x["loss"]), a] for f, a in zip(features, exponents, strict=True)])


def _law(name: str, letter: str) -> Law:
    return Law(
        name=f"power-{name}",
        formula=f"L({letter}) = E + A {letter}^-alpha",
        source=SOURCE,
        parameters=(
            Parameter("E", "loss that stays, nats per token", zero=True),
            Parameter("A", f"nats times {name} to the alpha"),
            Parameter("alpha", "exponent", positive=False),
        ),
        curve=partial(_curve, name),
        starts=partial(_starts, name),
        needs=(name,),
        distinct={name: 4},
        future=name,
    )


POWER_FLOPS, POWER_PARAMS, POWER_TOKENS = _law("flops", "C"), _law("params", "N"), _law("tokens", "D")
