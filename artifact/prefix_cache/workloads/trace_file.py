"""A trace as JSON lines, one request a line: the format of Marconi's workloads (evaluation, section 5).

Keys: `session_id, turn_id, ts, input_tokens, output_tokens`. The input is the whole history and the new message.
Others are ignored, except `num_input_tokens` and `num_output_tokens`, which must agree with the lists. Blank lines
are skipped, gzip is recognised by its first bytes.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from artifact.prefix_cache.workloads.traces import MAX_TOKEN, RequestTrace, Tokens

KEYS = ("session_id", "turn_id", "ts", "input_tokens", "output_tokens")


class TraceError(ValueError):
    """A trace file that cannot be read: "<file>:<line>: <reason>"."""


def read_jsonl(path: str | Path) -> RequestTrace:
    """The trace in a file, in the order of its lines, named after the file.

    Session ids are kept where all are integers, else numbered in order of first appearance. A turn that
    extends the session's sequence before it is stored once: the pool then grows by the new tokens alone.

    Raises: TraceError naming the file, the line (from 1) and the reason; OSError if the file cannot be opened.
    """
    path = Path(path)
    pool = _Pool()
    rows: list[tuple[int, int, int, int, float]] = []
    session_ids: list[int | str] = []
    line_number, before = 0, -math.inf
    with _open(path) as lines:
        try:
            for line_number, line in enumerate(lines, start=1):  # noqa: B007 (named in errors)
                if line.isspace():
                    continue
                row = _parsed(line)
                session, turn, now = _session_id(row), _integer("turn_id", row["turn_id"]), _seconds(row["ts"])
                if now < before:
                    raise ValueError(f"ts must not decrease, got {now} after {before}")
                inputs, outputs = _tokens("input_tokens", row), _tokens("output_tokens", row)
                if not inputs.size:
                    raise ValueError("input_tokens must hold a token, got an empty list")
                rows.append((*pool.add(session, inputs, outputs), inputs.size, turn, now))
                session_ids.append(session)
                before = now
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(f"{path}:{line_number + 1}: not a whole gzip file ({error})") from error
        except ValueError as error:
            raise TraceError(f"{path}:{line_number}: {error}") from error
    if not rows:
        raise TraceError(f"{path}:{max(line_number, 1)}: the file holds no request")
    run, length, input_length, turn_ids, arrivals = zip(*rows, strict=True)
    inputs_of = np.array(input_length, dtype=np.int64)
    return RequestTrace(
        name=path.name.removesuffix(".gz").removesuffix(".jsonl"),
        tokens=pool.tokens(),
        start=pool.run_starts()[np.array(run)],
        input_length=inputs_of,
        output_length=np.array(length, dtype=np.int64) - inputs_of,
        session=_numbered(session_ids),
        turn=np.array(turn_ids, dtype=np.int64),
        arrival_s=np.array(arrivals, dtype=np.float64),
    )


def write_jsonl(trace: RequestTrace, path: str | Path) -> None:
    """Write a trace; gzip if the name ends in .gz. The file appears under its name only when it is whole."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            if path.suffix == ".gz":
                # No time and no name in the header, so that equal traces give equal files.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed:
                    _write_lines(trace, packed)
            else:
                _write_lines(trace, raw)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write_lines(trace: RequestTrace, out: IO[bytes] | gzip.GzipFile) -> None:
    for request in range(len(trace)):
        row = {
            "session_id": int(trace.session[request]),
            "turn_id": int(trace.turn[request]),
            "ts": float(trace.arrival_s[request]),
            "num_input_tokens": int(trace.input_length[request]),
            "num_output_tokens": int(trace.output_length[request]),
            "input_tokens": trace.input(request).tolist(),
            "output_tokens": trace.output(request).tolist(),
        }
        out.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")


class _Pool:
    """Tokens in runs: one run holds the growing sequence of a conversation, for as long as it only grows."""

    def __init__(self) -> None:
        self.pieces: list[list[Tokens]] = []
        self.session_to_last: dict[int | str, tuple[int, Tokens]] = {}

    def add(self, session: int | str, inputs: Tokens, outputs: Tokens) -> tuple[int, int]:
        """Store a request. Returns: its run and the length of its sequence, which starts where the run does."""
        sequence = np.concatenate((inputs, outputs))
        run, last = self.session_to_last.get(session, (-1, sequence[:0]))
        if last.size and last.size <= inputs.size and np.array_equal(inputs[: last.size], last):
            self.pieces[run].append(sequence[last.size :].copy())
        else:
            run = len(self.pieces)
            self.pieces.append([sequence])
        self.session_to_last[session] = (run, sequence)
        return run, sequence.size

    def run_starts(self) -> NDArray[np.int64]:
        sizes = np.array([sum(piece.size for piece in run) for run in self.pieces], dtype=np.int64)
        return np.cumsum(sizes) - sizes

    def tokens(self) -> Tokens:
        return np.concatenate([piece for run in self.pieces for piece in run])


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"a line must be a JSON object, got {type(row).__name__}")
    for key in KEYS:
        if row.get(key) is None:
            raise ValueError(f"{key} is {'null' if key in row else 'missing'}")
    return row


def _session_id(row: dict[str, Any]) -> int | str:
    value = row["session_id"]
    return value if isinstance(value, str) else _integer("session_id", value)


def _integer(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise ValueError(f"{key} must be an integer below 2**63, got {_shown(value)}")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"ts must be a finite number, got {_shown(value)}")


def _tokens(key: str, row: dict[str, Any]) -> Tokens:
    """One list as int32. The type of each element is looked at, since numpy would take true for 1."""
    values = row[key]
    if not isinstance(values, list):
        raise ValueError(f"{key} must be a list, got {type(values).__name__}")
    counted = row.get(f"num_{key}")
    if counted is not None and counted != len(values):
        raise ValueError(f"num_{key} is {_shown(counted)}, but {key} holds {len(values)} tokens")
    if not values:
        return np.empty(0, np.int32)
    if set(map(type, values)) == {int}:
        wide = np.asarray(values)
        if wide.dtype == np.int64 and wide.min() >= 0 and wide.max() <= MAX_TOKEN:
            return wide.astype(np.int32)
    at = next(i for i, value in enumerate(values) if type(value) is not int or not 0 <= value <= MAX_TOKEN)
    raise ValueError(f"{key}: a token must be an integer in [0, 2**31), got {_shown(values[at])} at position {at}")


def _shown(value: Any) -> str:
    """A value short enough for an error message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _numbered(session_ids: list[int | str]) -> NDArray[np.int64]:
    if all(isinstance(session, int) for session in session_ids):
        return np.array(session_ids, dtype=np.int64)
    numbers: dict[int | str, int] = {}
    return np.array([numbers.setdefault(session, len(numbers)) for session in session_ids], dtype=np.int64)
