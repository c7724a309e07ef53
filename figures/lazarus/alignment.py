"""Node orders of the layers of a model, chosen jointly: the model recovers only if every layer does.

Each layer's placement says which experts are together, not which nodes hold them. Where the layers put their rarest
experts on the same nodes, the failures that one does not survive are those that the others do not survive either; with
a different order in each layer almost every set of failures hits some layer. `align` searches for a permutation of the
nodes of each layer.

Shape legend: L = layers, N = nodes, H = holder sets of all layers, W = words of 64 failure sets each, M = moves
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain

import numba
import numpy as np

from artifact.elastic_moe import Placement, recovery
from artifact.elastic_moe.placement.search import COLD, MOVES, RESTARTS, WARM, SearchProblem
from artifact.elastic_moe.placement.search_kernels import EQUAL, Integers, bit_count

COUNTED_SETS = 1 << 16  # failure sets that guide the search: all of them on up to 16 nodes, else a sample
DRAWN_SETS = 1 << 12
JOINS = 8  # attempts at a layer that joins the others
HOT = 0.5  # growth of the loss accepted once in e times at the first move of a layer that joins
WORK = 400_000_000  # words touched by the moves of all restarts at most; each makes MOVES at most


def align(
    placements: Sequence[Placement], *, failures: int | None = None, failure_probability: float = 0.1, seed: int = 0
) -> list[Placement]:
    """The layers with their nodes in orders in which all of them survive most often; never worse than as given.

    placements: [L], one a layer, all of N nodes; node i of each layer becomes the same node
    failures, failure_probability: the objective, as in `search`, of the joint recovery over all layers
    Tried first are the orders given and the same order by group in all layers, which serves the groups of MRO; these
    are left as they are if the model then survives all that its worst layer does. Otherwise two nodes of a layer change
    places, by simulated annealing. On more than 24 nodes losses can be estimates, and win only beyond doubt.
    The paper says nothing of layers: its recovery probability is that of one.
    Raises: ValueError for no placement, layers of different node counts, and objectives as `search`
    """
    layers = list(placements)
    sizes = sorted({layer.num_nodes for layer in layers})
    if len(sizes) != 1:
        raise ValueError(f"all layers must be on the same nodes, got placements on {sizes} nodes")
    if failures is not None and not 0 <= failures <= sizes[0]:
        raise ValueError(f"failures must be in [0, {sizes[0]}], the number of nodes, got {failures}")
    if not 0 <= failure_probability <= 1:
        raise ValueError(f"failure_probability must be in [0, 1], got {failure_probability}")
    joint = _joint(layers)
    slots = tuple(max(len(node), 1) for node in joint.nodes)
    problem = SearchProblem(tuple(joint.replicas), slots, failures, failure_probability, seed)
    starts = np.array([[range(sizes[0])] * len(layers), [_by_group(layer) for layer in layers]])
    found, loss = _best(problem, [ordered(layers, orders_LN) for orders_LN in starts])
    alone = [recovery(layer).good for layer in dict.fromkeys(layers)]  # no orders lose less than the worst layer
    if loss > (1 + EQUAL) * max(problem.loss_of(good) if good is not None else 0.0 for good in alone):
        places = _searched(problem, layers, list(starts.argsort(axis=2)))
        found, _ = _best(problem, [found, *(ordered(layers, place_LN.argsort(axis=1)) for place_LN in places)])
    return found


def _best(problem: SearchProblem, models: Sequence[list[Placement]]) -> tuple[list[Placement], float]:
    """The model with the least loss, and this; the first of equals, and of what an estimate cannot tell apart."""
    judged = [problem.judged(_joint(layers)) for layers in models]
    best = problem.best(judged)
    return models[judged.index(best)], best.loss


def _joint(layers: Sequence[Placement]) -> Placement:
    """All layers as one whose experts are numbered on."""
    *first, experts = accumulate((layer.num_experts for layer in layers), initial=0)
    held = [
        [[start + each for each in node] for node in layer.nodes] for start, layer in zip(first, layers, strict=True)
    ]
    return Placement(tuple(tuple(chain.from_iterable(nodes)) for nodes in zip(*held, strict=True)), experts)


def ordered(layers: Sequence[Placement], orders_LN: Iterable[Integers]) -> list[Placement]:
    """The layers with their nodes in these orders: for each node of the model, the node of the layer it becomes."""
    pairs = zip(layers, orders_LN, strict=True)
    return [Placement(tuple(layer.nodes[node] for node in order), layer.num_experts) for layer, order in pairs]


def _smallest_sets(layer: Placement) -> list[tuple[int, ...]]:
    """Holder sets that contain no other, smaller ones first: they alone decide what is survived."""
    kept: list[frozenset[int]] = []
    for holders in sorted({frozenset(nodes) for nodes in layer.holders}, key=lambda nodes: (len(nodes), sorted(nodes))):
        if not any(holders >= smaller for smaller in kept):
            kept.append(holders)
    return [tuple(sorted(holders)) for holders in kept]


def _by_group(layer: Placement) -> list[int]:
    """Nodes of the smallest holder sets first, set by set, those that share no node with earlier ones before others."""
    disjoint: list[int] = []
    others: list[int] = []
    for holders in _smallest_sets(layer):
        (others if set(holders) & set(disjoint) else disjoint).extend(holders)
    return list(dict.fromkeys([*disjoint, *others, *range(layer.num_nodes)]))


def _searched(problem: SearchProblem, layers: Sequence[Placement], starts: Sequence[Integers]) -> list[Integers]:
    """Places found from each of the starts, and from the layers of the last one placed one by one.

    Places: [L, N], for each node of a layer the node of the model that it becomes
    """
    smallest = [_smallest_sets(layer) for layer in layers]
    sets = problem.failure_sets(COUNTED_SETS if 1 << problem.num_nodes <= COUNTED_SETS else DRAWN_SETS)
    members = np.array([node for each in smallest for nodes in each for node in nodes], dtype=np.int64)
    first_L = np.cumsum([0] + [len(each) for each in smallest])
    first_H = np.cumsum([0] + [len(nodes) for nodes in chain.from_iterable(smallest)])
    touched = len(sets.weight_W) * (len(layers) + len(members) // len(layers) + 1)
    moves = min(MOVES, WORK // (RESTARTS * touched))
    generator = np.random.default_rng(problem.seed)
    failed_WN = np.ascontiguousarray(sets.failed_NW.T)

    def improved(place_LN: Integers, layer_M: Integers, warm: float) -> tuple[Integers, float]:
        """After moves of these layers, the best places and their loss."""
        pairs_M2 = generator.integers(problem.num_nodes, size=(len(layer_M), 2))
        growth_M = -np.geomspace(warm, COLD, len(layer_M)) * np.log1p(-generator.random(len(layer_M)))
        holders = first_L, first_H, members
        return _exchange_nodes(place_LN.copy(), *holders, failed_WN, sets.weight_W, layer_M, pairs_M2, growth_M)

    def one_by_one(start_LN: Integers) -> Integers:
        """The layers in turn, each in the best of a few places found for it beside those before it."""
        place_LN = start_LN.copy()
        alone_M = np.ones(moves // (JOINS * len(place_LN)), dtype=np.int64)
        for layer in range(1, len(place_LN)):
            tried = []
            for _ in range(JOINS):
                tried.append(improved(place_LN[: layer + 1], layer * alone_M, HOT))
                place_LN[layer] = generator.permutation(place_LN[layer])
            place_LN[layer] = min(tried, key=lambda each: each[1])[0][layer]
        return place_LN

    places = []
    for restart in range(RESTARTS):
        turn = restart % (len(starts) + 1)
        start_LN = starts[turn] if turn < len(starts) else one_by_one(starts[-1])
        places.append(improved(start_LN, generator.integers(len(start_LN), size=moves), WARM)[0])
    return places


@numba.njit(cache=True)
def _exchange_nodes(place_LN, first_L, first_H, members, failed_WN, weight_W, layer_M, pairs_M2, growth_M):
    """Let two nodes of a layer change places, move by move, where the loss grows by no more than growth_M of itself.

    place_LN: [L, N], the model's node of each node of the layer; first_L: [L + 1], first holder set of each layer;
    first_H: [H + 1], first member of each holder set; members: nodes of the layer
    Returns: [L, N], the places with the least loss seen; this loss
    """
    num_layers, num_words = len(place_LN), len(weight_W)
    lost_LW = np.zeros((num_layers, num_words), dtype=np.uint64)
    for layer in range(num_layers):
        _renew_layer(layer, place_LN, first_L, first_H, members, failed_WN, lost_LW)
    best_LN = place_LN.copy()
    loss = best = np.inf  # the first move is made in any case: the start is known to the caller
    for move in range(len(layer_M)):
        layer, i, j = layer_M[move], pairs_M2[move, 0], pairs_M2[move, 1]
        if i == j:
            continue
        limit, after = loss * (1 + growth_M[move]), 0.0
        place_LN[layer, i], place_LN[layer, j] = place_LN[layer, j], place_LN[layer, i]
        _renew_layer(layer, place_LN, first_L, first_H, members, failed_WN, lost_LW)
        for w in range(num_words):
            lost = lost_LW[0, w]
            for other in range(1, num_layers):
                lost |= lost_LW[other, w]
            after += weight_W[w] * bit_count(lost)
            if after > limit:
                break
        if after > limit:
            place_LN[layer, i], place_LN[layer, j] = place_LN[layer, j], place_LN[layer, i]
            _renew_layer(layer, place_LN, first_L, first_H, members, failed_WN, lost_LW)
            continue
        loss = after
        if loss < best:
            best = loss
            for row in range(num_layers):
                for node in range(place_LN.shape[1]):
                    best_LN[row, node] = place_LN[row, node]
    return best_LN, best


@numba.njit(cache=True)
def _renew_layer(layer, place_LN, first_L, first_H, members, failed_WN, lost_LW):
    """Put down which failure sets a layer does not survive: those with all nodes of one of its holder sets."""
    for w in range(lost_LW.shape[1]):
        lost = np.uint64(0)
        for holder in range(first_L[layer], first_L[layer + 1]):
            gone = np.uint64(0xFFFFFFFFFFFFFFFF)
            for at in range(first_H[holder], first_H[holder + 1]):
                gone &= failed_WN[w, place_LN[layer, members[at]]]
            lost |= gone
        lost_LW[layer, w] = lost
