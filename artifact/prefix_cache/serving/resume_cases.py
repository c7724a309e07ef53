"""Does a model resume from its states? A suite for any hybrid model of `transformers`.

Each case holds a resumed prefill against a cold one of the same tokens. The states of a prefix are taken out, put back
twice, and continued by one or several tokens, with decoding in between. A control, in which the recurrent states
are put back as zeros, must differ: a suite that it passes would prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from artifact.prefix_cache.serving.model_states import DIRECT, ModelStates, Running
from artifact.prefix_cache.workloads.traces import Tokens

CHUNK = 32


class Case(NamedTuple):
    """A boundary, and the pieces in which the tokens after it are run."""

    name: str
    prefix: int
    pieces: tuple[int, ...]


def cases(chunk: int = CHUNK) -> list[Case]:
    """Every kind of boundary: a multiple of the chunk and not, one token and several, one prefix token."""
    boundaries = {
        "at a chunk's end": 2 * chunk,
        "within a chunk": 2 * chunk + 5,
        "one before a chunk's end": 2 * chunk - 1,
        "after one token": 1,
    }
    suffixes = {
        "one token": (1,),
        "several": (7,),
        "more than a chunk": (chunk + 3,),
        "in pieces": (3, 1, chunk),
        "token by token": (1, 1, 1, 1, 1),
    }
    return [
        Case(f"{boundary}, {suffix}", prefix, pieces)
        for boundary, prefix in boundaries.items()
        for suffix, pieces in suffixes.items()
    ]


def chunk_of(model: PreTrainedModel) -> int:
    """Tokens of a chunk of the model's scan; 32 where its configuration names none."""
    config = model.config.get_text_config(decoder=True)
    return next((int(getattr(config, n)) for n in ("mamba_chunk_size", "chunk_size") if hasattr(config, n)), CHUNK)


def conformance(model: PreTrainedModel, *, states: ModelStates | None = None, seed: int = 0) -> pd.DataFrame:
    """Hold resumed prefills of `model` against cold ones.

    Returns: one row per case: `case`, `prefix_tokens`, `suffix_tokens`; the largest difference of logits from a cold
             prefill resumed the first and the second time (a decoding from the restored state in between), of a model
             called as its class is by default, and of the control; `tolerance`; `bit_equal`: the resumed logits are
             those of the same split computed cold; `holds`: both within the tolerance, the control outside of it
    """
    states = states or ModelStates(model)
    rng = np.random.default_rng(seed)
    rows = []
    for case in cases(min(chunk_of(model), 256)):
        tokens = rng.integers(states.config.vocab_size, size=case.prefix + sum(case.pieces)).astype(np.int32)
        rows.append(_row(states, case, tokens))
    return pd.DataFrame(rows)


def _row(states: ModelStates, case: Case, tokens: Tokens) -> dict[str, Any]:
    cold = states.run(states.start(), tokens, all_logits=True)[case.prefix :]
    running = states.start()
    states.run(running, tokens[: case.prefix])
    middle = case.prefix // 2
    segments = [states.kv(running, 0, middle), states.kv(running, middle, case.prefix)]
    checkpoint = states.checkpoint(running)
    split = _run(states, running, tokens, case)
    first = _run(states, states.restore(segments, checkpoint, case.prefix), tokens, case)
    decoding = states.restore(segments, checkpoint, case.prefix)
    for _ in range(3):
        assert decoding.logits is not None
        states.run(decoding, decoding.logits.argmax()[None])
    second = _run(states, states.restore(segments, checkpoint, case.prefix), tokens, case)
    default = _run(states, states.restore(segments, checkpoint, case.prefix), tokens, case, way=DIRECT)
    lost = [torch.zeros_like(state) for state in checkpoint[:-1]] + checkpoint[-1:]
    control = _run(states, states.restore(segments, lost, case.prefix), tokens, case)
    difference = states.tolerance.difference
    row: dict[str, Any] = {
        "case": case.name,
        "prefix_tokens": case.prefix,
        "suffix_tokens": sum(case.pieces),
        "difference": difference(first, cold),
        "difference_again": difference(second, cold),
        "difference_by_default": difference(default, cold),
        "difference_of_control": difference(control, cold),
        "tolerance": states.tolerance.limit,
        "bit_equal": torch.equal(first, split) and torch.equal(second, split),
    }
    within = max(row["difference"], row["difference_again"]) <= states.tolerance.limit
    return {**row, "holds": within and row["difference_of_control"] > states.tolerance.limit}


def summary(table: pd.DataFrame, model: PreTrainedModel, states: ModelStates) -> dict[str, Any]:
    """What the suite says of a model, as the command line prints it."""
    tolerance = states.tolerance.limit
    return {
        "class": type(model).__name__,
        "device": str(states.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tolerance": tolerance,
        "cases": len(table),
        "largest_difference": float(table[["difference", "difference_again"]].to_numpy().max()),
        "largest_difference_by_default": float(table["difference_by_default"].max()),
        "smallest_difference_of_control": float(table["difference_of_control"].min()),
        "bit_equal_to_same_split": bool(table["bit_equal"].all()),
        "resumes_by_default": bool(table["difference_by_default"].max() <= tolerance),
        "resumed": states.resume,
        "reason": states.resume_reason,
        "scan": states.scan,
        "resumes": bool(table["holds"].all()),
    }


def _run(states: ModelStates, running: Running, tokens: Tokens, case: Case, way: str | None = None) -> Tensor:
    parts = []
    for start, stop in pairwise(_edges(case.prefix, case.pieces)):
        parts.append(states.run(running, tokens[start:stop], all_logits=True, way=way))
    return torch.cat(parts)


def _edges(start: int, pieces: Sequence[int]) -> Iterator[int]:
    yield start
    for piece in pieces:
        start += piece
        yield start
