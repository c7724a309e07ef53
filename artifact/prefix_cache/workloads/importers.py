"""Real traces as requests: the formats of the data registry, and files of JSON lines.

Arrival follows the paper (section 5.1): session i starts at i / rate, a user's next message comes after its typing
time, an agent's after its tool's response time, and the model answers at once.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from artifact import datasets
from artifact.prefix_cache.workloads import generators
from artifact.prefix_cache.workloads.trace_file import read_jsonl
from artifact.prefix_cache.workloads.traces import (
    MAX_TOKEN,
    Integers,
    RequestTrace,
    Session,
    Tokens,
    chat_trace,
    collapsed_trace,
    truncated,
)

SPACES_PER_S = 1.5  # a user types 90 words a minute
MAX_INPUT_TOKENS = 32_768
MOONCAKE_BLOCK = 512
CLAUDE_CODE_BLOCK = 64


class Tokenizer(Protocol):
    """Anything that turns text into token ids."""

    def encode(self, text: str) -> list[int]: ...


def sharegpt(
    path: str | Path | None = None, *, sessions_per_s: float = 1.0, limit_sessions: int | None = None
) -> RequestTrace:
    """The paper's ShareGPT workload: 100 conversations of 20 messages or more (1,238 requests)."""
    sessions = []
    for tokens, is_model, spaces in _segments(path or datasets.path("sharegpt"), limit_sessions):
        sessions.append(Session(tokens, [bool(m) for m in is_model], [s / SPACES_PER_S for s in spaces]))
    return chat_trace("sharegpt", sessions, sessions_per_s=sessions_per_s, max_input_tokens=MAX_INPUT_TOKENS)


def swe_agent(
    path: str | Path | None = None,
    *,
    sessions_per_s: float = 1.0,
    response_time_s: float | None = 7.5,
    collapse_after: int | None = None,
    max_turns: int = 50,
    max_input_tokens: int = MAX_INPUT_TOKENS,
    limit_sessions: int | None = None,
    seed: int = 42,
) -> RequestTrace:
    """Trajectories of a coding agent on SWE-bench Verified, a request before each message of the model.

    response_time_s: mean of the Poisson number of seconds that a tool takes, drawn in one stream over all
                     sessions; None takes the trajectories' own times
    collapse_after:  rounds after which old observations are dropped from the history (the paper's agent: 6)
    """
    rng = np.random.default_rng(seed)
    sessions = []
    for tokens, is_model, seconds in _segments(path or datasets.path("swe-agent"), limit_sessions):
        pauses, last = [], float(seconds[0])
        for position, (model, at) in enumerate(zip(is_model, seconds, strict=True)):
            answers = not model and position > 0 and is_model[position - 1]
            if answers and response_time_s is not None:
                pauses.append(float(rng.poisson(response_time_s)))
            else:
                pauses.append(max(0.0, float(at) - last) if response_time_s is None and not model else 0.0)
            last = last if model else float(at)
        sessions.append(truncated(Session(tokens, [bool(m) for m in is_model], pauses), max_turns))
    timing = {"sessions_per_s": sessions_per_s, "max_input_tokens": max_input_tokens}
    if collapse_after is None:
        return chat_trace("swe-agent", sessions, **timing)  # type: ignore[arg-type]
    return collapsed_trace("swe-agent-collapsed", sessions, collapse_after=collapse_after, **timing)  # type: ignore[arg-type]


def mooncake(
    which: str = "conversation", path: str | Path | None = None, *, limit_requests: int | None = None
) -> RequestTrace:
    """Mooncake's traces (FAST 2025): hashes of 512-token blocks, so prefixes are known to 512 tokens.

    Raises: ValueError unless `which` is conversation or synthetic
    """
    if which not in ("conversation", "synthetic"):
        raise ValueError(f"which must be conversation or synthetic, got {which!r}")
    lines = Path(path or datasets.path(f"mooncake-{which}")).read_text().splitlines()[:limit_requests]
    rows = [json.loads(line) for line in lines]
    return block_hash_trace(
        f"mooncake-{which}",
        arrival_s=[row["timestamp"] / 1000 for row in rows],
        input_lengths=[row["input_length"] for row in rows],
        output_lengths=[row["output_length"] for row in rows],
        hash_ids=[row["hash_ids"] for row in rows],
        block_size=MOONCAKE_BLOCK,
    )


def block_hash_trace(
    name: str,
    *,
    arrival_s: Sequence[float],
    input_lengths: Sequence[int],
    output_lengths: Sequence[int],
    hash_ids: Sequence[Iterable[Hashable]],
    block_size: int,
    session: Sequence[int] | None = None,
    turn: Sequence[int] | None = None,
) -> RequestTrace:
    """A trace of block hashes: each hash stands for `block_size` distinct tokens.

    Input beyond the hashed blocks and all outputs are tokens that never recur, as nothing is known of them: reuse
    is exact for whole blocks and cannot be seen below a block or in an output.

    Raises: ValueError if the tokens that must be told apart do not fit in 31 bits
    """
    numbers: dict[Hashable, int] = {}
    dense = [np.array([numbers.setdefault(block, len(numbers)) for block in ids], np.int64) for ids in hash_ids]
    unique = len(numbers) * block_size
    told_apart = unique + sum(input_lengths) + sum(output_lengths)
    if told_apart > MAX_TOKEN:
        raise ValueError(f"{name}: tokens to tell apart must be fewer than 2**31, got up to {told_apart}")
    inside = np.arange(block_size)
    pieces: list[Tokens] = []
    for blocks, num_inputs, num_outputs in zip(dense, input_lengths, output_lengths, strict=True):
        known = (blocks[:, None] * block_size + inside).ravel()[:num_inputs]
        rest = num_inputs - len(known) + num_outputs
        pieces += [known.astype(np.int32), np.arange(unique, unique + rest).astype(np.int32)]
        unique += rest
    inputs, outputs = np.array(input_lengths, np.int64), np.array(output_lengths, np.int64)
    start = np.cumsum(inputs + outputs) - (inputs + outputs)
    sessions = np.arange(len(inputs)) if session is None else np.array(session, np.int64)
    turns = np.zeros(len(inputs), np.int64) if turn is None else np.array(turn, np.int64)
    arrivals = np.array(arrival_s, np.float64)
    return RequestTrace(name, np.concatenate(pieces), start, inputs, outputs, sessions, turns, arrivals)


def claude_code(
    path: str | Path | None = None,
    *,
    sessions_per_s: float = 1.0,
    max_input_tokens: int = MAX_INPUT_TOKENS,
    limit_sessions: int | None = None,
) -> RequestTrace:
    """Sessions of a code assistant: hashes of 64-token blocks, as runs of [first id, number of blocks].

    A session counts up to its first input above `max_input_tokens`, if it has two requests by then; requests of
    its sub-agents are left out. Times within a session are its own.
    """
    rows = []
    number = 0
    with gzip.open(path or datasets.path("claude-code"), "rt") as lines:
        for line in lines:
            if number == limit_sessions:
                break
            requests = [row for row in json.loads(line)["requests"] if "hash_runs" in row]
            fits = next((i for i, row in enumerate(requests) if row["in"] > max_input_tokens), len(requests))
            if fits < 2:
                continue
            start = number / sessions_per_s - requests[0]["t"]
            for turn, row in enumerate(requests[:fits]):
                ids = [(number, first + i) for first, length in row["hash_runs"] for i in range(length)]
                rows.append((start + row["t"], row["in"], row["out"], ids, number, turn))
            number += 1
    rows.sort(key=lambda row: row[0])
    arrival_s, inputs, outputs, blocks, sessions, turns = zip(*rows, strict=True)
    return block_hash_trace(
        "claude-code",
        arrival_s=arrival_s,
        input_lengths=inputs,
        output_lengths=outputs,
        hash_ids=blocks,
        block_size=CLAUDE_CODE_BLOCK,
        session=sessions,
        turn=turns,
    )


def sgd(
    path: str | Path | None = None,
    *,
    sessions_per_s: float = 1.0,
    limit_sessions: int | None = 100,
    min_system_turns: int = 10,
    with_schemas: bool = False,
    tokenizer: Tokenizer | None = None,
) -> RequestTrace:
    """Task dialogues (Schema-Guided Dialogue), tokenised message by message; user types 90 words a minute.

    with_schemas: each dialogue starts with the schemas of its services, a prompt that dialogues share
    """
    tokenizer = tokenizer or default_tokenizer()
    schemas = json.loads(datasets.path("sgd-schemas").read_text()) if with_schemas else {}
    encoded: dict[str, Tokens] = {}

    def encode(text: str) -> Tokens:
        if text not in encoded:
            encoded[text] = np.array(tokenizer.encode(text), np.int32)
        return encoded[text]

    sessions: list[Session] = []
    with gzip.open(path or datasets.path("sgd"), "rt") as lines:
        for line in lines:
            if len(sessions) == limit_sessions:
                break
            dialogue = json.loads(line)
            if sum(who == "S" for who, _ in dialogue["turns"]) < min_system_turns:
                continue
            session = Session([], [], [])
            if with_schemas:
                prompt = json.dumps([schemas[service] for service in dialogue["services"]])
                session.add(encode(prompt), from_model=False, pause_s=0.0)
            for who, text in dialogue["turns"]:
                pause = 0.0 if who == "S" else text.count(" ") / SPACES_PER_S
                message = json.dumps({"from": "system" if who == "S" else "user", "value": text})
                session.add(encode(message), from_model=who == "S", pause_s=pause)
            sessions.append(session)
    name = "sgd-schemas" if with_schemas else "sgd"
    return chat_trace(name, sessions, sessions_per_s=sessions_per_s, max_input_tokens=MAX_INPUT_TOKENS)


def default_tokenizer() -> Tokenizer:
    """A BPE of 32,000 tokens that the package mistral-common carries."""
    from importlib.resources import files

    from sentencepiece import SentencePieceProcessor

    model = files("mistral_common").joinpath("data", "tokenizer.model.v1")
    if not model.is_file():
        raise ValueError("mistral-common must hold data/tokenizer.model.v1: install it, or pass a tokenizer")
    loaded: Tokenizer = SentencePieceProcessor(model_file=str(model))
    return loaded


def azure(which: str = "conversation", path: str | Path | None = None) -> pd.DataFrame:
    """Azure's LLM inference trace of 2023: arrivals and lengths alone, no tokens.

    Columns: arrival_s (from the first request), input_length, output_length
    Raises:  ValueError unless `which` is conversation or code
    """
    if which not in ("conversation", "code"):
        raise ValueError(f"which must be conversation or code, got {which!r}")
    rows = pd.read_csv(path or datasets.path(f"azure-{which}"), parse_dates=["TIMESTAMP"])
    arrival = (rows["TIMESTAMP"] - rows["TIMESTAMP"].iloc[0]).dt.total_seconds()
    lengths = {"input_length": rows["ContextTokens"], "output_length": rows["GeneratedTokens"]}
    return pd.DataFrame({"arrival_s": arrival, **lengths})


def _segments(path: str | Path, limit_sessions: int | None) -> list[tuple[list[Tokens], Integers, Integers]]:
    """The messages of each session of an npz: their tokens, whether they are the model's, the last column."""
    with np.load(path) as arrays:
        tokens, segments = arrays["tokens"].astype(np.int32), arrays["segments"].astype(np.int64)
    bounds = np.cumsum(segments[:, 2])[:-1]
    messages = np.split(tokens, bounds)
    sessions = []
    for number in np.unique(segments[:, 0])[:limit_sessions]:
        rows = np.flatnonzero(segments[:, 0] == number)
        sessions.append(([messages[row] for row in rows], segments[rows, 1], segments[rows, 3]))
    return sessions


IMPORTERS: dict[str, Any] = {
    "sharegpt": sharegpt,
    "swe-agent": swe_agent,
    "swe-agent-collapsed": lambda **options: swe_agent(**{"collapse_after": 6, **options}),
    "mooncake-conversation": mooncake,
    "mooncake-synthetic": lambda **options: mooncake("synthetic", **options),
    "claude-code": claude_code,
    "sgd": sgd,
    "sgd-schemas": lambda **options: sgd(**{"with_schemas": True, **options}),
    "synthetic-chat": generators.chat,
    "synthetic-few-shot": generators.few_shot,
    "synthetic-agent": generators.agent,
}
TRACE_NAMES = tuple(IMPORTERS)
FALLBACK = {"sharegpt": "synthetic-chat", "sgd": "synthetic-chat", "sgd-schemas": "synthetic-few-shot"}


def load_trace(source: str | Path, *, fallback: bool = False, **options: Any) -> RequestTrace:
    """A trace by its name in the registry, or a file of JSON lines.

    options:  of the importer, such as sessions_per_s or limit_sessions; a file takes none
    fallback: if the data set is unavailable, take the project's own generator for that kind of workload; the
              trace's name is then "synthetic-" and the requested name
    Raises:   ValueError for a name that is neither, or an option that does not fit; DatasetUnavailable; TraceError
    """
    name = str(source)
    if name not in IMPORTERS:
        if not os.path.isfile(source):
            raise ValueError(f"a trace must be a file or one of {', '.join(TRACE_NAMES)}, got {name!r}")
        if options:
            raise ValueError(f"a file has its own arrivals and takes no options, got {', '.join(options)}")
        return read_jsonl(source)
    try:
        trace: RequestTrace = IMPORTERS[name](**options)
        return trace
    except datasets.DatasetUnavailable:
        if not fallback:
            raise
        known = {key: value for key, value in options.items() if key in ("sessions_per_s", "seed")}
        return replace(IMPORTERS[FALLBACK.get(name, "synthetic-agent")](**known), name=f"synthetic-{name}")
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(f"trace {name} does not take {', '.join(options)}: {error}") from None
