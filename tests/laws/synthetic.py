"""Points made up from a law and noise."""

import numpy as np

from blobjax.laws import fit_file
from blobjax.laws.formulas import LAWS, Settings
from blobjax.laws.points import Points

# The refit of Chinchilla's figure points by Besiroglu et al. 2024: E, A, B, alpha, beta.
BESIROGLU = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])
# What Hoffmann et al. 2022 published.
PUBLISHED = np.array([1.69, 406.4, 410.7, 0.34, 0.28])


def with_noise(law: str, values, x: dict, noise: float, seed: int = 0) -> dict:
    """The columns and the law's target in them; noise relative to the target, or as it is where the law is not log."""
    rng = np.random.default_rng(seed)
    exact = LAWS[law].predict(np.asarray(values, float), x)
    off = rng.normal(0, noise, exact.shape)
    return {**x, LAWS[law].target: exact * np.exp(off) if LAWS[law].log else exact + off}


def cross(**axes) -> dict:
    """Every combination of the axes' values."""
    values = np.meshgrid(*axes.values(), indexing="ij")
    return {name: each.ravel().astype(float) for name, each in zip(axes, values, strict=True)}


def sizes_and_tokens(sizes: int = 8, lengths: int = 8) -> dict:
    """A square of params and tokens, with their FLOPs."""
    x = cross(params=np.geomspace(2e7, 3e9, sizes), tokens=np.geomspace(4e8, 1e11, lengths))
    return x | {"flops": 6 * x["params"] * x["tokens"]}


def scattered(count: int = 240, seed: int = 0) -> dict:
    """Budgets and sizes spread as in Chinchilla's figure: from 1e18 to 3e21 FLOPs, about 20 tokens per parameter."""
    rng = np.random.default_rng(seed)
    flops = np.exp(rng.uniform(np.log(1e18), np.log(3e21), count))
    params = np.sqrt(flops / 120) * np.exp(rng.normal(0, 0.8, count))
    return {"params": params, "tokens": flops / 6 / params, "flops": flops}


def isoflops(budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes: int = 8, spread: float = 4.0) -> dict:
    """Budgets, each used up by several sizes about the one with 20 tokens per parameter."""
    x = cross(flops=np.array(budgets), off=np.geomspace(1 / spread, spread, sizes))
    params = np.sqrt(x["flops"] / 120) * x["off"]
    return {"params": params, "tokens": x["flops"] / 6 / params, "flops": x["flops"]}


def repeated() -> dict:
    """Sizes and lengths of training on three amounts of data, gone through up to 5000 times."""
    x = cross(
        params=np.geomspace(5e6, 3e9, 6), tokens=np.geomspace(1e8, 5e11, 6), unique_tokens=np.geomspace(1e8, 1e10, 3)
    )
    keep = x["tokens"] >= x["unique_tokens"]
    x = {name: column[keep] for name, column in x.items()}
    return x | {"flops": 6 * x["params"] * x["tokens"]}


def harmful_size() -> dict:
    """Losses that fall with data and rise with size: what a law of both cannot say with coefficients above zero."""
    x = sizes_and_tokens()
    return x | {"loss": 2 + 1e4 * x["tokens"] ** -0.5 + 0.01 * np.log(x["params"])}


def write_csv(path, columns: dict) -> str:
    """The columns as a table; its path."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")
    return str(path)


def made(name: str, columns: dict, **options) -> dict:
    """The content of a fit file, without resamples and from few starts unless it is said otherwise."""
    law = LAWS[name]
    settings = Settings(**{"delta": law.delta, "bootstrap": 0, "starts": 3} | options)
    return fit_file.make(law, Points(columns, {}, [], {}, ()), settings)
