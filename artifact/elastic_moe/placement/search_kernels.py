"""The compiled inner loops of the search for placements.

Sets of nodes and of failure sets are bits of words. A loss is a sum of weights of failure sets.

Shape legend: N = nodes, E = experts, S = slots, W = words of 64 failure sets each, V = words of 64 nodes each,
H = 2**N sets of holders, M = moves
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

EQUAL = 1e-12  # relative difference up to which two losses count as equal
EXHAUSTED_STEPS = 30_000_000  # attempts after which `branch` ends without a proof

_ODD, _PAIR, _NIBBLE, _BYTE = (np.uint64(0x0101010101010101 * byte) for byte in (0x55, 0x33, 0x0F, 0x01))
_1, _2, _4, _56 = (np.uint64(shift) for shift in (1, 2, 4, 56))
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@numba.njit(inline="always", cache=True)
def bit_count(word):
    """Number of set bits of an unsigned word."""
    word = word - ((word >> _1) & _ODD)
    word = (word & _PAIR) + ((word >> _2) & _PAIR)
    return (((word + (word >> _4)) & _NIBBLE) * _BYTE) >> _56


@numba.njit(cache=True)
def branch(wanted_E, room_N, by_size, size_of, first_of, lost_HW, alive_S, weight_W, harmless, floor, below, enough):
    """Sets of holders with the least loss under `below`, by depth-first search over experts with ascending replicas.

    wanted_E, room_N: ascending; an expert's set has from `floor` to wanted_E nodes, a node is in at most room_N sets
    by_size, size_of, first_of: [H] sets of holders by descending size, [H] sizes, [N + 1] first position of a size
    lost_HW, alive_S, weight_W: failure sets that each set of holders loses, their live nodes, their probabilities
    Nodes with equal room that are in the same sets are interchangeable: the first nodes of such a run are taken.
    Experts that can have `harmless` holders come last: equal demands fit if the room, cut at their number, suffices
    (Gale and Ryser).
    Returns: [E] sets as bits, 0 for `harmless` nodes, -1 if no loss is under `below`; whether the search is complete
    """
    num_experts, num_nodes, num_words = len(wanted_E), len(room_N), len(weight_W)
    demand = max(harmless, floor)
    best_E = np.full(num_experts, -1)
    chosen_E = np.zeros(num_experts, dtype=np.int64)
    next_E = np.full(num_experts, -1)
    alike_E = np.zeros(num_experts + 1, dtype=np.int64)  # bit i: node i is interchangeable with node i - 1
    late_E = np.zeros(num_experts + 1, dtype=np.int64)  # experts so far that come last
    room_EN = np.zeros((num_experts + 1, num_nodes), dtype=np.int64)
    lost_EW = np.zeros((num_experts + 1, num_words), dtype=np.uint64)
    for node in range(num_nodes):
        room_EN[0, node] = room_N[node]
        if node and room_N[node] == room_N[node - 1]:
            alike_E[0] |= 1 << node
    e, steps = 0, EXHAUSTED_STEPS
    while e >= 0:
        if steps <= 0:
            return best_E, False
        steps -= 1
        at, follows = next_E[e], e > 0 and wanted_E[e - 1] == wanted_E[e]
        next_E[e] += 1
        if at < 0:
            limit = min(wanted_E[e], harmless - 1)
            if follows and chosen_E[e - 1]:  # of equal experts, the one with more holders comes first
                limit = min(limit, size_of[chosen_E[e - 1]])
            next_E[e] = first_of[limit] if limit >= floor else len(by_size)
            if wanted_E[e] < harmless or (follows and chosen_E[e - 1]):
                continue
            holders = 0
        else:
            if at == len(by_size) or size_of[by_size[at]] < floor:
                e -= 1
                continue
            holders = by_size[at]
            if holders & alike_E[e] & ~(holders << 1):
                continue
        loss = 0.0
        for w in range(num_words):
            lost_EW[e + 1, w] = lost_EW[e, w] | lost_HW[holders, w]
            loss += weight_W[w] * bit_count(lost_EW[e + 1, w])
        if loss >= below:
            continue
        late_E[e + 1] = late_E[e] + (holders == 0)
        later = num_experts - e - 1
        room, fits = 0, True
        for node in range(num_nodes):
            free = room_EN[e, node] - (holders >> node & 1)
            fits &= free >= 0
            room += min(free, later + late_E[e + 1])
            room_EN[e + 1, node] = free
        if not fits or room < floor * later + demand * late_E[e + 1]:
            continue
        steps -= 32 * num_words  # the loop below takes as long as these attempts
        need = later + late_E[e + 1]  # live nodes with less room lose one of the remaining experts
        for w in range(num_words):
            for bit in range(64):
                alive, one = alive_S[64 * w + bit], _1 << np.uint64(bit)
                if alive == len(lost_HW) - 1 or lost_EW[e + 1, w] & one:
                    continue
                room = 0
                for node in range(num_nodes):
                    if alive >> node & 1:
                        room += room_EN[e + 1, node]
                if room < need:
                    lost_EW[e + 1, w] |= one
                    loss += weight_W[w]
        if loss >= below:
            continue
        chosen_E[e] = holders
        if later > 0:
            alike_E[e + 1] = alike_E[e] & ~(holders ^ holders << 1)
            e += 1
            next_E[e] = -1
        else:
            for i in range(num_experts):  # numba takes seconds to compile the assignment of an array
                best_E[i] = chosen_E[i]
            below = loss * (1 - EQUAL)
            if loss <= enough:
                break
    return best_E, True


@numba.njit(cache=True)
def exchange(expert_S, node_S, num_experts, failed_WN, weight_W, alone_of, surcharge_of, pairs_M2, growth_M):
    """Exchange the contents of two slots, move by move, if the loss grows by at most growth_M of itself.

    expert_S: [S], expert in each slot, num_experts for a vacant one; node_S: [S], the slot's node
    failed_WN, weight_W: failure sets and their probabilities; none, W = 0, if losses are rare: the loss is then the sum
                         over experts e of P(e)^2 / sum over experts f of P(e and f lost), a lower bound (de Caen) that
                         is tight for equal and for disjoint sets of holders
    alone_of, surcharge_of: [N + 1], by number of holders; pairs_M2: [M, 2], slots
    Returns: [S], the contents with the least loss seen
    """
    num_words, num_nodes = failed_WN.shape
    copies_EN = np.zeros((num_experts + 1, num_nodes), dtype=np.int64)
    held_EV = np.zeros((num_experts, num_nodes // 64 + 1), dtype=np.uint64)
    for slot in range(len(expert_S)):
        expert, node = expert_S[slot], node_S[slot]
        copies_EN[expert, node] += 1
        if expert < num_experts:
            held_EV[expert, node >> 6] |= _1 << np.uint64(node & 63)
    lost_WE = np.zeros((num_words, num_experts), dtype=np.uint64)
    both_EE = np.zeros((num_experts, num_experts))
    crowd_E = np.zeros(num_experts)  # sums of the rows of both_EE
    count_E = np.zeros(num_experts, dtype=np.int64)
    for expert in range(num_experts):
        count_E[expert] = _renew(expert, copies_EN, failed_WN, lost_WE, held_EV, alone_of, both_EE, crowd_E)
    now_S, best_S = expert_S.copy(), expert_S.copy()
    loss = best = np.inf  # so that the first exchange is always made: the caller knows the start
    for move in range(len(pairs_M2)):
        one, two = pairs_M2[move, 0], pairs_M2[move, 1]
        a, b, here, there = now_S[one], now_S[two], node_S[one], node_S[two]
        if a == b or here == there:
            continue
        limit, after = loss * (1 + growth_M[move]), 0.0
        for attempt in range(2):
            for expert, source, target in ((a, here, there), (b, there, here)):
                copies_EN[expert, source] -= 1
                copies_EN[expert, target] += 1
                if expert < num_experts:
                    count_E[expert] = _renew(expert, copies_EN, failed_WN, lost_WE, held_EV, alone_of, both_EE, crowd_E)
            if attempt == 1:
                break
            for expert in range(num_experts):
                after += surcharge_of[count_E[expert]]
                if num_words == 0 and crowd_E[expert] > 0:
                    alone = alone_of[count_E[expert]]
                    after += alone * (alone / crowd_E[expert])
            for w in range(num_words):
                lost = lost_WE[w, 0]
                for expert in range(1, num_experts):
                    lost |= lost_WE[w, expert]
                after += weight_W[w] * bit_count(lost)
                if after > limit:
                    break
            if after <= limit:
                break
            here, there = there, here  # and back
        if after <= limit:
            now_S[one], now_S[two], loss = b, a, after
            if loss < best:
                best = loss
                for slot in range(len(now_S)):
                    best_S[slot] = now_S[slot]
    return best_S


@numba.njit(cache=True)
def _renew(expert, copies_EN, failed_WN, lost_WE, held_EV, alone_of, both_EE, crowd_E):
    """Update an expert's holders and the failure sets that lose it. Returns: the number of holders"""
    num_words, count = len(lost_WE), 0
    for v in range(held_EV.shape[1]):
        held_EV[expert, v] = 0
    for node in range(copies_EN.shape[1]):
        if copies_EN[expert, node]:
            held_EV[expert, node >> 6] |= _1 << np.uint64(node & 63)
            for w in range(num_words):
                lost_WE[w, expert] = failed_WN[w, node] & (lost_WE[w, expert] if count else _ALL)
            count += 1
    for other in range(len(crowd_E) if num_words == 0 else 0):
        union = 0
        for v in range(held_EV.shape[1]):
            union += bit_count(held_EV[expert, v] | held_EV[other, v])
        change = alone_of[union] - both_EE[expert, other]
        both_EE[expert, other] += change
        crowd_E[expert] += change
        if other != expert:
            both_EE[other, expert] += change
            crowd_E[other] += change
    return count
