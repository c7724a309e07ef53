"""The reference hybrid: a prefix whose states are handed back gives the logits of a prefill from nothing."""

import re
from dataclasses import replace

import pytest
import torch
from reference_hybrid import AttentionState, HybridConfig, RecurrentState, ReferenceHybrid

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-2}
LENGTH = 200
CUTS = [1, 2, 3, 4, 63, 64, 65, 100, 128, 199]
"""Around the convolution's taps, around chunks of 64, and anywhere."""


@pytest.fixture(scope="module")
def model():
    return ReferenceHybrid(HybridConfig(), seed=0)


@pytest.fixture(scope="module")
def tokens_BL():
    return torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cold(model, tokens_BL):
    return model(tokens_BL, positions=CUTS)


def difference(found, expected):
    """The largest, over the largest value expected."""
    return ((found.float() - expected.float()).abs().max() / expected.abs().max()).item()


def tensors(state):
    return [tensor for layer in state.layers for tensor in vars(layer).values()]


@pytest.mark.parametrize("cut", CUTS)
def test_resuming_equals_a_cold_prefill_and_bit_by_bit_the_same_split(model, tokens_BL, cold, cut):
    logits, _, checkpoints = cold
    resumed, end, _ = model(tokens_BL[:, cut:], checkpoints[cut])
    assert difference(resumed, logits[:, cut:]) <= TOLERANCE[torch.float32]
    assert end.num_tokens == LENGTH

    _, prefix, _ = model(tokens_BL[:, :cut])
    stored = prefix.map(torch.clone)
    split, _, _ = model(tokens_BL[:, cut:], prefix)
    restored, _, _ = model(tokens_BL[:, cut:], stored)
    assert torch.equal(restored, split)
    assert all(torch.equal(one, other) for one, other in zip(tensors(prefix), tensors(stored), strict=True))


@pytest.mark.parametrize("cut", CUTS)
def test_a_checkpoint_on_the_way_is_the_state_of_a_run_that_ends_there(model, tokens_BL, cold, cut):
    _, expected, _ = model(tokens_BL[:, :cut])
    found = cold[2][cut]
    assert found.num_tokens == expected.num_tokens == cut
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert one.shape == other.shape
        assert difference(one, other) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("part", ["keys_BKSD", "values_BKSD", "window_BWT", "ssm_BHPN"])
def test_a_part_of_the_state_that_is_lost_shows(model, tokens_BL, cold, part):
    logits, _, checkpoints = cold
    layers = tuple(
        replace(layer, **{part: torch.zeros_like(getattr(layer, part))}) if hasattr(layer, part) else layer
        for layer in checkpoints[100].layers
    )
    resumed, _, _ = model(tokens_BL[:, 100:], replace(checkpoints[100], layers=layers))
    assert difference(resumed, logits[:, 100:]) > 1000 * TOLERANCE[torch.float32]


def test_many_turns_and_tokens_one_by_one_end_where_one_prefill_does(model, tokens_BL, cold):
    logits, end, _ = cold
    state, parts = None, []
    for stop in (1, 50, 114, 190, *range(191, LENGTH + 1)):
        part, state, _ = model(tokens_BL[:, (state.num_tokens if state else 0) : stop], state)
        parts.append(part)
    assert difference(torch.cat(parts, dim=1), logits) <= TOLERANCE[torch.float32]
    for one, other in zip(tensors(state), tensors(end), strict=True):
        assert difference(one, other) <= TOLERANCE[torch.float32]


def test_positions_are_lengths_of_prefixes_also_when_resumed(model, tokens_BL, cold):
    _, _, at = model(tokens_BL[:, 64:], cold[2][64], positions=[128, 64])
    assert list(at) == [128, 64]
    for position in at:
        for one, other in zip(tensors(at[position]), tensors(cold[2][position]), strict=True):
            assert difference(one, other) <= TOLERANCE[torch.float32]


def test_short_types_resume_too_with_ssm_states_in_float32(tokens_BL):
    model = ReferenceHybrid(HybridConfig(), seed=0).bfloat16()
    logits, _, checkpoints = model(tokens_BL, positions=[100])
    assert [tensor.dtype for tensor in tensors(checkpoints[100])][:2] == [torch.bfloat16, torch.float32]
    resumed, _, _ = model(tokens_BL[:, 100:], checkpoints[100])
    assert difference(resumed, logits[:, 100:]) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("length", [1, 100])
def test_states_take_the_bytes_that_the_simulator_reckons(model, tokens_BL, length):
    _, state, _ = model(tokens_BL[:1, :length])
    assert state.nbytes == model.config.spec().sequence_bytes(length)
    for kind, layer in zip(model.config.layers, state.layers, strict=True):
        assert isinstance(layer, AttentionState if kind == "attention" else RecurrentState)


@pytest.mark.parametrize("layers", [("recurrent",) * 2, ("attention",) * 2])
def test_a_model_of_one_kind_of_layer_resumes(tokens_BL, layers):
    model = ReferenceHybrid(HybridConfig(layers=layers), seed=3)
    logits, _, checkpoints = model(tokens_BL, positions=[70])
    assert difference(model(tokens_BL[:, 70:], checkpoints[70])[0], logits[:, 70:]) <= TOLERANCE[torch.float32]


def test_a_seed_gives_the_same_weights_and_leaves_torchs_generator_alone(model):
    before = torch.random.get_rng_state()
    same, other = (ReferenceHybrid(HybridConfig(), seed=seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.head.weight, other.head.weight)


def test_a_wrong_value_is_named(model, tokens_BL, cold):
    state = cold[2][100]
    for call, told in (
        (lambda: model(tokens_BL[:, :0]), "tokens must be at least one, got 0"),
        (lambda: model(tokens_BL, positions=[201]), "positions must be in [0, 200], got 201"),
        (lambda: model(tokens_BL[:, 100:], state, [99]), "positions must be in [100, 200], got 99"),
        (lambda: model(tokens_BL, replace(state, layers=state.layers[1:])), "state must have 4 layers, got 3"),
        (lambda: HybridConfig(layers=("mamba",)), "layers must be attention or recurrent, got 'mamba'"),
        (lambda: HybridConfig(num_kv_heads=3), "num_heads must be a multiple of num_kv_heads, got 8 and 3"),
        (lambda: HybridConfig(head_dim=15), "head_dim must be even, got 15"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_model_on_a_gpu_is_that_on_a_cpu_and_resumes_there(tokens_BL, cold):
    model = ReferenceHybrid(HybridConfig(), seed=0).cuda()
    logits, _, checkpoints = model(tokens_BL.cuda(), positions=CUTS)
    assert difference(logits.cpu(), cold[0]) <= 5e-3, "the kernels multiply in TF32"
    for cut in CUTS:
        moved = checkpoints[cut].map(lambda tensor: tensor.cpu().cuda())
        assert difference(model(tokens_BL[:, cut:].cuda(), moved)[0], logits[:, cut:]) <= 5e-3
