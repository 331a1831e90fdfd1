"""How many FLOPs a training token costs, and how many parameters a model has, in closed form.

Counted are the matrix multiplications: a multiply and an add are two FLOPs, as in Kaplan et al. 2020 (section
2.1) and PaLM (Chowdhery et al. 2022, appendix B). Left out are the embedding lookup (a gather), norms,
softmax, rotary embeddings and activations: together a few percent on small models and less on large ones.

Attention is counted causally: a token multiplies with the keys it may see, not with the half that the mask
hides (PaLM counts all). So model-FLOPs utilisation here is the stricter of the two conventions, and does not
rise when a kernel wastes work on masked blocks. Document masks hide more keys still, by an amount that
depends on the data; they are not subtracted.

XLA's own count sees the body of a scanned layer once and counts masked attention in full; a test compares the
two on an unrolled model, where the difference is known.
"""

from blobjax.config.schema import Conditioning, Model


def flops_per_token(model: Model, seq_len: int) -> float:
    """Training FLOPs for one token: forward, and twice that for backward (one product for the gradient of
    each factor). Recomputed activations (remat) are not model FLOPs and not counted.

    Args:
      model: the transformer's shape.
      seq_len: tokens in one training sequence.
    """
    return 3 * forward_flops_per_token(model, seq_len)


def forward_flops_per_token(model: Model, seq_len: int) -> float:
    """FLOPs of the forward pass for one token, averaged over the positions of a sequence."""
    attention = 2 * 2 * model.n_heads * model.d_head * mean_visible_keys(seq_len, model.sliding_window)
    layer = 2 * (_attention_weights(model) + _mlp_weights(model)) + attention
    output = 2 * model.d_model * model.vocab_size
    return model.n_layers * layer + output


def param_count(model: Model, conditioning: Conditioning, embeddings: bool) -> int:
    """Trained parameters.

    Args:
      model: the transformer's shape.
      conditioning: decides which norms have which parameters.
      embeddings: count the embedding table, and the output projection where it is not tied to it. Without
        them this
        is the N of Kaplan et al. 2020.
    """
    # A gain; layernorm's bias; dyt's bias and slope.
    norm = {"rmsnorm": 1, "layernorm": 2, "dyt": 2}[conditioning.norm] * model.d_model + (conditioning.norm == "dyt")
    in_layer = 2 * len(conditioning.normed & {"input", "output", "stream"})
    around = len(conditioning.normed & {"embedding", "final"})
    qk_norm = 2 * model.d_head if conditioning.qk_norm else 0
    layer = _attention_weights(model) + _mlp_weights(model) + in_layer * norm + qk_norm
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size * model.d_model
    return model.n_layers * layer + around * norm + (tables if embeddings else 0)


def _attention_weights(model: Model) -> int:
    """Weights of the query, key, value and output projections of one layer; there are no biases."""
    return model.d_model * model.d_head * (2 * model.n_heads + 2 * model.n_kv_heads)


def _mlp_weights(model: Model) -> int:
    """Weights of one layer's MLP: in, out, and for gated activations the gate."""
    return (3 if model.gated else 2) * model.d_model * model.d_ff


def mean_visible_keys(seq_len: int, window: int) -> float:
    """Keys a position attends to, itself included, averaged over a sequence: (T + 1) / 2, or less with a window."""
    window = min(window or seq_len, seq_len)
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
