"""JSON lines in and out, and what is said of a bad line."""

import gzip
import json

import numpy as np
import pytest

from artifact.prefix_cache.workloads import generators
from artifact.prefix_cache.workloads.trace_file import TraceError, read_jsonl, write_jsonl

GOOD = {"session_id": 0, "turn_id": 0, "ts": 0.5, "input_tokens": [1, 2], "output_tokens": [3]}


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_trace_survives_writing_and_reading(tmp_path, name):
    trace = generators.agent(num_sessions=4, collapse_after=6)
    write_jsonl(trace, tmp_path / name)
    back = read_jsonl(tmp_path / name)
    assert back.name == "trace" and len(back) == len(trace)
    for i in range(len(trace)):
        assert np.array_equal(back.input(i), trace.input(i)) and np.array_equal(back.output(i), trace.output(i))
    for column in ("session", "turn", "arrival_s"):
        assert np.array_equal(getattr(back, column), getattr(trace, column))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_growing_conversation_is_stored_once(tmp_path):
    trace = generators.chat(num_sessions=3)
    write_jsonl(trace, tmp_path / "t.jsonl")
    assert len(read_jsonl(tmp_path / "t.jsonl").tokens) == len(trace.tokens)


def test_session_names_are_numbered_in_order(tmp_path):
    lines = [{**GOOD, "session_id": name, "ts": ts} for ts, name in enumerate(["b", "a", "b"])]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert read_jsonl(tmp_path / "t.jsonl").session.tolist() == [0, 1, 0]


def test_a_request_may_have_no_output(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({**GOOD, "output_tokens": []}))
    assert read_jsonl(tmp_path / "t.jsonl").output_length.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"session_id": None}, "session_id is null"),
        ({"session_id": 1.5}, "session_id must be an integer"),
        ({"turn_id": "x"}, "turn_id must be an integer"),
        ({"ts": "0"}, "ts must be a finite number"),
        ({"ts": float("nan")}, "ts must be a finite number"),
        ({"ts": 0.1}, "ts must not decrease, got 0.1 after 0.5"),
        ({"input_tokens": []}, "input_tokens must hold a token"),
        ({"input_tokens": 3}, "input_tokens must be a list, got int"),
        ({"input_tokens": [1, 2.0]}, "got 2.0 at position 1"),
        ({"input_tokens": [True]}, "got true at position 0"),
        ({"output_tokens": [1, 2**31]}, "output_tokens: a token must be an integer in"),
        ({"output_tokens": [-7]}, "got -7 at position 0"),
        ({"output_tokens": None}, "output_tokens is null"),
        ({"num_input_tokens": 3}, "num_input_tokens is 3, but input_tokens holds 2"),
    ],
)
def test_a_bad_line_is_named_with_its_file_number_and_reason(tmp_path, change, reason):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(TraceError) as caught:
        read_jsonl(file)
    assert str(caught.value).startswith(f"{file}:3: ") and reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no request"),
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ("\n\n", "holds no request"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, text, reason):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(TraceError, match=reason):
        read_jsonl(tmp_path / "t.jsonl")


def test_a_cut_gzip_is_refused(tmp_path):
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 2000)
    (tmp_path / "t.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match="not a whole gzip file"):
        read_jsonl(tmp_path / "t.jsonl.gz")
