"""A run small enough to train many times over: two layers of width 32 on the embedded corpus."""

from blobjax.config import Config, load

TINY = (
    "model={vocab_size: 256, n_layers: 2, d_model: 32, n_heads: 4, d_ff: 64, activation: swiglu, max_seq_len: 128}",
    "data.seq_len=32",
    "optimizer={name: adamw, learning_rate: 2.0e-3}",
    "duration={length: 12 steps, global_batch_size: 16, warmup: 2 steps}",
    "checkpoint={every: 4 steps, keep: 10}",
    "evaluation={every: 100 steps, sequences: 16, sample_prompt: ''}",
    "logging.every=1 step",
)


def tiny(*overrides: str) -> Config:
    """The laptop config made tiny, then overridden."""
    return load("laptop", [*TINY, *overrides])
