"""States taken out of a model and put back: exact, never aliased, and each class resumed in a way that is right."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from transformers import cache_utils

from artifact.prefix_cache.serving.hybrid_models import TINY, build_model
from artifact.prefix_cache.serving.model_states import ModelStates, Tolerance

torch.set_num_threads(1)

WAYS = dict.fromkeys(TINY, "direct") | {"bamba-tiny": "position_ids", "jamba-tiny": "carried state"}
SEQUENCES, SPLITS = 20, 10  # 200 cases a class


@pytest.fixture(scope="module")
def states_by_name():
    """Each model once."""
    return {name: ModelStates(build_model(name, device="cpu")) for name in TINY}


@pytest.fixture(params=TINY)
def states(request, states_by_name):
    return states_by_name[request.param]


def random_tokens(seed, length, vocab_size=1024):
    return np.random.default_rng(seed).integers(vocab_size, size=length)


def after(states, tokens):
    running = states.start()
    states.run(running, tokens)
    return running


def taken(states, running, boundaries=()):
    """Segments between the boundaries, and the checkpoint."""
    edges = [0, *boundaries, running.length]
    segments = [states.kv(running, start, stop) for start, stop in pairwise(edges)]
    return segments, states.checkpoint(running), running.length


def without_recurrence(states, checkpoint):
    """The checkpoint with its recurrent states at zero: the convolutions' where a class has no other."""
    kinds = [slot.kind for slot in states._slots]
    lost = "recurrent" if "recurrent" in kinds else "conv"
    zeroed = [
        torch.zeros_like(state) if kind == lost else state for kind, state in zip(kinds, checkpoint, strict=False)
    ]
    return [*zeroed, checkpoint[-1]]


def all_tensors(segments, checkpoint):
    return [tensor for segment in segments for tensor in segment] + checkpoint


def memory_of(running):
    """Where every tensor of a running sequence lies."""
    tensors = [running.logits]
    for layer in running.cache.layers:
        tensors += [getattr(layer, name, None) for name in ("keys", "values")]
        for name in ("conv_states", "recurrent_states"):
            tensors += getattr(layer, name, {}).values()
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None}


@pytest.mark.parametrize("name", TINY)
def test_two_hundred_random_splits_equal_a_cold_prefill(states_by_name, name):
    """At most 1e-5 in float32, and bit-equal to the same split computed cold; a lost state is far outside."""
    states, rng = states_by_name[name], np.random.default_rng(TINY.index(name))
    largest, controls = 0.0, []
    for _ in range(SEQUENCES):
        tokens = rng.integers(1024, size=rng.integers(20, 121))
        cold = states.run(states.start(), tokens, all_logits=True)
        for case, boundary in enumerate(rng.integers(1, len(tokens), size=SPLITS).tolist()):
            suffix = slice(boundary, rng.integers(boundary, len(tokens)) + 1)
            same_split = after(states, tokens[:boundary])
            segments, checkpoint, length = taken(states, same_split, [boundary // 2])
            running = states.restore(segments, checkpoint, length)
            found = states.run(running, tokens[suffix], all_logits=True)
            largest = max(largest, float((found - cold[suffix]).abs().max()))
            assert running.length == suffix.stop
            assert torch.equal(running.logits, found[-1])
            if case % 5 == 0:
                assert torch.equal(found, states.run(same_split, tokens[suffix], all_logits=True))
        zeroed = states.restore(segments, without_recurrence(states, checkpoint), length)
        wrong = states.run(zeroed, tokens[boundary:], all_logits=True)
        controls.append(float((wrong - cold[boundary:]).abs().max()))
    assert largest <= 1e-5
    assert min(controls) > 1e-3


def test_each_class_is_resumed_in_the_first_way_that_is_right(states_by_name):
    assert {name: states.resume for name, states in states_by_name.items()} == WAYS
    bamba, jamba = states_by_name["bamba-tiny"], states_by_name["jamba-tiny"]
    assert bamba.differences["direct"] > 1e-3 > 1e-5 >= bamba.differences["position_ids"]
    assert min(jamba.differences["direct"], jamba.differences["position_ids"]) > 1e-3
    assert jamba.differences["carried state"] <= 1e-5
    assert "in one call" in bamba.resume_reason and "with explicit position_ids" in bamba.resume_reason
    assert "carried past the scan (tolerance 1e-05)" in jamba.resume_reason


def test_without_the_scans_function_jamba_goes_token_by_token(monkeypatch, states_by_name):
    monkeypatch.setattr("artifact.prefix_cache.serving.model_states.has_selective_scan", lambda model: False)
    states = ModelStates(states_by_name["jamba-tiny"].model)
    assert states.resume == "token by token"
    tokens = random_tokens(5, 60)
    cold = states.run(states.start(), tokens, all_logits=True)
    restored = states.restore(*taken(states, after(states, tokens[:40])))
    last = states.run(restored, tokens[40:])
    assert last.shape == (1024,) and float((last - cold[-1]).abs().max()) <= 1e-5
    restored = states.restore(*taken(states, after(states, tokens[:40])))
    assert float((states.run(restored, tokens[40:], all_logits=True) - cold[40:]).abs().max()) <= 1e-5


def test_the_scan_of_a_class_is_put_back_even_after_an_error(states_by_name):
    states = states_by_name["jamba-tiny"]
    module = transformers.models.jamba.modeling_jamba
    scan = module.mamba_selective_scan
    running = after(states, range(5))
    with pytest.raises(IndexError):
        states.run(running, [1, 2, 5000])
    assert module.mamba_selective_scan is scan
    states.run(after(states, range(5)), range(4))
    assert module.mamba_selective_scan is scan


def test_a_model_that_loses_its_states_is_refused(monkeypatch):
    def lose(layer, state, index=0, **options):
        layer.lazy_initialization(recurrent_states=state, state_idx=index)
        return layer.recurrent_states[index]

    monkeypatch.setattr(cache_utils.LinearAttentionLayer, "update_recurrent_state", lose)
    with pytest.raises(ValueError, match=r"^GraniteMoeHybridForCausalLM does not resume .* by \d\.\de[-+]\d\d in"):
        ModelStates(build_model("granite-tiny", device="cpu"))


def test_a_sliding_window_is_refused():
    config = transformers.MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        sliding_window=8,
    )
    with pytest.raises(ValueError, match="layer 0 must keep full states, got a DynamicSlidingWindowLayer"):
        ModelStates(transformers.MistralForCausalLM(config).eval())


def test_a_model_without_recurrent_states_in_its_cache_is_refused():
    """Attention alone has nothing to lose; Mamba keeps its states in a cache that it takes under another name."""
    llama = {"num_attention_heads": 2, "intermediate_size": 16}
    for name, own in (("Llama", llama), ("Mamba", {"state_size": 4})):
        config = getattr(transformers, f"{name}Config")(vocab_size=64, hidden_size=16, num_hidden_layers=1, **own)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        with pytest.raises(ValueError, match=f"must keep recurrent states in its cache, {name}ForCausalLM keeps none"):
            ModelStates(model)


def test_what_is_stored_never_changes_and_is_never_shared(states):
    tokens = random_tokens(1, 50)
    running = after(states, tokens[:30])
    segments, checkpoint, length = taken(states, running, [7, 21])
    stored = all_tensors(segments, checkpoint)
    before = [tensor.clone() for tensor in stored]
    assert all(tensor.is_contiguous() for tensor in stored)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in stored)
    places = {tensor.untyped_storage().data_ptr() for tensor in stored}
    assert not places & memory_of(running)

    results = []
    for _ in range(2):  # restored twice, decoded in between
        restored = states.restore(segments, checkpoint, length)
        assert not places & memory_of(restored)
        for token in tokens[30:35]:
            states.run(restored, [token])
        results.append(states.run(restored, tokens[35:]).clone())
        restored.logits.zero_()
        states.kv(restored, 0, 5)[0].zero_()
        states.checkpoint(restored)[0].zero_()
    assert torch.equal(*results)
    assert all(torch.equal(one, other) for one, other in zip(stored, before, strict=True))

    for tensor in stored:  # and the other way: a restored sequence outlives what it came from
        tensor.fill_(float("nan"))
    assert torch.isfinite(states.run(restored, [1])).all()


def test_states_of_a_resumed_sequence_continue_those_of_the_first(states):
    """KV of [30, 50) read after a restore joins that of [0, 30) to what a cold prefill holds."""
    tokens = random_tokens(2, 70)
    prefix = after(states, tokens[:30])
    stored = taken(states, prefix)
    restored = states.restore(*stored)
    states.run(restored, tokens[30:50])
    second = [stored[0][0], states.kv(restored, 30, 50)]
    again = states.restore(second, states.checkpoint(restored), 50)
    states.run(prefix, tokens[30:50])
    expected = states.run(prefix, tokens[50:], all_logits=True)
    assert torch.equal(states.run(again, tokens[50:], all_logits=True), expected)


def test_kv_has_the_tokens_that_are_asked_for(states):
    running = after(states, range(20))
    whole, part, nothing = (states.kv(running, *span) for span in ((0, 20), (4, 9), (20, 20)))
    assert len(whole) == 2 * len(states._attention)
    assert all(torch.equal(some, every[:, 4:9]) for some, every in zip(part, whole, strict=True))
    at_the_start = states.kv(states.start(), 0, 0)
    for none, empty, every in zip(nothing, at_the_start, whole, strict=True):
        assert none.shape == empty.shape == (every.shape[0], 0, every.shape[2])
        assert empty.dtype == every.dtype


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, lambda x: np.asarray(x, dtype=np.uint16)])
def test_tokens_may_be_a_list_an_array_or_a_tensor(states_by_name, kind):
    states = states_by_name["lfm2-tiny"]
    expected = states.run(states.start(), [3, 1, 4])
    tokens = kind([3, 1, 4])
    if isinstance(tokens, np.ndarray):
        tokens.flags.writeable = False
    assert torch.equal(states.run(states.start(), tokens), expected)


def test_what_cannot_be_is_refused(states_by_name):
    states = states_by_name["granite-tiny"]
    running = after(states, range(10))
    segments, checkpoint, length = taken(states, running, [4])
    for tokens in ([], [[1, 2]]):
        with pytest.raises(ValueError, match="tokens must be a sequence of at least one, got shape"):
            states.run(running, tokens)
    for start, stop in ((-1, 2), (3, 2), (0, 11)):
        with pytest.raises(ValueError, match=r"tokens must lie within \[0, 10\], got "):
            states.kv(running, start, stop)
    with pytest.raises(ValueError, match="a checkpoint must follow a token"):
        states.checkpoint(states.start())
    with pytest.raises(ValueError, match="a checkpoint must have 9 tensors, got 8"):
        states.restore(segments, checkpoint[:-1], length)
    for wrong, count in ((segments[:1], 4), (segments + segments[:1], 14), ([], 0)):
        with pytest.raises(ValueError, match=f"segments must hold the KV of 10 tokens, at least one, got {count}"):
            states.restore(wrong, checkpoint, length)


def test_a_difference_is_absolute_for_small_logits_and_relative_for_large_ones():
    small, large = torch.tensor([0.5, -0.25]), torch.tensor([50.0, -25.0])
    full, half = Tolerance.of(torch.float32), Tolerance.of(torch.bfloat16)
    assert full.difference(small + 0.01, small) == pytest.approx(0.01)
    assert full.difference(large + 0.01, large) == pytest.approx(0.0002, rel=1e-3)
    assert half.difference(small + 0.01, small) == pytest.approx(0.02)
    assert full.difference(small * float("nan"), small) == float("inf")
    assert (full.limit, half.limit) == (1e-5, 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_random_splits_on_cuda_in_bfloat16(name):
    states, rng = ModelStates(build_model(name)), np.random.default_rng(TINY.index(name))
    assert states.device.type == "cuda" and states.tolerance.limit == 2e-2
    for _ in range(SEQUENCES):
        tokens = rng.integers(1024, size=rng.integers(20, 121))
        cold = states.run(states.start(), tokens, all_logits=True)
        for boundary in rng.integers(1, len(tokens), size=SPLITS).tolist():
            segments, checkpoint, length = taken(states, after(states, tokens[:boundary]))
            host = [[tensor.cpu() for tensor in segment] for segment in segments]
            running = states.restore(host, checkpoint, length)  # KV from host memory
            found = states.run(running, tokens[boundary:], all_logits=True)
            assert states.tolerance.difference(found, cold[boundary:]) <= 2e-2
        wrong = states.restore(segments, without_recurrence(states, checkpoint), length)
        assert (
            states.tolerance.difference(states.run(wrong, tokens[boundary:], all_logits=True), cold[boundary:]) > 2e-2
        )
