"""A real model served from cached states: the same logits, the simulator's hits, tensors where the index says."""

import gc

import numpy as np
import pytest
import torch

from artifact.prefix_cache.index.admission import AtBranch, ChunkAligned, EndOnly, EveryBlocks
from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru
from artifact.prefix_cache.index.tiers import TieredCache
from artifact.prefix_cache.presets import MARCONI_7B
from artifact.prefix_cache.serving.engine import HybridEngine
from artifact.prefix_cache.serving.hybrid_models import TINY, build_model, spec_of
from artifact.prefix_cache.serving.tensor_memory import TensorMemory
from artifact.prefix_cache.serving.trace_server import System, serve
from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from artifact.prefix_cache.workloads import generators

torch.set_num_threads(1)
ROOM = 10**9


@pytest.fixture(scope="module")
def model():
    return build_model("granite-tiny", device="cpu")


@pytest.fixture(scope="module")
def spec(model):
    return spec_of(model)


def capacity_of(spec, checkpoints, tokens):
    return checkpoints * spec.checkpoint_bytes + spec.kv_bytes(tokens)


def engine_with(model, *, capacity=ROOM, host=None, **options):
    costs = spec_of(model)
    index = PrefixCache(costs, capacity_bytes=capacity, **({"eviction": FlopAware(0.5)} | options))
    host_index = None if host is None else PrefixCache(costs, capacity_bytes=host, eviction=Lru())
    return HybridEngine(model, TieredCache(index, host_index), debug=True)


def sequences(seed, count, vocabulary=1024, longest=60):
    """Sequences that share prefixes, leave them within, and repeat."""
    rng = np.random.default_rng(seed)
    known = [np.empty(0, np.int64)]
    for _ in range(count):
        base = known[rng.integers(len(known))]
        new = rng.integers(vocabulary, size=rng.integers(1, longest))
        known.append(np.concatenate((base[: rng.integers(len(base) + 1)], new)))
    return known[1:]


def largest_difference(engine, tokens, logits):
    return engine.states.tolerance.difference(logits, engine.cold(tokens)[1])


@pytest.fixture(scope="module")
def trace():
    """300 requests of a chat, short enough to serve."""
    return generators.chat(num_sessions=60, mean_user_tokens=8, mean_model_tokens=16).head(300)


# exactness ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TINY)
def test_every_class_serves_from_its_states_what_a_cold_prefill_computes(name):
    """Two small tiers, so that states are split, joined, evicted, demoted and promoted on the way."""
    model = build_model(name, device="cpu")
    costs = spec_of(model)
    engine = engine_with(model, capacity=capacity_of(costs, 6, 400), host=capacity_of(costs, 12, 2000))
    largest, hits, from_host = 0.0, 0, 0
    for tokens in sequences(TINY.index(name), 40):
        with engine.prefill(tokens) as request:
            largest = max(largest, largest_difference(engine, tokens, request.logits))
            hits, from_host = hits + request.hit_tokens, from_host + request.from_host_tokens
            engine.decode(request, 2)
    assert largest <= 1e-5 and hits > from_host > 0
    assert engine.cache.demoted_bytes > 0 and engine.cache.promoted_bytes > 0


@pytest.mark.parametrize("checkpoints", [AtBranch(), EndOnly(), ChunkAligned(16), EveryBlocks(8, 2)], ids=str)
def test_checkpoints_of_every_checkpoint_policy_resume_exactly(model, spec, checkpoints):
    engine = engine_with(model, capacity=capacity_of(spec, 30, 1500), checkpoints=checkpoints)
    largest, hits = 0.0, 0
    for tokens in sequences(3, 50):
        decoded, request = engine.generate(tokens, 3)
        assert len(decoded) == 3 and len(request.tokens) == len(tokens) + 3
        with engine.prefill(request.tokens[: len(tokens) + 2]) as again:
            largest = max(largest, largest_difference(engine, again.tokens, again.logits))
            hits += again.hit_tokens
    assert largest <= 1e-5
    assert (hits > 0) == (checkpoints != EndOnly())  # what was decoded last is never a prefix of less


def test_generated_tokens_are_those_without_a_cache(model):
    engine = engine_with(model)
    rng = np.random.default_rng(0)
    system = rng.integers(1024, size=40)
    for _ in range(4):
        tokens = np.concatenate((system, rng.integers(1024, size=10)))
        cold = engine_with(model)
        expected = cold.generate(tokens, 12)[0]
        assert engine.generate(tokens, 12)[0] == expected
    stop = expected[5]
    decoded, request = engine.generate(tokens, 12, stop_token=stop)
    assert decoded == expected[: expected.index(stop) + 1] and request.hit_tokens >= 40


def test_a_prompt_that_is_stored_whole_is_not_computed_again(model):
    engine = engine_with(model)
    tokens = np.arange(30)
    with engine.prefill(tokens) as first:
        pass
    with engine.prefill(tokens) as second:
        assert (second.hit_tokens, second.computed_tokens) == (30, 0)
        assert torch.equal(second.logits, first.logits)


def test_decoding_from_a_restored_state_never_changes_the_stored_one(model):
    engine = engine_with(model)
    engine.finish(engine.prefill(np.arange(40)))
    entries = engine.cache.device.store.node_to_entry
    before = [tensor.clone() for entry in entries.values() for tensor in (*entry.kv, *entry.checkpoint)]
    requests = [engine.prefill([*range(40), 7 + i]) for i in range(3)]
    for _ in range(4):
        for request in requests:
            engine.decode(request, 1)
    after = [tensor for entry in entries.values() for tensor in (*entry.kv, *entry.checkpoint)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for request in requests:
        assert largest_difference(engine, request.tokens, request.logits) <= 1e-5
        engine.finish(request)


def test_a_lost_state_would_be_seen(model):
    """The control: with the stored recurrent states at zero the same request is far off."""
    engine = engine_with(model)
    engine.finish(engine.prefill(np.arange(40)))
    for entry in engine.cache.device.store.node_to_entry.values():
        for state in entry.checkpoint[:-1]:
            state.zero_()
    with engine.prefill([*range(40), 1, 2]) as request:
        assert request.hit_tokens == 40
        assert largest_difference(engine, request.tokens, request.logits) > 1e-3


# admission ------------------------------------------------------------------------------------------------------------
def depths(engine):
    store = engine.cache.device.store
    return {entry.depth for entry in store.node_to_entry.values() if entry.checkpoint is not None}


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [(AtBranch(), {100, 80, 90}), (ChunkAligned(32), {100, 64, 90}), (EndOnly(), {100, 90})],
    ids=str,
)
def test_the_checkpoint_of_a_shared_input_is_taken_by_the_second_request(model, checkpoints, expected):
    engine = engine_with(model, checkpoints=checkpoints)
    engine.finish(engine.prefill(np.arange(100)))
    second = np.concatenate((np.arange(80), np.arange(200, 210)))
    with engine.prefill(second) as request:
        assert request.computed_tokens == 90
    assert depths(engine) == expected
    third = np.concatenate((np.arange(80), np.arange(300, 310)))
    with engine.prefill(third) as request:
        assert request.hit_tokens == max((depth for depth in expected if depth <= 80), default=0)
        assert largest_difference(engine, third, request.logits) <= 1e-5


@pytest.mark.parametrize("checkpoints", [AtBranch(), ChunkAligned(4)], ids=str)
def test_a_branch_point_among_decoded_tokens_gets_its_checkpoint(model, checkpoints):
    """The second answer leaves the first within: no prefill passes there, so decoding must stop for it."""
    engine = engine_with(model, checkpoints=checkpoints)
    with engine.prefill(np.arange(10)) as request:
        engine.append(request, [20, 21, 22, 23, 24, 25])
    with engine.prefill(np.arange(10)) as request:
        for token in (20, 21, 22, 90, 91):  # one at a time, as decoding does
            engine.append(request, [token])
    assert depths(engine) == {16, 15, 13 if checkpoints == AtBranch() else 12}


def test_requests_in_flight_keep_what_they_use_and_find_what_others_left(model, spec):
    engine = engine_with(model, capacity=capacity_of(spec, 3, 120), eviction=Lru())
    shared = np.arange(30)
    engine.finish(engine.prefill(shared))
    one, two = (engine.prefill([*shared, first, 5]) for first in (100, 200))
    assert one.hit_tokens == two.hit_tokens == 30
    for filler in range(4):  # would evict the shared prefix if nobody held it
        engine.finish(engine.prefill(np.arange(300 + 40 * filler, 340 + 40 * filler)))
    assert engine.cache.index.find(np.arange(30, dtype=np.int32)).resumable_tokens == 30
    for request in (one, two):
        engine.decode(request, 2)
        assert largest_difference(engine, request.tokens, request.logits) <= 1e-5
    engine.finish(two)
    engine.abort(one)
    assert not engine.cache.index.contents.order.pins.any()
    assert two.open is one.open is False


def test_two_requests_that_share_a_new_prefix_do_not_need_each_others_checkpoints(model):
    engine = engine_with(model)
    one, two = (engine.prefill([*range(50), last]) for last in (100, 200))
    engine.finish(one)
    engine.finish(two)  # they part after 50 tokens, where neither has a checkpoint
    assert depths(engine) == {51}
    engine.finish(engine.prefill([*range(50), 300]))
    assert depths(engine) == {50, 51}


def test_a_failed_request_leaves_nothing_behind(model):
    engine = engine_with(model)
    engine.finish(engine.prefill(np.arange(20)))
    with pytest.raises(RuntimeError, match="client is gone"), engine.prefill(np.arange(25)):
        raise RuntimeError("client is gone")
    assert depths(engine) == {20} and not engine.cache.index.contents.order.pins.any()


def test_a_prefill_that_fails_holds_nothing(model, monkeypatch):
    engine = engine_with(model)
    engine.finish(engine.prefill(np.arange(20)))

    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(engine.states, "run", fail)
        engine.prefill(np.arange(25))
    assert not engine.cache.index.contents.order.pins.any()
    assert engine.prefill(np.arange(25)).hit_tokens == 20


# the simulator --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", [None, 40], ids=["one tier", "two tiers"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.7, "tuned"], ids=str)
def test_served_hits_equal_simulated_hits_for_every_request_of_a_trace(model, spec, trace, alpha, host):
    assert len(trace) == 300
    host_bytes = None if host is None else capacity_of(spec, host, 4000)
    label = SGLANG if alpha is None else MARCONI
    fixed = alpha if isinstance(alpha, float) else None
    system = System(label, capacity_of(spec, 25, 1500), host_bytes, alpha=fixed)
    engine = system.engine(model, debug=True)
    table = serve(trace, {label: engine})
    served = table[table["system"] == label]
    simulated = system.simulated_hits(trace, model)
    assert served["hit_tokens"].tolist() == simulated.tolist()
    assert 0 < simulated.sum() < trace.input_length.sum() and engine.cache.index.first_eviction_request is not None
    assert (served["from_host_tokens"].sum() > 0) == (host is not None)
    assert served["logit_difference"].max() <= 1e-5
    assert (served["computed_tokens"] == served["input_tokens"] - served["hit_tokens"]).all()
    assert engine.cache.device.store.memory.peak_bytes >= engine.cache.index.peak_bytes > 0
    cold = table[table["system"] == VANILLA]
    assert len(cold) == 300 and (table["ttft_ms"] > 0).all() and (served["restore_ms"] < served["ttft_ms"]).all()


@pytest.mark.parametrize(
    ("checkpoints", "room"), [(EndOnly(), 25), (ChunkAligned(8), 25), (EveryBlocks(8), 25), (EveryBlocks(8), 6)]
)
def test_served_hits_equal_simulated_hits_for_every_checkpoint_policy(model, spec, trace, checkpoints, room):
    """With room for 6 checkpoints many sequences do not fit, or push their own beginning out."""
    system = System(MARCONI, capacity_of(spec, room, 800), alpha=0.5, checkpoints=checkpoints)
    short = trace.head(120)
    table = serve(short, {MARCONI: system.engine(model, debug=True)})
    served = table[table["system"] == MARCONI]["hit_tokens"]
    assert served.tolist() == system.simulated_hits(short, model).tolist()


def test_blocks_are_served_as_they_are_simulated(model, spec, trace):
    system = System(VLLM, capacity_of(spec, 60, 1500), block_size=8)
    short = trace.head(120)
    table = serve(short, {VLLM: system.engine(model, debug=True)})
    served = table[table["system"] == VLLM]
    assert served["hit_tokens"].tolist() == system.simulated_hits(short, model).tolist()
    assert served["hit_tokens"].sum() > 0 and served["logit_difference"].max() <= 1e-5


# memory ---------------------------------------------------------------------------------------------------------------
def test_no_tensor_outlives_its_cache(model):
    engine = engine_with(model, host=ROOM, capacity=200_000)
    for tokens in sequences(1, 20):
        engine.generate(tokens, 2)
    memories = [tier.store.memory for tier in engine.cache.tiers]
    assert all(memory.held_bytes == memory.used_bytes > 0 for memory in memories)
    del engine
    gc.collect()
    assert [memory.held_bytes for memory in memories] == [0, 0]


def test_the_debug_mode_sees_bytes_that_are_not_accounted_for(model):
    engine = engine_with(model)
    engine.finish(engine.prefill(np.arange(20)))
    tier = engine.cache.device
    entry = next(iter(tier.store.node_to_entry.values()))
    extra = tier.store.memory.copy(entry.kv)
    with pytest.raises(AssertionError, match=r"\d+ bytes held, \d+ counted"):
        tier.check()
    tier.store.memory.free(extra)
    with pytest.raises(AssertionError, match=r"\d+ bytes alive, \d+ counted"):  # freed, but somebody holds it
        tier.check()
    del extra
    tier.check()
    entry.checkpoint.pop()
    with pytest.raises(AssertionError, match=r"tensors of \d+ bytes held, \d+ counted"):
        tier.check()


def test_split_and_joined_tensors_own_their_bytes():
    memory = TensorMemory("cpu", watch=True)
    kv = memory.copy([torch.arange(24.0).view(2, 4, 3), torch.ones(2, 4, 3)])
    whole = [tensor.clone() for tensor in kv]
    upper, lower = memory.split(kv, 1)
    assert [tensor.shape[1] for tensor in (*upper, *lower)] == [1, 1, 3, 3]
    assert all(t.untyped_storage().nbytes() == t.nbytes and t.is_contiguous() for t in (*upper, *lower))
    assert memory.used_bytes == memory.held_bytes == 192
    joined = memory.join(upper, lower)
    assert all(torch.equal(one, other) for one, other in zip(joined, whole, strict=True))
    assert memory.used_bytes == memory.held_bytes == 192 < memory.peak_bytes


# what is refused ------------------------------------------------------------------------------------------------------
def test_what_cannot_be_served_is_refused(model, spec):
    with pytest.raises(ValueError, match=r"the cache's costs must be the model's, 256 bytes a token and 47104 .* got"):
        HybridEngine(model, PrefixCache(MARCONI_7B, capacity_bytes=ROOM))
    engine = engine_with(model)
    for tokens, message in (
        ([], "tokens must hold at least one token, got none"),
        ([3, 1024], "a token must be below the model's vocabulary of 1024, got 1024"),
        ([-1], r"a token must be in \[0, 2\*\*31\), got -1 at position 0"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.prefill(tokens)
    request = engine.prefill([1, 2])
    with pytest.raises(ValueError, match="max_new_tokens must not be negative, got -1"):
        engine.decode(request, -1)
    engine.finish(request)
    for call in (engine.finish, engine.abort, lambda request: engine.append(request, [1])):
        with pytest.raises(ValueError, match="a request must be in flight, got one of 2 tokens that has ended"):
            call(request)
    with pytest.raises(ValueError, match="a cache must be empty to be given memories"):
        HybridEngine(model, engine.cache)


def test_a_plain_index_serves_as_well(model, spec):
    for index in (PrefixCache(spec, capacity_bytes=ROOM), BlockCache(spec, capacity_bytes=ROOM, block_size=4)):
        engine = HybridEngine(model, index, debug=True)
        engine.generate(range(10), 2)
        with engine.prefill([*range(10), 50]) as request:
            assert request.hit_tokens == (0 if isinstance(index, PrefixCache) else 8)
    with pytest.raises(ValueError, match="a trace must hold a request"):
        serve(generators.chat(num_sessions=1).head(0), {MARCONI: engine})


# CUDA -----------------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_every_class_serves_from_its_states_on_cuda_in_bfloat16(name):
    model = build_model(name, device="cuda")
    costs = spec_of(model)
    engine = engine_with(model, capacity=capacity_of(costs, 6, 400), host=capacity_of(costs, 12, 2000))
    device, host = (tier.store.memory for tier in engine.cache.tiers)
    assert device.device.type == "cuda" and host.device.type == "cpu" and host.pinned
    from_host = 0
    for tokens in sequences(TINY.index(name), 40):
        with engine.prefill(tokens) as request:
            assert largest_difference(engine, tokens, request.logits) <= 2e-2
            from_host += request.from_host_tokens
    assert from_host > 0
