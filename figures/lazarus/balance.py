"""Replica counts for balance alone, as inference systems choose them: what Lazarus's counts are compared with."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def allocate_balanced(loads: Sequence[float], num_slots: int, min_replicas: int = 1) -> list[int]:
    """Replicas of each expert, in the order given: each further slot to the expert with most load a replica.

    It follows the description of the replication step of DeepSeek's expert parallelism load balancer (EPLB), which has
    one replica of each expert at least; here it may be more. Ties go to the lower number. No other counts have a
    smaller largest load of a replica.
    Raises: ValueError for no experts, a negative load, min_replicas < 1, or slots that do not hold min_replicas of all
    """
    if not loads:
        raise ValueError("loads must name at least one expert, got none")
    if min(loads) < 0:
        raise ValueError(f"a load must not be negative, got {min(loads)}")
    if min_replicas < 1:
        raise ValueError(f"min_replicas must be at least 1, got {min_replicas}")
    if num_slots < min_replicas * len(loads):
        rule = (
            f"num_slots must be at least {min_replicas * len(loads)}, {min_replicas} for each of {len(loads)} experts"
        )
        raise ValueError(f"{rule}, got {num_slots}")
    replicas = [min_replicas] * len(loads)
    heaviest = [(-load / min_replicas, expert) for expert, load in enumerate(loads)]
    heapq.heapify(heaviest)
    for _ in range(num_slots - min_replicas * len(loads)):
        expert = heaviest[0][1]
        replicas[expert] += 1
        heapq.heapreplace(heaviest, (-loads[expert] / replicas[expert], expert))
    return replicas
