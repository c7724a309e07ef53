"""Which states a request leaves behind: at most two checkpoints (Marconi, section 4.1).

A prefix is reused either as a conversation's history (input and output), or as an input that others share. The
first is served by a checkpoint after the last decoded token, the second by one where the new sequence leaves a
path that is already in the tree: the tree's own split.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True)
def num_checkpoints(found, num_tokens, exact):
    """Checkpoints that caching a sequence of `num_tokens` would add, given its match.

    The published simulator always asks for the last token's checkpoint, also where the sequence ends inside the
    tree; `exact` does not.
    """
    branch = 1 if found.raw > found.reused else 0
    leaf = 1 if found.raw < num_tokens or not exact else 0
    return branch + leaf


@njit(cache=True)
def bytes_needed(costs, num_tokens, found, exact):
    """Bytes of the checkpoints and of the KV that is not yet in the tree."""
    checkpoints = num_checkpoints(found, num_tokens, exact)
    return checkpoints * costs.checkpoint_bytes + costs.token_bytes * (num_tokens - found.raw)
