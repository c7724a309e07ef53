"""Time to first token as Marconi's evaluation has it: a line over the tokens that are not reused (section 5.2).

The paper profiles Jamba-1.5-Mini on four A100 at inputs of 50, 100, ... 31,950 tokens, fits a line and looks a
request up at the first profiled length above its own. Attending to the reused prefix, loading its states, queueing
and a two-pass prefill cost nothing in it.

The profile itself is not redistributed. The line's constants (17.81 ms and 0.05296 ms a token, R2 = 0.9987) are
given here to the digits that the paper's rounded times and ratios determine together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP_TOKENS = 50
NUM_STEPS = 639
INTERCEPT_MS = 17.814
MS_PER_TOKEN = 0.0529647


def ttft_ms(computed_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Time to first token in ms for each number of tokens to compute.

    Raises: ValueError for a negative number
    """
    computed = np.asarray(computed_tokens)
    if np.any(computed < 0):
        raise ValueError(f"computed_tokens must not be negative, got {computed.min()}")
    step = np.minimum(computed // STEP_TOKENS + 1, NUM_STEPS)
    return INTERCEPT_MS + MS_PER_TOKEN * STEP_TOKENS * step


def p95_ms(computed_tokens: NDArray[np.int64]) -> float:
    """The 95th percentile of the times of these requests, in ms."""
    return float(np.percentile(ttft_ms(computed_tokens), 95))
