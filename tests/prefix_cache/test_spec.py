"""Bytes and FLOPs against numbers worked by hand, and the presets against their public configurations."""

import pytest

from artifact.prefix_cache.presets import PRESETS, PUBLISHED_HYBRIDS, preset
from artifact.prefix_cache.spec import MARCONI_7B, TRANSFORMER_7B, HybridSpec


def test_the_papers_model_has_the_papers_bytes():
    assert MARCONI_7B.kv_bytes_per_token == 65_536
    assert MARCONI_7B.recurrent_state_bytes == 1_048_576
    assert MARCONI_7B.convolution_state_bytes == 67_584
    assert MARCONI_7B.checkpoint_bytes == 26_787_840
    assert MARCONI_7B.sequence_bytes(32, block_size=32) == 28_884_992
    share = MARCONI_7B.convolution_state_bytes * 24 / MARCONI_7B.checkpoint_bytes
    assert round(100 * share, 1) == 6.1


def test_block_checkpoints_of_ten_thousand_tokens_take_the_papers_bytes():
    hybrid = MARCONI_7B.sequence_bytes(10_000, block_size=16)
    assert round(hybrid / 1e9, 1) == 17.4
    assert round(hybrid / TRANSFORMER_7B.sequence_bytes(10_000), 1) == 3.3


@pytest.mark.parametrize("length", [1, 7, 4096])
def test_flops_follow_the_papers_table(length):
    d, n = 4096, 128
    assert MARCONI_7B.attention_layer_flops(length) == 8 * length * d**2 + 4 * length**2 * d
    assert MARCONI_7B.mlp_layer_flops(length) == 16 * length * d**2
    assert MARCONI_7B.ssm_layer_flops(length) == 12 * length * d**2 + 16 * length * d * n + 10 * length * d


def test_flops_saved_is_the_sum_of_the_prefills_that_are_not_done():
    assert MARCONI_7B.flops_saved([0, 10, 20]) == MARCONI_7B.prefill_flops(10) + MARCONI_7B.prefill_flops(20)


@pytest.mark.parametrize("spec", PUBLISHED_HYBRIDS, ids=lambda spec: spec.name)
def test_a_published_model_caches_less_kv_and_larger_states_than_the_papers(spec):
    assert spec.kv_bytes_per_token < MARCONI_7B.kv_bytes_per_token
    assert spec.checkpoint_bytes / spec.kv_bytes_per_token > MARCONI_7B.checkpoint_bytes / 65_536 / 2


def test_presets_have_the_sizes_of_their_configurations():
    nemotron, jamba = preset("nemotron-h-8b"), preset("jamba-1.5-mini")
    assert nemotron.kv_bytes_per_token == 4 * 2 * 8 * 128 * 2
    assert nemotron.recurrent_state_bytes == 128 * 64 * 128 * 4
    assert nemotron.convolution_state_bytes == (8192 + 2 * 8 * 128) * 4 * 2
    assert jamba.recurrent_state_bytes == 8192 * 16 * 4
    assert preset("qwen3-next-80b-a3b").recurrent_state_bytes == 32 * 128 * 128 * 4
    assert preset("falcon-h1-7b").kv_bytes_per_token == 44 * 2 * 2 * 128 * 2
    assert preset("granite-4.0-h-small").recurrent_state_bytes == 128 * 64 * 128 * 4


def test_a_preset_is_known_by_its_name_and_another_name_is_refused():
    assert all(preset(name).name == name for name in PRESETS)
    with pytest.raises(ValueError, match=r"spec must be one of marconi-7b, .*got 'gpt-4'"):
        preset("gpt-4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ssm_layers": -1}, "num_ssm_layers must not be negative, got -1"),
        ({"num_ssm_layers": 0, "num_attention_layers": 0}, "must have a layer with a state"),
        ({"d_state": 0}, "d_state must be positive, got 0"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, message):
    fields = {"num_ssm_layers": 1, "num_attention_layers": 1, "num_mlp_layers": 0, "d_model": 8, "d_state": 2}
    with pytest.raises(ValueError, match=message):
        HybridSpec("x", **{**fields, **change})
