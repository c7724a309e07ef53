"""Importers and generators: the numbers of the real traces, and the shapes that the workloads promise."""

import itertools

import numpy as np
import pytest

from artifact.datasets import DatasetUnavailable
from artifact.prefix_cache.simulation import INFINITE, replay
from artifact.prefix_cache.spec import MARCONI_7B
from artifact.prefix_cache.workloads import generators, importers
from artifact.prefix_cache.workloads.importers import block_hash_trace, load_trace
from artifact.prefix_cache.workloads.traces import Session, chat_trace, collapsed_trace


def real(name, **options):
    try:
        return load_trace(name, **options)
    except DatasetUnavailable as error:
        pytest.skip(f"{name} is not at hand: {error}")


def sequences_by_session(trace):
    for session in np.unique(trace.session):
        yield [(trace.input(i), trace.sequence(i)) for i in np.flatnonzero(trace.session == session)]


def starts_with(tokens, prefix):
    return len(prefix) <= len(tokens) and np.array_equal(tokens[: len(prefix)], prefix)


@pytest.mark.parametrize(
    ("name", "requests", "input_tokens", "ceiling"),
    [
        ("sharegpt", 1238, 1_438_877, 0.9345),
        ("claude-code", 2050, None, None),
        ("swe-agent", None, None, 0.97),
        ("sgd", None, None, 0.93),
        ("sgd-schemas", None, None, 0.98),
    ],
)
def test_a_real_trace_has_its_known_numbers(name, requests, input_tokens, ceiling):
    trace = real(name)
    assert requests is None or len(trace) == requests
    assert input_tokens is None or trace.input_length.sum() == input_tokens
    if ceiling is not None:
        digits = len(str(ceiling)) - 2
        assert round(replay(trace, MARCONI_7B, system=INFINITE).token_hit_rate, digits) == ceiling


def test_the_code_assistant_trace_has_its_known_sessions_and_overlap():
    trace = real("claude-code")
    assert len(np.unique(trace.session)) == 271
    shared = total = 0
    for requests in sequences_by_session(trace):
        seen = set()
        for tokens, _ in requests:
            blocks = tokens[::64]
            known = np.array([block in seen for block in blocks.tolist()])
            overlap = 64 * (int(np.argmin(known)) if not known.all() else len(known))
            shared += min(overlap, len(tokens))
            total += len(tokens)
            seen.update(blocks.tolist())
    assert round(shared / total, 3) == 0.836


def test_mooncake_expands_blocks_to_their_tokens():
    trace = real("mooncake-conversation", limit_requests=2000)
    assert len(trace) == 2000 and trace.input_length[0] == 6758 and trace.output_length[0] == 500
    first, second = trace.input(0), trace.input(1)
    assert np.array_equal(first[:512], second[:512]) and first[512] != second[512]
    assert round(float(real("mooncake-conversation").input_length.mean())) == 12_035


def test_block_hashes_share_whole_blocks_and_nothing_else():
    trace = block_hash_trace(
        "x",
        arrival_s=[0, 1, 2],
        input_lengths=[5, 6, 3],
        output_lengths=[2, 1, 1],
        hash_ids=["ab", "ac", "a"],
        block_size=3,
    )
    a, b, c = (trace.input(i) for i in range(3))
    assert starts_with(a, c) and starts_with(b, c) and not np.isin(b[3:], a).any()
    assert len(set(a) | set(b)) == 3 + 2 + 3
    outputs = np.concatenate([trace.output(i) for i in range(3)])
    assert len(set(outputs)) == 4 and not np.isin(outputs, np.concatenate([a, b])).any()


def test_block_hashes_that_need_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31"):
        block_hash_trace(
            "x", arrival_s=[0], input_lengths=[1], output_lengths=[1], hash_ids=[range(3)], block_size=10**9
        )


@pytest.mark.parametrize("make", [generators.chat, generators.agent], ids=["chat", "agent"])
def test_a_conversation_repeats_its_history(make):
    trace = make(num_sessions=5, seed=3)
    for requests in sequences_by_session(trace):
        for (_, before), (tokens, _) in itertools.pairwise(requests):
            assert starts_with(tokens, before)


def test_a_collapsed_history_leaves_the_sequence_before_it():
    whole = generators.agent(num_sessions=3, seed=1)
    collapsed = generators.agent(num_sessions=3, seed=1, collapse_after=6)
    for plain, requests in zip(sequences_by_session(whole), sequences_by_session(collapsed), strict=True):
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(plain[:6], requests[:6], strict=True))
        for (_, before), (tokens, _) in itertools.pairwise(requests[5:]):
            assert not starts_with(tokens, before)


def test_a_collapsed_history_drops_the_fifth_from_last_observation():
    messages = [np.array([10 * turn + kind], np.int32) for turn in range(8) for kind in (0, 1)]
    session = Session(messages, [False, True] * 8, [1.0] * 16)
    trace = collapsed_trace("x", [session], sessions_per_s=1, max_input_tokens=100, collapse_after=6)
    assert trace.input(5).tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41, 50]
    assert trace.input(6).tolist() == [0, 1, 11, 20, 21, 30, 31, 40, 41, 50, 51, 60]
    assert trace.input(7).tolist() == [0, 1, 11, 21, 30, 31, 40, 41, 50, 51, 60, 61, 70]


def test_sessions_start_evenly_and_turns_follow_the_pause():
    one = Session([np.array([t], np.int32) for t in range(4)], [False, True, False, True], [9.0, 0.0, 2.5, 0.0])
    trace = chat_trace("x", [one, one], sessions_per_s=0.5, max_input_tokens=10)
    assert trace.arrival_s.tolist() == [0.0, 2.0, 2.5, 4.5]
    assert trace.session.tolist() == [0, 1, 0, 1] and trace.turn.tolist() == [0, 0, 1, 1]
    assert len(chat_trace("x", [one], sessions_per_s=1, max_input_tokens=2)) == 1
    with pytest.raises(ValueError, match="sessions_per_s must be positive, got 0"):
        chat_trace("x", [one], sessions_per_s=0, max_input_tokens=2)


def test_few_shot_requests_share_their_tasks_examples_only():
    trace = generators.few_shot(num_requests=200, num_tasks=5, seed=2)
    heads = {tuple(trace.input(i)[:40]) for i in range(len(trace))}
    assert len(heads) == 5
    assert len({tuple(trace.input(i)) for i in range(len(trace))}) == 200


@pytest.mark.parametrize("make", [generators.chat, generators.few_shot, generators.agent])
def test_a_generator_is_deterministic_by_seed(make):
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.arrival_s, b.arrival_s)
    assert not np.array_equal(a.tokens[:50], c.tokens[:50])


def test_an_agents_turns_and_inputs_are_capped():
    trace = real("swe-agent", max_turns=3, max_input_tokens=4000, limit_sessions=10)
    assert trace.input_length.max() <= 4000 and trace.turn.max() <= 2 and len(np.unique(trace.session)) <= 10
    own_times = real("swe-agent", response_time_s=None, limit_sessions=10)
    assert len(own_times) == len(real("swe-agent", limit_sessions=10))


def test_azure_gives_arrivals_and_lengths():
    try:
        table = importers.azure("code")
    except DatasetUnavailable as error:
        pytest.skip(str(error))
    assert len(table) == 8819 and table["arrival_s"].is_monotonic_increasing and table["arrival_s"].iloc[0] == 0


def test_an_unavailable_trace_falls_back_to_a_synthetic_one_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("ARTIFACT_DATA_MIRROR", str(tmp_path))
    monkeypatch.setenv("ARTIFACT_CACHE", str(tmp_path))
    with pytest.raises(DatasetUnavailable):
        load_trace("sharegpt")
    assert load_trace("sharegpt", fallback=True, sessions_per_s=2).name == "synthetic-sharegpt"
    assert load_trace("swe-agent", fallback=True).name == "synthetic-swe-agent"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("sharegtp", {}, "must be a file or one of sharegpt"),
        ("synthetic-chat", {"block_size": 3}, "does not take block_size"),
        (__file__, {"sessions_per_s": 1}, "takes no options, got sessions_per_s"),
    ],
)
def test_a_wrong_source_or_option_is_named(source, options, message):
    with pytest.raises(ValueError, match=message):
        load_trace(source, **options)
