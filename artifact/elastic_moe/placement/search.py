"""Search for the placement that survives most failures, for cases in which MRO is not optimal.

MRO is optimal if its node groups are whole; if the last one is cut short, other placements survive more. The search
starts from the placements of the other methods and ends if one of them reaches an upper bound. Otherwise it searches
the holders of each expert: exhaustively for few nodes, by exchanges of copies for many.

Only the set of nodes that hold an expert matters, not the number of copies on a node. A failure set is a set of nodes
that fail together; it is lost if it contains all holders of some expert. The loss of a placement is the probability of
its lost failure sets.

Shape legend: N = nodes, E = experts, S = slots, W = words of 64 failure sets each, V = words of 64 nodes each,
H = 2**N sets of holders, M = moves
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from artifact.elastic_moe.placement.placements import Placement
from artifact.elastic_moe.placement.probability import recovery, upper_bound
from artifact.elastic_moe.placement.search_kernels import EQUAL, Floats, Integers, Words, branch, exchange

BOUNDED_NODES = 256  # most nodes for which the upper bound is computed
EXHAUSTED_NODES = 8  # most nodes for which the search is exhaustive
COUNTED_NODES = 24  # most nodes for which every loss is counted;
COUNTED_HOLDERS = 12  # with more nodes, most different sets of holders for which it is
JUDGED_SETS = 1 << 13  # failure sets drawn for a placement whose loss is not counted
DOUBT = 3.0  # standard errors by which an estimated loss must be smaller to win
EXCHANGED_SETS = 1 << 12  # failure sets that guide the exchange of copies: all, or a sample
RARE = 0.02  # smaller losses are not guided by a sample
RESTARTS = 8
MOVES = 50_000  # most moves of a restart
EXCHANGE_WORK = 100_000_000  # most words touched by the moves of all restarts
WARM, COLD = 0.005, 0.0005  # growth of the loss accepted with probability 1/e, at the first and the last move


def best_placement(problem: SearchProblem, starts: Mapping[str, Placement]) -> Placement:
    """The placement with the least loss found, never worse than the starts.

    starts: by method, MRO first; all but those of `random` have regular sets of holders
    """
    judged = [problem.judged(start, regular=method != "random") for method, start in starts.items()]
    found, ended = problem.best(judged), False
    if found.loss <= problem.least_loss * (1 + EQUAL) and problem.keeps_promise(found.placement):
        return found.placement
    if problem.num_nodes <= EXHAUSTED_NODES:
        found, ended = problem.exhaust(found)
    if not ended:
        found = problem.best([found, *map(problem.judged, problem.exchange([found, *judged]))])
    return found.placement


@dataclass(frozen=True)
class Candidate:
    """A placement with its loss, counted or estimated."""

    placement: Placement
    loss: float
    standard_error: float


@dataclass(frozen=True)
class FailureSets:
    """Failure sets, a bit per set; in unused bits no node fails.

    failed_NW: bits of the sets in which each node fails; weight_W: probability of each set of a word
    complete:  whether these are all failure sets of the objective
    """

    failed_NW: Words
    weight_W: Floats
    complete: bool

    def loss(self, placement: Placement) -> float:
        """Probability of the failure sets that contain all holders of some expert."""
        lost_W = np.zeros_like(self.failed_NW[0])
        for nodes in placement.holders:
            lost_W |= np.bitwise_and.reduce(self.failed_NW[list(nodes)], axis=0)
        return float(np.bitwise_count(lost_W) @ self.weight_W)


@dataclass(frozen=True)
class SearchProblem:
    """Replicas [E], slots [N], and the objective as a loss, see `methods.place`."""

    replicas: tuple[int, ...]
    slots: tuple[int, ...]
    failures: int | None
    failure_probability: float
    seed: int

    @property
    def num_nodes(self) -> int:
        return len(self.slots)

    @cached_property
    def promised(self) -> int:
        """Fewest holders that an expert should have: the fewest replicas, if there is room for that."""
        fewest = min(*self.replicas, self.num_nodes)
        room = sum(min(slot, len(self.replicas)) for slot in self.slots)
        return fewest if room >= fewest * len(self.replicas) else 1

    def keeps_promise(self, placement: Placement) -> bool:
        return min(map(len, placement.holders)) >= self.promised

    @cached_property
    def chance_of(self) -> list[float]:
        """[N + 1], probability that k nodes fail."""
        nodes, p = self.num_nodes, self.failure_probability
        if self.failures is not None or p in (0, 1):
            certain = self.failures if self.failures is not None else round(p * nodes)
            return [float(failed == certain) for failed in range(nodes + 1)]
        ways = [math.lgamma(nodes + 1) - math.lgamma(k + 1) - math.lgamma(nodes - k + 1) for k in range(nodes + 1)]
        return [math.exp(ways[k] + k * math.log(p) + (nodes - k) * math.log1p(-p)) for k in range(nodes + 1)]

    def loss_of(self, survived: Sequence[int]) -> float:
        """The loss of a placement. survived: [N + 1], sets of k failed nodes that it survives"""
        total = [math.comb(self.num_nodes, failed) for failed in range(self.num_nodes + 1)]
        lost = [(whole - part) / whole for whole, part in zip(total, survived, strict=True)]
        return math.fsum(chance * share for chance, share in zip(self.chance_of, lost, strict=True))

    @cached_property
    def least_loss(self) -> float:
        """Lower bound of every placement's loss; 0 for more than BOUNDED_NODES nodes."""
        if self.num_nodes > BOUNDED_NODES:
            return 0.0
        return self.loss_of(upper_bound(self.replicas, max(self.slots), self.num_nodes))

    @cached_property
    def alone_of(self) -> Floats:
        """[N + 1], probability that k given nodes fail."""
        nodes, failed = self.num_nodes, self.failures
        if failed is None:
            return np.array([self.failure_probability**held for held in range(nodes + 1)])
        return np.array([math.comb(failed, held) / math.comb(nodes, held) for held in range(nodes + 1)])

    def judged(self, placement: Placement, regular: bool = False) -> Candidate:
        """The placement with its loss, counted if that is fast. regular: it is, whatever the number of nodes"""
        few = self.num_nodes <= COUNTED_NODES or len(set(placement.holders)) <= COUNTED_HOLDERS
        survived = recovery(placement).good if few or regular else None
        if survived is not None:
            return Candidate(placement, self.loss_of(survived), 0.0)
        return Candidate(placement, *self._estimate(placement))

    def _estimate(self, placement: Placement) -> tuple[float, float]:
        """The loss and its standard error, from failure sets that all lose an expert (Karp and Luby).

        An expert is drawn by the probability that it is lost, then the other failures given that; a set that loses n
        experts can be drawn in n ways and counts 1 / n.
        """
        generator = np.random.default_rng(self.seed)
        nodes = self.num_nodes
        held_EN = np.zeros((len(self.replicas), nodes), dtype=np.float32)
        for expert, holders in enumerate(placement.holders):
            held_EN[expert, list(holders)] = 1
        held_EN = np.unique(held_EN, axis=0)
        count_E = held_EN.sum(axis=1).astype(np.int64)
        alone_E = self.alone_of[count_E]
        total = float(alone_E.sum())
        if total == 0:
            return 0.0, 0.0
        drawn = generator.choice(len(held_EN), size=JUDGED_SETS, p=alone_E / total)
        draw_SN = generator.random((JUDGED_SETS, nodes))
        draw_SN[held_EN[drawn] > 0] = -1.0
        if self.failures is not None:
            alive_SN = draw_SN > np.partition(draw_SN, self.failures - 1, axis=1)[:, self.failures - 1, None]
        else:
            alive_SN = draw_SN >= self.failure_probability
        lost_S = (alive_SN.astype(np.float32) @ held_EN.T == 0).sum(axis=1)
        part_S = total / lost_S
        error = float(part_S.std()) / math.sqrt(JUDGED_SETS)
        return float(part_S.mean()), max(error, total / JUDGED_SETS)  # at least what one more set might change

    def best(self, judged: Sequence[Candidate]) -> Candidate:
        """The least loss, an estimate by DOUBT at least. Among equals the first that keeps the promise, if any."""
        sure = [one for one in judged if one.standard_error == 0] or judged[:1]
        limit = min(one.loss for one in sure) * (1 + EQUAL)
        equals = [one for one in sure if one.loss <= limit]
        best = next((one for one in equals if self.keeps_promise(one.placement)), equals[0])
        for one in judged:
            if one.loss + DOUBT * math.hypot(one.standard_error, best.standard_error) < best.loss * (1 - EQUAL):
                best = one
        return best

    def failure_sets(self, at_most: int) -> FailureSets:
        """All failure sets of the objective if they are `at_most`, otherwise that many drawn by their probability.

        The empty set and the failure of all nodes are left out of all sets: every placement does the same there.
        """
        nodes = self.num_nodes
        number_of = {failed: math.comb(nodes, failed) for failed in range(1, nodes) if self.chance_of[failed] > 0}
        fails_SN = [np.zeros((64, nodes), dtype=bool)]
        weights = [0.0]  # at least one word, of no failures
        complete = sum(number_of.values()) <= at_most
        if complete:
            for failed, number in number_of.items():
                fails = np.zeros((-(-number // 64) * 64, nodes), dtype=bool)
                fails[np.arange(number)[:, None], np.array(list(combinations(range(nodes), failed)))] = True
                fails_SN.append(fails)
                weights += [self.chance_of[failed] / number] * (len(fails) // 64)
        else:
            draw_SN = np.random.default_rng(self.seed).random((at_most, nodes))
            if self.failures is not None:
                draw_SN = draw_SN.argsort(axis=1).argsort(axis=1)
            fails_SN.append(draw_SN < (self.failure_probability if self.failures is None else self.failures))
            weights += [1 / at_most] * (at_most // 64)
        bits = np.packbits(np.concatenate(fails_SN).T, axis=1, bitorder="little")
        return FailureSets(np.ascontiguousarray(bits).view(np.uint64), np.array(weights), complete)

    def exhaust(self, start: Candidate) -> tuple[Candidate, bool]:
        """The best placement by branch and bound from `start`, and whether it is proven to be the best.

        The first search is among the placements that keep the promise, the second among all.
        """
        sets = self.failure_sets(1 << EXHAUSTED_NODES)
        weight_W = sets.weight_W
        lost_HW = np.full((1 << self.num_nodes, len(weight_W)), ~np.uint64(0))
        for holders in range(1, len(lost_HW)):
            node = holders.bit_length() - 1
            lost_HW[holders] = lost_HW[holders ^ 1 << node] & sets.failed_NW[node]
        lost_HW[0] = 0  # code for `harmless` holders, which no failure set contains
        harmless = self.num_nodes if self.failures is None else min(self.failures + 1, self.num_nodes)
        wanted_E = np.minimum(sorted(self.replicas), self.num_nodes)
        room_N = np.minimum(sorted(self.slots), len(self.replicas))
        enough = (self.least_loss - self.chance_of[-1]) * (1 + EQUAL)  # the sets are without the failure of all nodes
        size_of = np.bitwise_count(np.arange(len(lost_HW))).astype(np.int64)
        by_size = np.argsort(-size_of, kind="stable")[:-1]
        first_of = np.searchsorted(-size_of[by_size], -np.arange(self.num_nodes + 1))
        bits_NS = np.unpackbits(sets.failed_NW.view(np.uint8), axis=1, bitorder="little")
        alive_S = len(lost_HW) - 1 - (1 << np.arange(self.num_nodes)) @ bits_NS.astype(np.int64)
        found, all_ended = start, True
        for floor in sorted({self.promised, 1}, reverse=True):
            loss = sets.loss(found.placement)
            better = floor == 1 or self.keeps_promise(found.placement)
            below = loss * (1 - EQUAL) if better else loss * (1 + EQUAL) + 1e-300
            holders_E, ended = branch(
                wanted_E, room_N, by_size, size_of, first_of, lost_HW, alive_S, weight_W, harmless, floor, below, enough
            )
            all_ended &= ended
            if holders_E[0] >= 0:
                found = self.best([found, self.judged(self._filled(holders_E, max(harmless, floor)))])
        return found, all_ended

    def _filled(self, holders_E: Integers, harmless: int) -> Placement:
        """A placement whose experts have at least these holders.

        holders_E: [E], experts by ascending replicas; bit i: the i-th node by ascending slots; 0: any `harmless` nodes
        """
        node_order = sorted(range(self.num_nodes), key=lambda node: self.slots[node])
        expert_order = sorted(range(len(self.replicas)), key=lambda expert: self.replicas[expert])
        left, room = list(self.replicas), list(self.slots)
        nodes: list[list[int]] = [[] for _ in self.slots]

        def put(expert: int, node: int) -> None:
            nodes[node].append(expert)
            left[expert] -= 1
            room[node] -= 1

        for expert, holders in sorted(zip(expert_order, holders_E, strict=True), key=lambda pair: pair[1] == 0):
            if holders:
                chosen = [node for i, node in enumerate(node_order) if holders >> i & 1]
            else:  # the emptiest nodes leave most room for the next such expert (Gale and Ryser)
                chosen = sorted(range(self.num_nodes), key=lambda node: -room[node])[:harmless]
            for node in chosen:
                put(expert, node)
        while max(left):
            expert = max(range(len(left)), key=lambda expert: left[expert])
            free = [node for node in range(self.num_nodes) if room[node]]
            put(expert, max(free, key=lambda node: (expert not in nodes[node], room[node])))
        return Placement(tuple(tuple(sorted(held)) for held in nodes), len(self.replicas))

    def exchange(self, starts: Sequence[Candidate]) -> list[Placement]:
        """Simulated annealing from the best of `starts`: two slots on different nodes exchange what they hold."""
        experts, sets = len(self.replicas), self.failure_sets(EXCHANGED_SETS)
        by_loss = sorted({start.placement: start.loss for start in starts}.items(), key=lambda pair: pair[1])[:RESTARTS]
        words = len(sets.weight_W) if sets.complete or by_loss[0][1] >= RARE else 0
        touched = words * (experts + 2 * sum(self.replicas) // experts) or 8 * experts
        moves = min(MOVES, EXCHANGE_WORK // (RESTARTS * touched))
        node_S = np.repeat(np.arange(self.num_nodes), self.slots)
        found = []
        for restart in range(RESTARTS):
            generator = np.random.default_rng([self.seed, restart])
            nodes = by_loss[restart % len(by_loss)][0].nodes
            held = [node + (experts,) * (slot - len(node)) for node, slot in zip(nodes, self.slots, strict=True)]
            expert_S = exchange(
                np.concatenate(held),
                node_S,
                experts,
                np.ascontiguousarray(sets.failed_NW.T[:words]),
                sets.weight_W,
                self.alone_of,
                self._surcharge_of(),
                generator.integers(len(node_S), size=(moves, 2)),
                -np.geomspace(WARM, COLD, moves) * np.log1p(-generator.random(moves)),
            )
            parts = np.split(expert_S, np.cumsum(self.slots)[:-1])
            found.append(Placement(tuple(tuple(sorted(part[part < experts].tolist())) for part in parts), experts))
        return found

    def _surcharge_of(self) -> Floats:
        """[N + 1], by number of holders, what an expert adds to the loss to decide between equal losses.

        A small part of the expert's own loss, and of one failure set if its holders are fewer than promised.
        """
        size = self.promised - 1 if self.failures is None else self.failures
        one_set = self.chance_of[size] / math.comb(self.num_nodes, size)
        return 1e-4 * self.alone_of + 0.05 * one_set * (np.arange(self.num_nodes + 1) < self.promised)
