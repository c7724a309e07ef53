"""Requests in the order a serving engine sees them, over one shared pool of tokens.

A request is a slice of the pool: its input, directly followed by its output. Requests of one conversation
overlap (the input of a turn is the whole history), so that a chat costs its length once, not once a turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

MAX_TOKEN = 2**31 - 1

Tokens = NDArray[np.int32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """One request with its own tokens, as importers and files give it."""

    session: int
    turn: int
    arrival_s: float
    input_tokens: Sequence[int] | Tokens
    output_tokens: Sequence[int] | Tokens


@dataclass(frozen=True)
class RequestTrace:
    """Requests sorted by arrival.

    tokens:        [pool], int32
    start:         [requests], first token of the request's input in the pool
    input_length:  [requests], tokens of the input (the whole history and the new message)
    output_length: [requests], tokens of the output, which follow the input in the pool
    session, turn: [requests], numbers as in the source
    arrival_s:     [requests], seconds, not decreasing
    """

    name: str
    tokens: Tokens = field(repr=False)
    start: Integers = field(repr=False)
    input_length: Integers = field(repr=False)
    output_length: Integers = field(repr=False)
    session: Integers = field(repr=False)
    turn: Integers = field(repr=False)
    arrival_s: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        if np.any(np.diff(self.arrival_s) < 0):
            at = int(np.flatnonzero(np.diff(self.arrival_s) < 0)[0]) + 1
            raise ValueError(f"{self.name}: arrivals must not decrease, request {at} comes before the one before it")

    def __len__(self) -> int:
        return len(self.start)

    def sequence(self, request: int) -> Tokens:
        """Input and output of one request: what a cache inserts."""
        first = self.start[request]
        return self.tokens[first : first + self.input_length[request] + self.output_length[request]]

    def input(self, request: int) -> Tokens:
        """Input of one request: what a cache looks up."""
        first = self.start[request]
        return self.tokens[first : first + self.input_length[request]]

    def output(self, request: int) -> Tokens:
        """Output of one request."""
        return self.sequence(request)[self.input_length[request] :]

    def head(self, num_requests: int) -> RequestTrace:
        """The first requests alone (same pool)."""
        return self.select(np.arange(min(num_requests, len(self))))

    def select(self, requests: NDArray[np.intp] | NDArray[np.bool_]) -> RequestTrace:
        """Some of the requests, in the order given (same pool)."""
        columns = ("start", "input_length", "output_length", "session", "turn", "arrival_s")
        return replace(self, **{name: getattr(self, name)[requests] for name in columns})


def from_requests(name: str, requests: Iterable[Request]) -> RequestTrace:
    """A trace from whole requests, sorted by arrival (stable), each with separate tokens in the pool.

    Raises: ValueError for a token outside [0, 2**31) or an empty input.
    """
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    pieces: list[Tokens] = []
    for request in ordered:
        if len(request.input_tokens) == 0:
            raise ValueError(f"{name}: input must hold a token, session {request.session} turn {request.turn} has none")
        for part in (request.input_tokens, request.output_tokens):
            pieces.append(checked_tokens(part, f"{name}: session {request.session} turn {request.turn}"))
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64).reshape(-1, 2)
    sizes = lengths.sum(axis=1)
    return RequestTrace(
        name=name,
        tokens=np.concatenate(pieces) if pieces else np.empty(0, np.int32),
        start=np.cumsum(sizes) - sizes,
        input_length=lengths[:, 0].copy(),
        output_length=lengths[:, 1].copy(),
        session=np.array([request.session for request in ordered], dtype=np.int64),
        turn=np.array([request.turn for request in ordered], dtype=np.int64),
        arrival_s=np.array([request.arrival_s for request in ordered], dtype=np.float64),
    )


def checked_tokens(tokens: Sequence[int] | Tokens, where: str) -> Tokens:
    """The tokens as int32. Raises: ValueError naming the first token outside [0, 2**31)."""
    wide = np.asarray(tokens)
    if wide.size and not np.issubdtype(wide.dtype, np.integer):
        raise ValueError(f"{where}: tokens must be integers, got {wide.dtype}")
    bad = np.flatnonzero((wide < 0) | (wide > MAX_TOKEN))
    if bad.size:
        raise ValueError(f"{where}: a token must be in [0, 2**31), got {wide[bad[0]]} at position {bad[0]}")
    return wide.astype(np.int32, copy=False)


@dataclass(frozen=True)
class Session:
    """One conversation before it has arrival times.

    messages:  tokens of each message, in order
    from_model: whether the message is the model's (a request ends before each of these)
    pause_s:   seconds between the arrival of the request before and the arrival of the request that this
               message belongs to; 0 for the model's messages
    """

    messages: list[Tokens]
    from_model: list[bool]
    pause_s: list[float]

    def add(self, tokens: Tokens, *, from_model: bool, pause_s: float) -> None:
        """Append a message."""
        self.messages.append(tokens)
        self.from_model.append(from_model)
        self.pause_s.append(pause_s)


def truncated(session: Session, max_turns: int) -> Session:
    """The session up to the model's answer of its turn `max_turns`."""
    ends = [position + 1 for position, is_model in enumerate(session.from_model) if is_model]
    end = ends[max_turns - 1] if len(ends) > max_turns else len(session.messages)
    return Session(session.messages[:end], session.from_model[:end], session.pause_s[:end])


def chat_trace(name: str, sessions: Sequence[Session], *, sessions_per_s: float, max_input_tokens: int) -> RequestTrace:
    """Sessions with full history: session i starts at i / rate, each turn comes after the user's pause.

    The arrival model of Marconi's evaluation: starts are evenly spaced, not Poisson, and the model answers at
    once. A session ends before its input would exceed `max_input_tokens`.
    """
    if not sessions_per_s > 0:
        raise ValueError(f"sessions_per_s must be positive, got {sessions_per_s}")
    rows: list[tuple[int, int, int, int, int]] = []
    arrivals: list[float] = []
    pool: list[Tokens] = []
    pool_length = 0
    for number, session in enumerate(sessions):
        begin, history, turn, now = pool_length, 0, 0, number / sessions_per_s
        for tokens, is_model, pause in zip(session.messages, session.from_model, session.pause_s, strict=True):
            if is_model:
                if history > max_input_tokens:
                    break
                if history:
                    rows.append((begin, history, len(tokens), number, turn))
                    arrivals.append(now)
                    turn += 1
            elif turn:
                now += pause
            pool.append(tokens)
            history += len(tokens)
            pool_length += len(tokens)
    arrival_s = np.array(arrivals, dtype=np.float64)
    order = np.argsort(arrival_s, kind="stable")
    start, inputs, outputs, numbers, turns = np.array(rows, dtype=np.int64).reshape(-1, 5)[order].T.copy()
    return RequestTrace(name, np.concatenate(pool), start, inputs, outputs, numbers, turns, arrival_s[order])


def collapsed_trace(
    name: str, sessions: Sequence[Session], *, sessions_per_s: float, max_input_tokens: int, collapse_after: int
) -> RequestTrace:
    """`chat_trace` for agents that forget old observations (Marconi's SWE-bench workload).

    Once `collapse_after` rounds (messages to the model, its answer) are complete, each new turn first drops the
    messages to the model of the round `collapse_after - 1` from the last: the input then leaves the sequence of
    the turn before a few rounds from its end. The first round, with the task, is never dropped.
    """
    if not sessions_per_s > 0:
        raise ValueError(f"sessions_per_s must be positive, got {sessions_per_s}")
    if collapse_after < 2:
        raise ValueError(f"collapse_after must be at least 2 rounds, got {collapse_after}")
    requests = []
    for number, session in enumerate(sessions):
        rounds: list[tuple[list[Tokens], Tokens]] = []
        asked: list[Tokens] = []
        now = number / sessions_per_s
        for tokens, is_model, pause in zip(session.messages, session.from_model, session.pause_s, strict=True):
            if not is_model:
                now += pause if rounds else 0.0
                asked.append(tokens)
                continue
            if len(rounds) >= collapse_after:
                rounds[1 - collapse_after] = ([], rounds[1 - collapse_after][1])
            pieces = [piece for messages, answer in rounds for piece in (*messages, answer)] + asked
            if sum(map(len, pieces)) > max_input_tokens:
                break
            if pieces:
                requests.append(Request(number, len(rounds), now, np.concatenate(pieces), tokens))
            rounds.append((asked, tokens))
            asked = []
    return from_requests(name, requests)
