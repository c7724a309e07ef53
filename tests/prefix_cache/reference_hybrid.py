"""A small hybrid decoder, attention and Mamba-2 layers, whose states are handed in and out in the open.

What a prefix leaves behind is one open value for each layer: keys and values that grow with the prefix, or a
convolution window and an SSM state that do not (Marconi, section 2). `forward` takes them, never changes them, and
returns those after its tokens and at any prefix asked for: the checkpoints of Marconi's admission (section 4.1).

Simplifications: weights are random, of a size at which a lost state shows in the logits; no bias but the
convolution's and that of dt, no dropout, one kind of MLP. On a CPU and a GPU alike; see `ssd` for what scans.

Shape legend: B = sequences, L = tokens of a call, M = model dimension, V = vocabulary, Q = query heads,
K = key and value heads, S = tokens so far with those of the call, D = attention head dimension, H = SSM heads,
P = SSM head dimension, G = SSM groups, N = SSM state dimension, W = convolution channels, T = convolution taps,
I = width of all SSM heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from reference_ssd import causal_convolution, ssd
from torch import Tensor, nn
from torch.nn import functional

from artifact.prefix_cache.spec import HybridSpec


@dataclass(frozen=True)
class HybridConfig:
    """Sizes of the decoder. Every layer is a mixer, of the kind named in `layers`, and a gated MLP."""

    layers: tuple[Literal["attention", "recurrent"], ...] = ("recurrent", "recurrent", "attention", "recurrent")
    vocabulary: int = 256
    dim: int = 128
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 16
    expand: int = 2
    ssm_head_dim: int = 32
    num_groups: int = 2
    state_dim: int = 32
    conv_kernel: int = 4
    mlp_dim: int = 256
    chunk_size: int = 64
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for layer in self.layers:
            if layer not in ("attention", "recurrent"):
                raise ValueError(f"layers must be attention or recurrent, got {layer!r}")
        for name, other in (("num_heads", "num_kv_heads"), ("inner_dim", "ssm_head_dim"), ("ssm_heads", "num_groups")):
            whole, part = getattr(self, name), getattr(self, other)
            if whole % part:
                raise ValueError(f"{name} must be a multiple of {other}, got {whole} and {part}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")

    @property
    def inner_dim(self) -> int:
        return self.expand * self.dim

    @property
    def ssm_heads(self) -> int:
        return self.inner_dim // self.ssm_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner_dim + 2 * self.num_groups * self.state_dim

    def spec(self, name: str = "reference-hybrid", *, bytes_per_element: int = 4) -> HybridSpec:
        """What the states cost, for a simulator; SSM states are float32 whatever the weights are."""
        return HybridSpec(
            name,
            num_ssm_layers=self.layers.count("recurrent"),
            num_attention_layers=self.layers.count("attention"),
            num_mlp_layers=len(self.layers),
            d_model=self.dim,
            d_state=self.state_dim,
            conv_kernel=self.conv_kernel,
            expand=self.expand,
            bytes_per_element=bytes_per_element,
            state_bytes_per_element=4,
            query_dim=self.num_heads * self.head_dim,
            kv_dim=self.num_kv_heads * self.head_dim,
            state_width=self.inner_dim,
            conv_dim=self.conv_dim,
            mlp_parameters=3 * self.dim * self.mlp_dim,
        )


@dataclass(frozen=True)
class AttentionState:
    """keys_BKSD, values_BKSD: [B, K, S, D] of every token so far, keys after their rotation"""

    keys_BKSD: Tensor
    values_BKSD: Tensor


@dataclass(frozen=True)
class RecurrentState:
    """window_BWT: [B, W, T], the convolution's last inputs; ssm_BHPN: [B, H, P, N]. Of the prefix as a whole."""

    window_BWT: Tensor
    ssm_BHPN: Tensor


LayerState = AttentionState | RecurrentState
Mixed = tuple[Tensor, LayerState, dict[int, LayerState]]
"""What a layer makes of its input, its state after it, and that after each number of tokens asked for."""


@dataclass(frozen=True)
class HybridState:
    """What `num_tokens` tokens leave behind: a state for each layer."""

    num_tokens: int
    layers: tuple[LayerState, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> HybridState:
        """Every tensor through a function: `clone`, another device, zeros."""
        layers = [
            replace(layer, **{name: function(tensor) for name, tensor in vars(layer).items()}) for layer in self.layers
        ]
        return HybridState(self.num_tokens, tuple(layers))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in vars(layer).values())


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.dim, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x_BLM: Tensor, state: LayerState | None, before: int, offsets: list[int]) -> Mixed:
        config, length = self.config, x_BLM.shape[1]
        heads = self.qkv(x_BLM).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        q_BQLD, k_BKLD, v_BKSD = heads.split([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        place_L = torch.arange(before, before + length, device=x_BLM.device)
        q_BQLD, k_BKSD = (rotate(each, place_L, config.rope_theta) for each in (q_BQLD, k_BKLD))
        if state is not None:
            assert isinstance(state, AttentionState)
            k_BKSD = torch.cat([state.keys_BKSD, k_BKSD], dim=2)
            v_BKSD = torch.cat([state.values_BKSD, v_BKSD], dim=2)
        seen_LS = torch.ones(length, before + length, dtype=torch.bool, device=x_BLM.device).tril(before)
        y_BQLD = functional.scaled_dot_product_attention(q_BQLD, k_BKSD, v_BKSD, attn_mask=seen_LS, enable_gqa=True)
        states: dict[int, LayerState] = {}
        for offset in offsets:
            states[offset] = AttentionState(k_BKSD[:, :, : before + offset], v_BKSD[:, :, : before + offset])
        return self.out(y_BQLD.transpose(1, 2).flatten(2)), AttentionState(k_BKSD, v_BKSD), states


def rotate(x_BQLD: Tensor, place_L: Tensor, theta: float) -> Tensor:
    """Rotary positions: pairs of channels, half the head apart, turned by an angle that grows with the place."""
    half = x_BQLD.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, device=x_BQLD.device, dtype=torch.float32) / half)
    angle = place_L[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    one, other = x_BQLD.float().chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x_BQLD.dtype)


class Mamba2(nn.Module):
    """Projection, short convolution, SSD, gated norm, projection (arXiv 2405.21060, section 7)."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        inner, heads = config.inner_dim, config.ssm_heads
        self.into = nn.Linear(config.dim, inner + config.conv_dim + heads, bias=False)
        self.conv_weight_WT = nn.Parameter(torch.randn(config.conv_dim, config.conv_kernel))
        self.conv_bias_W = nn.Parameter(torch.zeros(config.conv_dim))
        dt_H = torch.exp(torch.empty(heads).uniform_(-6.9, -2.3))  # 0.001 to 0.1
        self.dt_bias_H = nn.Parameter(dt_H + torch.log(-torch.expm1(-dt_H)))  # softplus gives dt again
        self.log_A_H = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D_H = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = nn.Linear(inner, config.dim, bias=False)

    def forward(self, x_BLM: Tensor, state: LayerState | None, before: int, offsets: list[int]) -> Mixed:
        config = self.config
        assert state is None or isinstance(state, RecurrentState)
        window_BWT, ssm_BHPN = (None, None) if state is None else (state.window_BWT, state.ssm_BHPN)
        gate_BLI, x_BLW, dt_BLH = self.into(x_BLM).split([config.inner_dim, config.conv_dim, config.ssm_heads], dim=-1)
        x_BLW, window_BWT, window_at = causal_convolution(
            x_BLW, self.conv_weight_WT, self.conv_bias_W, initial_window=window_BWT, positions=offsets
        )
        shared = config.num_groups * config.state_dim
        x_BLI, B_BLW, C_BLW = functional.silu(x_BLW).split([config.inner_dim, shared, shared], dim=-1)
        x_BLHP = x_BLI.unflatten(-1, (config.ssm_heads, -1))
        B_BLGN, C_BLGN = (each.unflatten(-1, (config.num_groups, -1)) for each in (B_BLW, C_BLW))
        dt_BLH = functional.softplus(dt_BLH.float() + self.dt_bias_H.float())
        A_H = -self.log_A_H.float().exp()
        y_BLHP, ssm_BHPN, ssm_at = ssd(
            *(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, self.D_H),
            initial_states=ssm_BHPN,
            chunk_size=config.chunk_size,
            positions=offsets,
        )
        y_BLM = self.out(self.norm(y_BLHP.flatten(2) * functional.silu(gate_BLI)))
        states: dict[int, LayerState] = {
            offset: RecurrentState(window_at[offset], ssm_at[offset]) for offset in offsets
        }
        return y_BLM, RecurrentState(window_BWT, ssm_BHPN), states


class Block(nn.Module):
    """A mixer and a gated MLP, each behind a norm and beside a residual."""

    def __init__(self, kind: str, config: HybridConfig) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = (nn.RMSNorm(config.dim, eps=1e-5) for _ in range(2))
        self.mixer = Attention(config) if kind == "attention" else Mamba2(config)
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x_BLM: Tensor, state: LayerState | None, before: int, offsets: list[int]) -> Mixed:
        y_BLM, state, states = self.mixer(self.mixer_norm(x_BLM), state, before, offsets)
        x_BLM = x_BLM + y_BLM
        gate, up = self.gate_up(self.mlp_norm(x_BLM)).chunk(2, dim=-1)
        return x_BLM + self.down(functional.silu(gate) * up), state, states


class ReferenceHybrid(nn.Module):
    """The decoder. The same seed gives the same weights on every device; torch's own generator is left as it was."""

    def __init__(self, config: HybridConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(config.vocabulary, config.dim)
            self.blocks = nn.ModuleList(Block(kind, config) for kind in config.layers)
            self.norm = nn.RMSNorm(config.dim, eps=1e-5)
            self.head = nn.Linear(config.dim, config.vocabulary, bias=False)

    @torch.no_grad()
    def forward(
        self, tokens_BL: Tensor, state: HybridState | None = None, positions: Iterable[int] = ()
    ) -> tuple[Tensor, HybridState, dict[int, HybridState]]:
        """Prefill or decode, from nothing or from a state.

        tokens_BL: [B, L], int64, the tokens after those of `state`
        positions: lengths of prefixes, counted from the first token of all, whose states are wanted. Each within this
                   call's tokens: in [state.num_tokens, state.num_tokens + L]

        Returns: logits [B, L, V], the state after the last token, and the state of each prefix asked for, which can be
                 given back as `state`. A prefix's keys and values are views: clone them to keep less than the whole.
        Raises:  ValueError for no tokens, a position outside of this call, or a state of another number of layers
        """
        before, length = (0 if state is None else state.num_tokens), tokens_BL.shape[1]
        if length == 0:
            raise ValueError("tokens must be at least one, got 0")
        if state is not None and len(state.layers) != len(self.blocks):
            raise ValueError(f"state must have {len(self.blocks)} layers, got {len(state.layers)}")
        wanted = list(positions)
        for position in wanted:
            if not before <= position <= before + length:
                raise ValueError(f"positions must be in [{before}, {before + length}], got {position}")
        given = [None] * len(self.blocks) if state is None else state.layers
        x_BLM, offsets = self.embedding(tokens_BL), [position - before for position in wanted]
        after: list[LayerState] = []
        at_offset: list[dict[int, LayerState]] = []
        for block, layer_state in zip(self.blocks, given, strict=True):
            x_BLM, layer_state, states = block(x_BLM, layer_state, before, offsets)
            after.append(layer_state)
            at_offset.append(states)
        checkpoints = {
            before + offset: HybridState(before + offset, tuple(layer[offset] for layer in at_offset))
            for offset in offsets
        }
        return self.head(self.norm(x_BLM)), HybridState(before + length, tuple(after)), checkpoints
