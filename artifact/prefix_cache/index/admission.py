"""Which states a request leaves behind (Marconi, section 4.1), and other checkpoint policies to compare it with.

A prefix is reused either as a conversation's history (input and output), or as an input that others share. The
first is served by a checkpoint after the last decoded token, the second by one at which the new sequence leaves a
path that is already in the tree: at most two a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit

_END, _BRANCH, _ALIGNED, _EVERY = range(4)


class CheckpointRule(NamedTuple):
    """A checkpoint policy as the compiled cache reads it."""

    kind: int
    stride: int


def _check_tokens(name: str, number: int) -> None:
    if not 1 <= number < 2**31:
        raise ValueError(f"{name} must be positive and below 2**31, got {number}")


@dataclass(frozen=True)
class AtBranch:
    """After the last token, and at the branch-off point: a prefill in two passes (Marconi)."""

    def rule(self) -> CheckpointRule:
        """For the compiled cache."""
        return CheckpointRule(_BRANCH, 1)


@dataclass(frozen=True)
class EndOnly:
    """After the last token alone: histories are reused, shared inputs are not."""

    def rule(self) -> CheckpointRule:
        """For the compiled cache."""
        return CheckpointRule(_END, 1)


@dataclass(frozen=True)
class ChunkAligned:
    """After the last token, and at the last chunk's end before the branch-off point (chunked state passing)."""

    chunk: int = 32

    def __post_init__(self) -> None:
        _check_tokens("chunk", self.chunk)

    def rule(self) -> CheckpointRule:
        """For the compiled cache."""
        return CheckpointRule(_ALIGNED, self.chunk)


@dataclass(frozen=True)
class EveryBlocks:
    """After the last token, and after every `blocks` blocks of `block_size` tokens."""

    block_size: int = 32
    blocks: int = 1

    def __post_init__(self) -> None:
        for name in ("block_size", "blocks"):
            _check_tokens(name, getattr(self, name))

    def rule(self) -> CheckpointRule:
        """For the compiled cache."""
        return CheckpointRule(_EVERY, self.block_size * self.blocks)


CheckpointPolicy = AtBranch | EndOnly | ChunkAligned | EveryBlocks
"""Which checkpoints a request leaves behind."""

CHECKPOINT_POLICIES = "branch, end, chunk:TOKENS or every:TOKENS"


def parse_checkpoint_policy(text: str) -> CheckpointPolicy:
    """`branch`, `end`, `chunk:32` or `every:64`. Raises: ValueError naming what is not known."""
    name, _, number = text.partition(":")
    if name in ("branch", "end") and not number and ":" not in text:
        return AtBranch() if name == "branch" else EndOnly()
    if name not in ("chunk", "every") or not number.isdecimal():
        raise ValueError(f"checkpoints must be {CHECKPOINT_POLICIES}, got {text!r}")
    return ChunkAligned(int(number)) if name == "chunk" else EveryBlocks(int(number))


@njit(cache=True)
def checkpoint_depths(rule, resumable_tokens, matched_tokens, num_tokens, computed_from, available):
    """Depths at which caching a sequence of `num_tokens` adds a state, ascending, given its match. [count]

    computed_from: tokens that the request resumed: it passed through no state up to there
    available:     depths at which the caller has a state; empty if it has every one that it passed through
    """
    stride, start = rule.stride, max(resumable_tokens, computed_from)
    count = 1 + (num_tokens // stride - start // stride if rule.kind == _EVERY else 1)
    wanted, found = np.empty(count, np.int64), 0
    if rule.kind == _EVERY:
        for depth in range((start // stride + 1) * stride, num_tokens, stride):
            wanted[found] = depth
            found += 1
    elif rule.kind != _END and matched_tokens < num_tokens:
        branch = matched_tokens - matched_tokens % stride if rule.kind == _ALIGNED else matched_tokens
        if branch > start:
            wanted[found] = branch
            found += 1
    if num_tokens > resumable_tokens:
        wanted[found] = num_tokens
        found += 1
    if len(available) == 0:
        return wanted[:found]
    kept = 0
    for depth in wanted[:found]:
        for held in available:
            if held == depth:
                wanted[kept] = depth
                kept += 1
                break
    return wanted[:kept]


@njit(cache=True)
def bytes_needed(costs, num_states, num_tokens, matched_tokens):
    """Bytes of the checkpoints and of the KV that is not yet in the tree."""
    return num_states * costs.checkpoint_bytes + costs.token_bytes * (num_tokens - matched_tokens)


@njit(cache=True)
def num_states_published(found):
    """What the published simulator reserves: the last token's checkpoint even if the sequence ends in the tree."""
    return 2 if found.matched_tokens > found.resumable_tokens else 1


EVERY_STATE: Any = np.empty(0, np.int64)
"""`available` if every state can be had, as in a simulation."""
