"""Allocation and placement without a cluster: skew of loads, worked examples, where MRO is optimal, whole models.

Numbers of survived failure sets are exact. Experts and nodes are numbered from 1 in tables, as in the paper's figures.

Shape legend: L = layers, E = experts, N = nodes
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import pandas as pd

from artifact.elastic_moe import (
    PRESETS,
    WORKLOADS,
    LoadTrace,
    Placement,
    allocate,
    assign_nodes,
    holdings_of,
    mro_closed_form,
    mro_group_sizes,
    place,
    recovery,
    routing,
    smartmoe_loads,
    top_experts,
    transfers,
    upper_bound,
)
from figures.lazarus.alignment import align
from figures.lazarus.balance import allocate_balanced

NODES, SLOTS, MIN_REPLICAS = 10, 6, 2
"""The testbed of the paper, and f (Lazarus, section 6.1)."""

LABELS = {"MRO": "mro", "best": "best", "spread": "spread", "compact": "compact", "random": "random", "EPLB": "eplb"}
ASSIGNMENTS: tuple[Literal["greedy", "optimal"], ...] = ("greedy", "optimal")
NUMBERINGS = ("as recorded", "rising load", "falling load")
PLAN_A = ((0, 2, 2, 3), (0, 1, 1, 3), (1, 1, 3, 3), (1, 2, 3, 3), (2, 2, 3, 3))
"""Figure 4's first plan by what is known of it: which pairs of its five nodes recover. These fix the holders of three
experts, nodes 1-2, 2-3-4 and 1-4-5; the fourth is everywhere, and second copies on a node fill the slots."""

COUNTEREXAMPLES: Mapping[str, tuple[int, int, tuple[int, ...], int]] = {
    "the smallest": (4, 2, (2, 3, 3), 2),
    "one failure is fatal": (4, 6, (3,) * 8, 1),
    "half as often": (8, 4, (6, 6, 6, 7, 7), 6),
    "seven nodes": (7, 3, (4, 4, 4, 4, 5), 4),
}
"""Nodes, slots, replicas and failures for which MRO is not the best placement."""

TABLE_2 = (("GPT-S", 201, 2), ("GPT-S", 4001, 3), ("GPT-L", 201, 4), ("GPT-L", 4001, 5))
"""Model, recorded iteration and nodes lost at once (Lazarus, table 2). The iterations are those at steps 200 and 4,000
that the paper names: the trace has each tenth, from 1 on."""


def load_skew(*, traces: Sequence[str]) -> pd.DataFrame:
    """How much of a layer's tokens its hottest experts have. One row per (trace, iteration, layer).

    traces: names of recorded loads, of `routing.LOAD_TRACES`
    """
    tables = []
    for name in traces:
        trace = routing.LOAD_TRACES[name]()
        falling_ILE = -np.sort(-trace.counts_ILE, axis=2)
        total_IL = falling_ILE.sum(axis=2)
        iterations, layers, experts = trace.counts_ILE.shape
        columns = {
            "trace": trace.name,
            "experts": experts,
            "iteration": np.repeat(trace.iterations, layers),
            "layer": np.tile(np.arange(layers), iterations),
            "hottest_pct": (100 * falling_ILE[..., 0] / total_IL).ravel(),
            "hottest_two_pct": (100 * falling_ILE[..., :2].sum(axis=2) / total_IL).ravel(),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def worked_examples() -> pd.DataFrame:
    """The plans of figures 4 and 5. One row per (case, plan, node, slot).

    Of `sets` sets of so many failures, `good` are survived, by the live nodes in `survivors`. Figure 5's other plan is
    not published: this is one that fails as often as the paper says.
    """
    plan_a = Placement(PLAN_A, 4)
    plan_b = place("mro", plan_a.replicas, [4] * 5)
    overlapping = place("mro", [2, 2, 3, 3], [2] * 5)
    line = Placement(((0, 1), (0, 2), (1, 3), (2, 3), (2, 3)), 4)
    return pd.concat(
        [
            _drawn("figure 4", "A", plan_a, 3),
            _drawn("figure 4", "B", plan_b, 3),
            _drawn("figure 5", "apart", line, 3),
            _drawn("figure 5", "MRO", overlapping, 3),
        ],
        ignore_index=True,
    )


def counterexamples() -> pd.DataFrame:
    """MRO and the best placement where they differ. One row per (case, plan, node, slot)."""
    tables = []
    for case, (nodes, slots, replicas, failures) in COUNTEREXAMPLES.items():
        for label in ("MRO", "best"):
            placement = place(LABELS[label], replicas, [slots] * nodes, failures=failures)
            tables.append(_drawn(case, label, placement, failures))
    return pd.concat(tables, ignore_index=True)


def small_cases(*, sizes: Sequence[tuple[int, int]], max_experts: int, most: int) -> pd.DataFrame:
    """MRO against the best placement and the upper bound, for full slots and at least one replica of each expert.

    sizes: nodes and slots; most: so many cases a size, evenly from all in lexicographic order of their replicas
    One row per (nodes, slots, replicas, failures): survived sets by method, of `sets`; `whole` where no group of nodes
    is cut short. The columns `keeps_` say for the case whether fewer than f failures are always survived, f being the
    fewest replicas; of `best`, with the objective at these failures and with its default.
    """
    rows = []
    for nodes, slots in sizes:
        cases = [each for experts in range(2, max_experts + 1) for each in _partitions(nodes * slots, experts)]
        for replicas in sorted(cases)[:: max(1, -(-len(cases) // most))]:
            rows += _compared(nodes, slots, replicas)
    return pd.DataFrame(rows)


def hot_expert(*, ratios: Sequence[float], seeds: int) -> pd.DataFrame:
    """One layer of eight experts, one hotter than the others, on the testbed (Lazarus, figure 10b).

    ratios: load of the hot expert over the mean (`of` "mean") and over another's (`of` "another"): the paper does not
            say which it means
    seeds:  placements at random that are averaged
    One row per (ratio, of, system, failures). "best" is the best at each number of failures.
    """
    rows = []
    for ratio in ratios:
        for of, hot in (("mean", 7 * ratio / (8 - ratio)), ("another", ratio)):
            loads = [1.0] * 7 + [hot]
            replicas = allocate(loads, NODES * SLOTS, MIN_REPLICAS)
            for system, placed in _methods(replicas, loads, seeds).items():
                dimensions = {"ratio": ratio, "of": of, "replicas": _text(replicas), "system": system}
                rows += [dimensions | each for each in _by_failures(placed, loads)]
    return pd.DataFrame(rows)


def balance_and_survival(*, seeds: int) -> pd.DataFrame:
    """Balanced loads against survived failures, one layer on the testbed. One row per (loads, system, failures).

    EPLB chooses replicas too, for balance alone; the others have those of equation (1). "best" is for its default
    objective. max_load_ratio: of the most loaded node over the mean
    """
    rows = []
    for name, loads in _skewed().items():
        replicas = allocate(loads, NODES * SLOTS, MIN_REPLICAS)
        methods = _methods(replicas, loads, seeds, at_each=False)
        methods["EPLB"] = [place("eplb", allocate_balanced(loads, NODES * SLOTS), [SLOTS] * NODES, loads=loads)]
        for system, placed in methods.items():
            rows += [{"loads": name, "system": system} | each for each in _by_failures(placed, loads)]
    return pd.DataFrame(rows)


def placement_time(*, sizes: Sequence[tuple[int, int, int]], repeats: int) -> pd.DataFrame:
    """Wall time of allocation and placement of one layer. One row per (nodes, slots, experts, loads, system, repeat).

    sizes: nodes, slots and experts. Even loads leave groups of MRO cut short, so that "best" has to search.
    """
    for nodes in (4, 9):  # what is compiled at first use is compiled now
        place("best", [3] * (2 * nodes // 3), [2] * nodes)
    rows = []
    for nodes, slots, experts in sizes:
        size = {"nodes": nodes, "slots": slots, "experts": experts}
        for name, power in (("Zipf", 1), ("even", 0)):
            loads = [rank**-power for rank in range(1, experts + 1)]
            for label in ("MRO", "best"):
                for repeat in range(repeats):
                    start = time.perf_counter()
                    place(LABELS[label], allocate(loads, nodes * slots, MIN_REPLICAS), [slots] * nodes)
                    ms = 1e3 * (time.perf_counter() - start)
                    rows.append({**size, "loads": name, "system": label, "repeat": repeat, "ms": ms})
    return pd.DataFrame(rows)


def model_recovery(*, models: Sequence[str], iterations: Sequence[int]) -> pd.DataFrame:
    """All layers of a model together after failures on the testbed, their nodes in the same order (Lazarus, figure 8).

    One row per (model, iteration, system, failures). Experts are placed in the order of their loads, which makes a
    difference to spread and compact; "best" is the best placement of each layer, aligned.
    """
    rows = []
    for model in models:
        for iteration in iterations:
            loads = _loads(model, iteration)
            for system, label in (("Lazarus", "MRO"), ("best", "best"), ("spread", "spread"), ("compact", "compact")):
                layers = _layers(label, loads.at(iteration), NODES)
                found = recovery(align(layers) if label == "best" else layers)
                for failures, probability in enumerate(found.probability):
                    dimensions = {"loads": loads.name, "model": model, "iteration": iteration, "system": system}
                    rows.append({**dimensions, "failures": failures, "probability": probability})
    return pd.DataFrame(rows)


def node_orders(*, models: Sequence[str], iterations: Sequence[int], seeds: int) -> pd.DataFrame:
    """The same layers with nodes in the same order, each in one of its own, and aligned from there.

    One row per (model, iteration, system, orders, seed, failures). "worst layer" is the least that any
    layer survives alone at each number of failures: no orders are above it.
    """
    rows: list[dict[str, Any]] = []
    for model, iteration, label in product(models, iterations, ("MRO", "best", "spread")):
        loads = _loads(model, iteration)
        layers = _layers(label, loads.at(iteration), NODES)
        alone = [recovery(layer).probability for layer in layers]
        found = {("same", 0): recovery(layers).probability}
        found["worst layer", 0] = [min(each) for each in zip(*alone, strict=True)]
        for seed in range(seeds):
            mixed = _mixed(layers, seed)
            found["independent", seed] = recovery(mixed).probability
            found["aligned", seed] = recovery(align(mixed, seed=seed)).probability
        dimensions = {"loads": loads.name, "model": model, "iteration": iteration, "system": label}
        for (orders, seed), probability in found.items():
            where = {**dimensions, "orders": orders, "seed": seed}
            rows += [{**where, "failures": k, "probability": each} for k, each in enumerate(probability)]
    return pd.DataFrame(rows)


def transferred(*, cases: Sequence[tuple[str, int, int]], most: int) -> pd.DataFrame:
    """Experts sent when nodes fail together and the others take up a new plan (Lazarus, table 2).

    cases: model, iteration and nodes lost
    most:  failure sets that are recovered from: all of them, or so many drawn from them
    One row per (model, iteration, lost, numbering, failed, method); loads stay as they were before the failure. The
    numbering decides which of several experts with equally many replicas comes first in MRO, of which the paper says
    nothing.
    """
    rows = []
    for (model, iteration, lost), numbering in product(cases, NUMBERINGS):
        loads = _loads(model, iteration)
        before, after = (_layers("MRO", loads.at(iteration), nodes, numbering) for nodes in (NODES, NODES - lost))
        for failed in _recoverable(before, lost, most):
            holdings = holdings_of(before, [node for node in range(NODES) if node not in failed])
            for method in ASSIGNMENTS:
                sent = transfers(
                    holdings, after, assign_nodes(holdings, after, method), int(WORKLOADS[model].expert_state_bytes)
                )
                case = {"loads": loads.name, "model": model, "iteration": iteration, "lost": lost}
                case |= {"numbering": numbering, "failed": _text([node + 1 for node in failed]), "method": method}
                rows.append({**case, "experts": len(sent), "bytes": sum(each.num_bytes for each in sent)})
    return pd.DataFrame(rows)


def _drawn(case: str, plan: str, placement: Placement, failures: int) -> pd.DataFrame:
    """One row per (node, slot)."""
    every = set(range(placement.num_nodes))
    whole = {"case": case, "plan": plan, "replicas": _text(placement.replicas), "failures": failures}
    whole |= {"good": _good(placement)[failures], "sets": math.comb(placement.num_nodes, failures)}
    alive = [every - set(failed) for failed in combinations(every, failures) if placement.survives(failed)]
    whole["survivors"] = " ".join(sorted(_text([node + 1 for node in sorted(nodes)]) for nodes in alive))
    return pd.DataFrame(
        {**whole, "node": number + 1, "slot": slot + 1, "expert": expert + 1}
        for number, node in enumerate(placement.nodes)
        for slot, expert in enumerate(node)
    )


def _partitions(total: int, parts: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Rising sequences of so many numbers with this sum."""
    if parts == 1:
        yield (total,)
        return
    for first in range(least, total // parts + 1):
        for rest in _partitions(total - first, parts - 1, first):
            yield (first, *rest)


def _compared(nodes: int, slots: int, replicas: tuple[int, ...]) -> list[dict[str, Any]]:
    """The rows of one case, for 1 to N - 1 failures."""
    groups = mro_group_sizes(replicas, [slots] * nodes)
    whole = len(groups) == 1 or sum(replicas[::slots]) <= nodes
    mro, bound = mro_closed_form(groups, nodes), upper_bound(replicas, slots, nodes)
    spread = _good(place("spread", replicas, [slots] * nodes))
    sure = min(replicas[0], nodes) - 1  # failures that shall be survived whichever they are
    rows = []
    default = _good(place("best", replicas, [slots] * nodes))
    for failures in range(1, nodes):
        best = mro if whole else _good(place("best", replicas, [slots] * nodes, failures=failures))
        rows.append(
            {
                "nodes": nodes,
                "slots": slots,
                "experts": len(replicas),
                "replicas": _text(replicas),
                "groups": _text(groups),
                "whole": whole,
                "failures": failures,
                "sets": math.comb(nodes, failures),
                "mro": mro[failures],
                "spread": spread[failures],
                "best": best[failures],
                "best_on_average": default[failures],
                "bound": bound[failures],
                "keeps_mro": _all_survived(mro, sure),
                "keeps_spread": _all_survived(spread, sure),
                "keeps_best": _all_survived(best, sure),
                "keeps_best_on_average": _all_survived(default, sure),
            }
        )
    return rows


def _all_survived(good: Sequence[int], failures: int) -> bool:
    return good[failures] == math.comb(len(good) - 1, failures)


def _good(placement: Placement) -> list[int]:
    good = recovery(placement).good
    assert good is not None
    return good


def _methods(
    replicas: Sequence[int], loads: Sequence[float], seeds: int, at_each: bool = True
) -> dict[str, list[Placement]]:
    """Placements by system: one, or as many as are averaged, or (best, `at_each`) one for each number of failures."""
    slots = [SLOTS] * NODES
    placed = {label: [place(method, replicas, slots, loads=loads)] for label, method in LABELS.items()}
    placed["random"] = [place("random", replicas, slots, seed=seed) for seed in range(seeds)]
    if at_each:
        placed["best"] = [place("best", replicas, slots, failures=failures) for failures in range(NODES + 1)]
    return placed


def _by_failures(placed: Sequence[Placement], loads: Sequence[float]) -> list[dict[str, Any]]:
    """Rows by number of failures: the mean of these placements, or of one for each number, that number's."""
    found = np.array([recovery(placement).probability for placement in placed])
    ratio = [placement.max_load_ratio(loads) for placement in placed]
    one_each = len(placed) == NODES + 1
    return [
        {
            "failures": failures,
            "probability": float(found[failures, failures] if one_each else found[:, failures].mean()),
            "max_load_ratio": ratio[failures] if one_each else float(np.mean(ratio)),
        }
        for failures in range(NODES + 1)
    ]


def _skewed() -> dict[str, list[float]]:
    """Loads by Zipf's law, and 87 % on two of sixteen experts (Lazarus, figure 2)."""
    zipf = {f"Zipf, {experts} experts": [1 / rank for rank in range(1, experts + 1)] for experts in (8, 12, 16)}
    return {**zipf, "87 % on two of 16": [43.5, 43.5] + [13 / 14] * 14}


def _loads(model: str, iteration: int) -> LoadTrace:
    """Of the model's layers, the hottest experts at this iteration."""
    return top_experts(smartmoe_loads(), PRESETS[model].num_layers, PRESETS[model].num_experts, iteration=iteration)


def _layers(label: str, loads_LE: np.ndarray, nodes: int, numbering: str = "rising load") -> list[Placement]:
    """A placement of each layer."""
    if numbering != "as recorded":
        loads_LE = np.sort(loads_LE, axis=1)[:, :: 1 if numbering == "rising load" else -1]
    layers = []
    for loads in loads_LE.tolist():
        replicas = allocate(loads, nodes * SLOTS, MIN_REPLICAS)
        layers.append(place(LABELS[label], replicas, [SLOTS] * nodes, loads=loads))
    return layers


def _recoverable(layers: Sequence[Placement], lost: int, most: int) -> list[tuple[int, ...]]:
    """Sets of so many failed nodes that every layer survives: all, or `most` drawn from them."""
    every = combinations(range(layers[0].num_nodes), lost)
    survived = [failed for failed in every if all(layer.survives(failed) for layer in layers)]
    if len(survived) <= most:
        return survived
    drawn = np.random.default_rng(0).choice(len(survived), size=most, replace=False)
    return [survived[number] for number in sorted(drawn)]


def _mixed(layers: Sequence[Placement], seed: int) -> list[Placement]:
    """The nodes of each layer in an order of its own."""
    rng = np.random.default_rng(seed)
    return [
        Placement(tuple(layer.nodes[node] for node in rng.permutation(layer.num_nodes)), layer.num_experts)
        for layer in layers
    ]


def _text(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
