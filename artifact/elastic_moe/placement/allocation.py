"""How many replicas each expert has: in proportion to its load, and at least f.

Glossary: load = t_e, num_slots = N c, min_replicas = f (Lazarus, section 4.1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def allocate(loads: Sequence[int] | Sequence[float], num_slots: int, min_replicas: int = 1) -> list[int]:
    """Replicas of each expert, in the order given; their sum is `num_slots`.

    Experts are served by ascending load, ties by expert number: each takes its share of the remaining slots, rounded
    down, and at least f (Lazarus, equation 1). Loads are computed as exact fractions, so that no rounding decides.
    The paper leaves two cases open: if the slots do not suffice for f replicas of every expert, f is lowered to what
    they hold; if there is no load at all, all experts count the same.
    Raises: ValueError for no experts, a load that is negative or not finite, fewer slots than experts, min_replicas < 1
    """
    if not loads:
        raise ValueError("loads must name at least one expert, got none")
    for load in loads:
        if not math.isfinite(load) or load < 0:
            raise ValueError(f"a load must be finite and not negative, got {load}")
    if num_slots < len(loads):
        raise ValueError(f"num_slots must be at least one an expert, got {num_slots} for {len(loads)} experts")
    if min_replicas < 1:
        raise ValueError(f"min_replicas must be at least 1, got {min_replicas}")
    floor = min(min_replicas, num_slots // len(loads))
    exact = [Fraction(load) for load in loads] if any(loads) else [Fraction(1)] * len(loads)
    scale = math.lcm(*(load.denominator for load in exact))
    parts = [int(load * scale) for load in exact]

    replicas = [0] * len(parts)
    slots_left, load_left = num_slots, sum(parts)
    for expert in sorted(range(len(parts)), key=lambda expert: (parts[expert], expert)):
        replicas[expert] = max(parts[expert] * slots_left // load_left, floor)
        slots_left -= replicas[expert]
        load_left -= parts[expert]
    return replicas
