"""One dial: a size decides a model's shape, its optimizer's settings, its batch and how long it trains.

Each rule is a line or two with its source. They are rules of thumb: a study measures how well they do (model-ladder),
and any key that is given beside the size wins over them.

Symbols: N parameters without embeddings, L layers, D training tokens, B tokens in a batch, C = 6 N D FLOPs.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from blobjax.config.errors import BadInputError

_SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_PATTERN = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmbt]?)\s*$")
# The smallest that still has two layers of two heads.
_SMALLEST = 5e3
_LARGEST = 1e13

# Width for each layer: 12 layers of 768 in the smallest GPT-3 (Brown et al. 2020, table 2.1). The loss hardly depends
# on it over a wide range about there (Kaplan et al. 2020, section 3.1 and figure 5).
ASPECT = 64
# Tokens for each parameter at the lowest loss for the compute (Hoffmann et al. 2022, table 3: about 20).
TOKENS_PER_PARAM = 20
# Peak learning rate of the base, from which it is carried to every size (docs/studies.md, model-ladder): the best of
# 4e-3, 8e-3 and 1.6e-2 on a model of width 48 that was told to scale from this base.
LEARNING_RATE, BASE_WIDTH, BASE_DEPTH, BASE_D_HEAD = 8e-3, 64, 2, 16


@dataclass(frozen=True)
class Shape:
    """A model's shape.

    Attributes:
      n_layers, d_model, n_heads: as in the config.
    """

    n_layers: int
    d_model: int
    n_heads: int

    @property
    def params(self) -> int:
        """Without embeddings: 4 d² of attention and 8 d² of an MLP of width 4 d (gated: three of width 8/3 d)."""
        return 12 * self.n_layers * self.d_model**2


def parse(size: Any) -> float:
    """The number in `5M`, `100k`, `1.3B` or 125000000.

    Raises:
      BadInputError: it is none, or of no model.
    """
    match = _PATTERN.match(str(size).lower()) if not isinstance(size, bool) else None
    value = float(match[1]) * _SUFFIX[match[2]] if match else math.nan
    if not _SMALLEST <= value <= _LARGEST:
        raise BadInputError(f"size {size!r}: expected parameters such as 100k, 5M or 1.3B, from 5k to 10T")
    return value


def shape(params: float) -> Shape:
    """The shape with about so many parameters, embeddings not counted."""
    # N = 12 L (64 L)². Two layers at least: with one, attention cannot look for what an earlier attention found
    # (Olsson et al. 2022).
    n_layers = max(round((params / (12 * ASPECT**2)) ** (1 / 3)), 2)
    width = math.sqrt(params / (12 * n_layers))
    # Heads of 64 to 128 features where there is room for four of them (Brown et al. 2020, table 2.1), and else smaller.
    d_head = next((d for d in (128, 64, 32, 16) if width >= 4 * d), 8)
    n_heads = max(round(width / d_head), 2)
    return Shape(n_layers, n_heads * d_head, n_heads)


def batch_tokens(params: float, tokens: float) -> float:
    """Tokens in a batch: B = 0.2920 C^0.3271 (DeepSeek-AI 2024, DeepSeek LLM, section 3.1)."""
    return 0.2920 * (6 * params * tokens) ** 0.3271


def weight_decay(steps: float) -> float:
    """AdamW's decay, for steps that shrink weights by learning rate · decay.

    What matters is over which part of the training the weights are an average of their updates: tau = 1 / (learning
    rate · decay · steps) (Wang & Aitchison 2024). The best tau falls with the tokens for each parameter,
    1.084 (D/N)^-0.527 (Bergsma et al. 2025, Power Lines, arXiv:2505.13738).
    """
    tau = 1.084 * TOKENS_PER_PARAM**-0.527
    return 1 / (tau * LEARNING_RATE * steps)


def dial(size: Any, seq_len: int) -> dict[str, Any]:
    """Dotted keys and their values for a model of a size.

    Args:
      size: parameters without embeddings, about: `5M`; widths come in whole heads.
      seq_len: tokens of one training sequence.

    Raises:
      BadInputError: the size is none.
    """
    model = shape(parse(size))
    tokens = TOKENS_PER_PARAM * model.params
    # A power of two, so that any number of devices that is one divides it.
    batch = 2 ** max(round(math.log2(batch_tokens(model.params, tokens) / seq_len)), 0)
    return {
        "model.n_layers": model.n_layers,
        "model.d_model": model.d_model,
        "model.n_heads": model.n_heads,
        # What follows from these three, whatever the file says of another size.
        "model.n_kv_heads": 0,
        "model.d_head": 0,
        "model.d_ff": 0,
        # A table that is both input and output trains badly on wide models under µP (docs/conditioning.md).
        "model.tie_embeddings": False,
        # The learning rate is found once and holds at any width and depth: µP (Yang et al. 2022) with CompleteP's rules
        # for depth (Dey et al. 2025).
        "conditioning.parametrisation": {
            "kind": "completep",
            "base_width": BASE_WIDTH,
            "base_depth": BASE_DEPTH,
            "base_d_head": BASE_D_HEAD,
        },
        "optimizer.name": "adamw",
        "optimizer.learning_rate": LEARNING_RATE,
        # A straight line to zero (Bergsma et al. 2025, Straight to Zero).
        "optimizer.schedule": "linear",
        "optimizer.final_learning_rate_fraction": 0.0,
        "optimizer.weight_decay": float(f"{weight_decay(tokens / (batch * seq_len)):.3g}"),
        "optimizer.weight_decay_mode": "coupled",
        "duration.length": f"{TOKENS_PER_PARAM} tokens/param",
        "duration.warmup": "10%",
        "duration.global_batch_size": batch,
    }
