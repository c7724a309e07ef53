"""What several parts of the evaluation plan with: EPLB's replica counts, placements by system, the models' loads."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact import elastic_moe as moe

NODES, SLOTS, MIN_REPLICAS = 10, 6, 2
"""The paper's testbed, and f (Lazarus, section 6.1)."""

STEP_200 = 201
"""The recorded iteration at the paper's step 200: the trace has each tenth, from 1 on."""

LABELS = {"mro": "MRO", "best": "best", "spread": "spread", "compact": "compact", "random": "random", "eplb": "EPLB"}
EXPERT_PARAMETERS = {"DeepSeek-V2-Lite": 3 * 2048 * 1408, "OLMoE": 3 * 2048 * 1024}
"""Hidden size times that of an expert, three matrices."""


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
    free = num_slots - min_replicas * len(loads)
    if free < 0:
        rule = f"num_slots must be at least {num_slots - free}, {min_replicas} for each of {len(loads)} experts"
        raise ValueError(f"{rule}, got {num_slots}")
    replicas = [min_replicas] * len(loads)
    heaviest = [(-load / min_replicas, expert) for expert, load in enumerate(loads)]
    heapq.heapify(heaviest)
    for _ in range(free):
        expert = heaviest[0][1]
        replicas[expert] += 1
        heapq.heapreplace(heaviest, (-loads[expert] / replicas[expert], expert))
    return replicas


SYSTEMS = {
    "Lazarus": (moe.allocate, "mro"),
    "best": (moe.allocate, "best"),
    "spread": (moe.allocate, "spread"),
    "EPLB": (allocate_balanced, "eplb"),
    "EPLB + best": (allocate_balanced, "best"),
}
"""How replicas are counted and placed: by equation 1 or for balance alone. EPLB also packs for balance."""


def placed(
    system: str,
    load: Sequence[float],
    nodes: int = NODES,
    slots: int = SLOTS,
    min_replicas: int = MIN_REPLICAS,
    **options: Any,
) -> moe.Placement:
    """One layer counted and placed by a system of `SYSTEMS`, or by equation 1 and a method; options as `place`."""
    count, method = SYSTEMS.get(system, (moe.allocate, system))
    return moe.place(method, count(load, nodes * slots, min_replicas), [slots] * nodes, loads=load, **options)


def loads_of(model: str, iteration: int = STEP_200) -> tuple[str, NDArray[np.int64]]:
    """Name of the trace, and loads [L, E]: GPTs at an iteration of their hottest experts, others over all recorded.

    Raises: ValueError if the model is unknown
    """
    if model in moe.PRESETS:
        gpt = moe.PRESETS[model]
        trace = moe.top_experts(moe.smartmoe_loads(), gpt.num_layers, gpt.num_experts, iteration=iteration)
        return trace.name, trace.at(iteration)
    if model not in EXPERT_PARAMETERS:
        raise ValueError(f"a model must be one of {', '.join([*moe.PRESETS, *EXPERT_PARAMETERS])}, got {model!r}")
    trace = moe.esft_loads() if model == "DeepSeek-V2-Lite" else moe.olmoe_loads()
    return trace.name, trace.counts_ILE.sum(axis=0)


def text(numbers: Sequence[int]) -> str:
    """Numbers as one value of a table."""
    return ",".join(map(str, numbers))
