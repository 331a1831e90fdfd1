"""The model's keys."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blobjax.config.schema.section import Count, Positive, Section


class RopeScaling(Section):
    """Llama 3's frequency scaling of rotary embeddings (Grattafiori et al. 2024; published with Llama 3.1)."""

    factor: Annotated[float, Field(ge=1)] = 8.0
    """How much longer than originally trained the slow frequencies are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    """Wavelengths beyond original_max_seq_len / this are stretched by the whole factor."""
    high_freq_factor: Annotated[float, Field(gt=0)] = 4.0
    """Wavelengths below original_max_seq_len / this are left alone; between the two, interpolated."""
    original_max_seq_len: Positive = 8192
    """Tokens; the length the unscaled frequencies were trained for."""


class Rope(Section):
    """Rotary position embeddings (Su et al. 2021)."""

    theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the geometric series of wavelengths."""
    scaling: RopeScaling | None = None
    """Llama 3 frequency scaling; none by default."""


class Model(Section):
    """The transformer's shape."""

    vocab_size: Positive = 256
    """Rows of the embedding table; at least the tokenizer's vocabulary. The byte tokenizer has 256."""
    n_layers: Positive = 4
    """Transformer blocks."""
    d_model: Positive = 256
    """Width of the residual stream."""
    n_heads: Positive = 4
    """Query heads."""
    n_kv_heads: Count = 0
    """Key and value heads (grouped-query attention, Ainslie et al. 2023); 0: as many as n_heads."""
    d_head: Count = 0
    """Width of one head; 0: d_model / n_heads."""
    d_ff: Count = 0
    """Hidden width of the MLP; 0: 4 d_model, or 8/3 d_model rounded up to a multiple of 64 for gated activations."""
    activation: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"
    """The MLP's non-linearity; swiglu and geglu are gated (Shazeer 2020), relu2 is squared ReLU (So et al. 2021)."""
    tie_embeddings: bool = True
    """Use the embedding table as the output projection."""
    max_seq_len: Positive = 2048
    """Tokens; the longest sequence the rotary embeddings are set for."""
    rope: Rope = Rope()
    """Rotary position embeddings."""
    sliding_window: Count = 0
    """Tokens each position may look back to, itself included; 0: all of them."""

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: down(f(gate x) ⊙ up x)."""
        return self.activation in ("swiglu", "geglu")

    @property
    def products(self) -> tuple[str, ...]:
        """Paths of all products with weights; that of a block's stands for those of all blocks."""
        attention, mlp = ("query", "key", "value", "out"), ("gate", "up", "down") if self.gated else ("up", "down")
        return (
            *(f"blocks/attention/{name}" for name in attention),
            *(f"blocks/mlp/{name}" for name in mlp),
            "output",
        )

    @model_validator(mode="after")
    def _resolve(self) -> Self:
        divides = self.d_model % self.n_heads == 0
        self._derive(
            n_kv_heads=self.n_kv_heads or self.n_heads,
            d_head=self.d_head or (self.d_model // self.n_heads if divides else 0),
            d_ff=self.d_ff or (-(-self.d_model * 8 // 3 // 64) * 64 if self.gated else 4 * self.d_model),
        )
        return self
