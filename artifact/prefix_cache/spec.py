"""Bytes and FLOPs of a hybrid model's layers (Marconi, section 2 and appendix A; table 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


class Costs(NamedTuple):
    """A spec's formulas as the coefficients that the compiled cache works with (all integers).

    FLOPs of one layer for L tokens: ssm_flops * L, attention_flops * L + attention_flops_squared * L**2 and
    mlp_flops * L. Bytes are sums over all layers.
    """

    num_ssm_layers: int
    num_attention_layers: int
    num_mlp_layers: int
    ssm_flops: int
    attention_flops: int
    attention_flops_squared: int
    mlp_flops: int
    checkpoint_bytes: int
    token_bytes: int


@dataclass(frozen=True)
class HybridSpec:
    """The bytes and FLOPs of a model of attention, MLP and recurrent (SSM) layers.

    The defaults of the optional fields give the paper's formulas: attention over the whole model width, an MLP
    of four times the width, a recurrent state of `d_model * d_state` elements in the KV's precision. The
    published presets set them from the models' configurations: grouped-query attention (`kv_dim`), real widths
    of the recurrent layers (`d_inner`), their convolution channels (`conv_dim`), the precision of the recurrent
    state, and the active width of gated or sparse MLPs (`mlp_parameters`: weights a token meets in one layer).

    The paper's state has `d_model * d_state` elements although its layers expand the width by `expand`; with `d_inner`
    it has `d_inner * d_state`, as in real Mamba-2, unless `state_width` says otherwise.
    """

    name: str
    num_ssm_layers: int
    num_attention_layers: int
    num_mlp_layers: int
    d_model: int
    d_state: int
    conv_kernel: int = 4
    expand: int = 2
    bytes_per_element: int = 2
    state_bytes_per_element: int | None = None
    query_dim: int | None = None
    kv_dim: int | None = None
    d_inner: int | None = None
    state_width: int | None = None
    conv_dim: int | None = None
    mlp_parameters: int | None = None
    logits_bytes: int = 0
    """Logits after a checkpoint's last token, kept with it: a prefix cached whole then needs no forward pass."""

    def __post_init__(self) -> None:
        for field in ("num_ssm_layers", "num_attention_layers", "num_mlp_layers", "logits_bytes"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if self.num_ssm_layers + self.num_attention_layers == 0:
            raise ValueError(f"{self.name} must have a layer with a state, got no SSM and no attention layer")
        for field in ("d_model", "d_state", "conv_kernel", "expand", "bytes_per_element"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")

    # bytes ---------------------------------------------------------------------------------------------------
    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all attention layers."""
        kv_dim = self.d_model if self.kv_dim is None else self.kv_dim
        return self.num_attention_layers * 2 * kv_dim * self.bytes_per_element

    @property
    def recurrent_state_bytes(self) -> int:
        """The SSM state of one recurrent layer."""
        width = self.d_inner if self.state_width is None else self.state_width
        return (
            (self.d_model if width is None else width)
            * self.d_state
            * (self.state_bytes_per_element or self.bytes_per_element)
        )

    @property
    def convolution_state_bytes(self) -> int:
        """The convolution's window of one recurrent layer."""
        conv_dim = self._d_inner + 2 * self.d_state if self.conv_dim is None else self.conv_dim
        return conv_dim * self.conv_kernel * self.bytes_per_element

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint, whatever the prefix's length: convolution and SSM state of every recurrent layer, logits."""
        return self.num_ssm_layers * (self.recurrent_state_bytes + self.convolution_state_bytes) + self.logits_bytes

    def kv_bytes(self, num_tokens: int) -> int:
        """Keys and values of `num_tokens` tokens over all attention layers."""
        return num_tokens * self.kv_bytes_per_token

    def sequence_bytes(self, num_tokens: int, *, block_size: int | None = None) -> int:
        """States of one cached sequence: its KV, and one checkpoint, or one for each full block (figure 3b)."""
        checkpoints = 1 if block_size is None else num_tokens // block_size
        return self.kv_bytes(num_tokens) + checkpoints * self.checkpoint_bytes

    # FLOPs, forward only, one layer -----------------------------------------------------------------------------
    @property
    def _d_inner(self) -> int:
        return self.expand * self.d_model if self.d_inner is None else self.d_inner

    @property
    def _query_dim(self) -> int:
        return self.d_model if self.query_dim is None else self.query_dim

    @property
    def _attention_flops_per_token(self) -> int:
        kv_dim = self.d_model if self.kv_dim is None else self.kv_dim
        return 4 * self.d_model * (self._query_dim + kv_dim)

    @property
    def _ssm_flops_per_token(self) -> int:
        return self._d_inner * (6 * self.d_model + 8 * self.d_state + 5)

    @property
    def _mlp_flops_per_token(self) -> int:
        return 2 * (8 * self.d_model**2 if self.mlp_parameters is None else self.mlp_parameters)

    def attention_layer_flops(self, num_tokens: int) -> int:
        """8 L D^2 + 4 L^2 D for the paper's model: projections, scores and their product with the values."""
        return num_tokens * self._attention_flops_per_token + 4 * num_tokens**2 * self._query_dim

    def ssm_layer_flops(self, num_tokens: int) -> int:
        """12 L D^2 + 16 L D N + 10 L D for the paper's model."""
        return num_tokens * self._ssm_flops_per_token

    def mlp_layer_flops(self, num_tokens: int) -> int:
        """16 L D^2 for the paper's model."""
        return num_tokens * self._mlp_flops_per_token

    def prefill_flops(self, num_tokens: int) -> int:
        """All layers' FLOPs to prefill `num_tokens` tokens from nothing: what a hit of that length saves."""
        return (
            self.num_ssm_layers * self.ssm_layer_flops(num_tokens)
            + self.num_attention_layers * self.attention_layer_flops(num_tokens)
            + self.num_mlp_layers * self.mlp_layer_flops(num_tokens)
        )

    def flops_saved(self, hit_tokens: Iterable[int]) -> int:
        """FLOPs that hits of these lengths save."""
        return sum(self.prefill_flops(int(hit)) for hit in hit_tokens)

    def flops_per_byte(self, num_tokens: int) -> float:
        """FLOPs saved by caching a whole sequence over the bytes of its states (figure 5)."""
        return self.prefill_flops(num_tokens) / self.sequence_bytes(num_tokens)

    def costs(self) -> Costs:
        """The coefficients for the compiled cache."""
        return Costs(
            self.num_ssm_layers,
            self.num_attention_layers,
            self.num_mlp_layers,
            self._ssm_flops_per_token,
            self._attention_flops_per_token,
            4 * self._query_dim,
            self._mlp_flops_per_token,
            self.checkpoint_bytes,
            self.kv_bytes_per_token,
        )

    def with_layers(self, num_ssm: int, num_attention: int, num_mlp: int | None = None) -> HybridSpec:
        """The same widths with another composition of layers (figure 12a)."""
        mlp = self.num_mlp_layers if num_mlp is None else num_mlp
        layers = {"num_ssm_layers": num_ssm, "num_attention_layers": num_attention, "num_mlp_layers": mlp}
        return replace(self, name=f"{self.name}-{num_ssm}-{num_attention}-{mlp}", **layers)

    def with_state_dim(self, d_state: int) -> HybridSpec:
        """The same layers with another state dimension (figure 12b)."""
        return replace(self, name=f"{self.name}-n{d_state}", d_state=d_state)


MARCONI_7B = HybridSpec("marconi-7b", 24, 4, 28, d_model=4096, d_state=128)
"""The paper's default: NVIDIA's Mamba-2 hybrid of 7 billion parameters (arXiv 2406.07887), FP16."""

TRANSFORMER_7B = HybridSpec("transformer-7b", 0, 32, 32, d_model=4096, d_state=128)
"""A Transformer of the same width: no checkpoint, KV in every layer (figures 3b and 5)."""

MAMBA_7B = HybridSpec("mamba-7b", 64, 0, 0, d_model=4096, d_state=128)
"""Recurrent layers alone (figure 5)."""
