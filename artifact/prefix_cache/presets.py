"""Models by name: the paper's, and published hybrids from their public configurations.

A published model's SSM FLOPs follow the paper's formula with its real inner width; its expert layers count the
weights that one token meets (router left out). Recurrent states are in FP32 if the model says so
(`mamba_ssm_dtype` or the serving engines' default for gated delta nets), KV and convolution states in BF16.
"""

from __future__ import annotations

from artifact.prefix_cache.spec import MAMBA_7B, MARCONI_7B, TRANSFORMER_7B, HybridSpec

NEMOTRON_H_8B = HybridSpec(
    "nemotron-h-8b",  # 52 layers: 24 Mamba-2, 24 MLP (squared ReLU), 4 attention; 32 query and 8 KV heads of 128
    num_ssm_layers=24,
    num_attention_layers=4,
    num_mlp_layers=24,
    d_model=4096,
    d_state=128,
    state_bytes_per_element=4,
    query_dim=32 * 128,
    kv_dim=8 * 128,
    d_inner=128 * 64,
    conv_dim=128 * 64 + 2 * 8 * 128,
    mlp_parameters=2 * 4096 * 21504,
)

JAMBA_1_5_MINI = HybridSpec(
    "jamba-1.5-mini",  # 32 layers, each with an MLP: 28 Mamba-1, 4 attention; every second MLP takes 2 of 16 experts
    num_ssm_layers=28,
    num_attention_layers=4,
    num_mlp_layers=32,
    d_model=4096,
    d_state=16,
    state_bytes_per_element=4,
    query_dim=32 * 128,
    kv_dim=8 * 128,
    d_inner=2 * 4096,
    conv_dim=2 * 4096,
    mlp_parameters=3 * 4096 * 14336 * 3 // 2,
)

GRANITE_4_H_SMALL = HybridSpec(
    "granite-4.0-h-small",  # 40 layers, each with 10 of 72 experts and a shared one: 36 Mamba-2, 4 attention
    num_ssm_layers=36,
    num_attention_layers=4,
    num_mlp_layers=40,
    d_model=4096,
    d_state=128,
    state_bytes_per_element=4,
    query_dim=32 * 128,
    kv_dim=8 * 128,
    d_inner=128 * 64,
    conv_dim=128 * 64 + 2 * 128,
    mlp_parameters=3 * 4096 * (10 * 768 + 1536),
)

QWEN3_NEXT_80B_A3B = HybridSpec(
    "qwen3-next-80b-a3b",  # 48 layers, each with 10 of 512 experts and a shared one: 36 gated delta nets, 12 attention
    num_ssm_layers=36,
    num_attention_layers=12,
    num_mlp_layers=48,
    d_model=2048,
    d_state=128,
    state_bytes_per_element=4,
    query_dim=16 * 256,
    kv_dim=2 * 256,
    d_inner=32 * 128,
    conv_dim=2 * 16 * 128 + 32 * 128,
    mlp_parameters=3 * 2048 * (10 * 512 + 512),
)

FALCON_H1_7B = HybridSpec(
    "falcon-h1-7b",  # 44 layers, each with attention and Mamba-2 side by side, and an MLP; 12 query and 2 KV heads
    num_ssm_layers=44,
    num_attention_layers=44,
    num_mlp_layers=44,
    d_model=3072,
    d_state=256,
    state_bytes_per_element=4,
    query_dim=12 * 128,
    kv_dim=2 * 128,
    d_inner=24 * 128,
    conv_dim=24 * 128 + 2 * 256,
    mlp_parameters=3 * 3072 * 12288,
)

PUBLISHED_HYBRIDS = (NEMOTRON_H_8B, JAMBA_1_5_MINI, GRANITE_4_H_SMALL, QWEN3_NEXT_80B_A3B, FALCON_H1_7B)
PRESETS = {spec.name: spec for spec in (MARCONI_7B, TRANSFORMER_7B, MAMBA_7B, *PUBLISHED_HYBRIDS)}
"""HybridSpec by name: the paper's models, then published hybrids."""


def preset(name: str) -> HybridSpec:
    """The preset of that name. Raises: ValueError listing the names."""
    if name not in PRESETS:
        raise ValueError(f"spec must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
