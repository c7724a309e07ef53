"""Probability that every expert is still held by a live node after failures: exact if counting is affordable.

A set of live nodes is good when it meets the holder set of every expert. Good sets are counted by their size: as
polynomials in which the coefficient of x^a is the number of good sets of a live nodes. Holder sets that contain another
one add nothing and are dropped; components, which share no node, multiply. A component is counted in one of three ways,
all exact: over all subsets of its nodes, over all subsets of its holder sets, or node by node, carrying the holder sets
that are not yet met. If the work of all three exceeds a bound, orders of failure are sampled.

A set of nodes or of holder sets is an integer, bit i standing for number i. A polynomial is a list, lowest power first,
or packed: one integer with a coefficient in every `stride` bits, so that Python's integers add and multiply it.

Shape legend: N = nodes, S = samples, W = words of 64 subsets, H = sets of holder sets
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from artifact.elastic_moe.placement.placements import Placement

SUBSET_WORDS = 1 << 22  # largest enumeration, in 64-bit words: 28 nodes, or 22 holder sets of at most 64 nodes
CHEAP_WORDS = 1 << 12  # up to here an enumeration is taken without trying to go node by node
MAX_STATES = 250_000  # states (sets of holder sets not yet met) that going node by node may visit,
STATE_BITS = 1 << 15  # of up to this many bits each; a larger one counts as several
SAMPLE_BLOCK = 4096  # samples that are held at a time
Z_95 = 1.959963984540054  # quantile of the normal distribution for a two-sided 95 % interval

WITHOUT = [np.uint64(sum(1 << bit for bit in range(64) if not bit >> node & 1)) for node in range(6)]
"""By node, the bits of a word that stand for subsets without that node."""
OF_SIZE = [np.uint64(sum(1 << bit for bit in range(64) if bit.bit_count() == size)) for size in range(7)]
"""By size, the bits of a word that stand for subsets of that size."""


@dataclass(frozen=True)
class Recovery:
    """Recovery after k failures, for k = 0..N, all sets of k nodes being equally likely.

    probability: [N + 1], that every expert has a live holder
    good:        [N + 1], sets of k failed nodes after which every expert has a live holder; None if sampled
    exact:       False if sampled
    half_width:  [N + 1], of a 95 % interval around the probability that contains Wilson's interval; 0 for exact values
    """

    probability: list[float]
    good: list[int] | None
    exact: bool
    half_width: list[float]

    def expected(self, distribution: Sequence[float]) -> float:
        """Recovery probability if the number of failed nodes is random.

        distribution: probability of k failures from k = 0 on; those beyond its end have none
        Raises: ValueError for a negative probability, a sum that is not 1, or failures of more than all nodes
        """
        if min(distribution, default=0.0) < 0:
            raise ValueError(f"a probability must not be negative, got {min(distribution)}")
        if not math.isclose(math.fsum(distribution), 1.0, abs_tol=1e-9):
            raise ValueError(f"a distribution must sum to 1, got {math.fsum(distribution)}")
        if any(distribution[len(self.probability) :]):
            raise ValueError(f"at most {len(self.probability) - 1} nodes can fail, got {len(distribution) - 1}")
        return math.fsum(a * b for a, b in zip(distribution, self.probability, strict=False))


def recovery(placement: Placement | Sequence[Placement], *, samples: int = 20_000, seed: int = 0) -> Recovery:
    """Recovery of a placement, or of all layers of a model together (node i of every layer is the same node).

    samples, seed: orders of failure that are drawn if counting is not affordable
    Raises: ValueError for no placement, layers of different node counts, or samples < 1
    """
    num_nodes, holders = _joint_holders(placement)
    return _recovery(num_nodes, holders, samples, seed)


def domain_recovery(
    placement: Placement | Sequence[Placement],
    domains: Sequence[Sequence[int]],
    *,
    samples: int = 20_000,
    seed: int = 0,
) -> list[float]:
    """[D + 1], recovery probability if k whole domains (racks, zones) fail, all sets of k domains being equally likely.

    domains: [D], the nodes of each domain; a node without a domain never fails
    Raises: ValueError for no domains, a node out of range or in two domains, and as `recovery` does
    """
    num_nodes, holders = _joint_holders(placement)
    if not domains:
        raise ValueError("domains must name at least one domain, got none")
    domain_of: dict[int, int] = {}
    for number, domain in enumerate(domains):
        for node in domain:
            if not 0 <= node < num_nodes:
                raise ValueError(f"a domain's nodes must be in [0, {num_nodes}), got {node}")
            if domain_of.setdefault(node, number) != number:
                raise ValueError(f"a node must be in one domain, got {node} in {domain_of[node]} and {number}")
    in_domains = sum(1 << node for node in domain_of)
    by_domain = {
        sum(1 << number for number in {domain_of[node] for node in _bits(mask)})
        for mask in holders
        if not mask & ~in_domains
    }
    return _recovery(len(domains), by_domain, samples, seed).probability


def survival(
    placement: Placement | Sequence[Placement], failure_probability: float, *, samples: int = 20_000, seed: int = 0
) -> float:
    """Probability that every expert has a live holder when each node fails independently.

    Raises: ValueError unless failure_probability is in [0, 1], and as `recovery` does
    """
    if not 0 <= failure_probability <= 1:
        raise ValueError(f"failure_probability must be in [0, 1], got {failure_probability}")
    from scipy.stats import binom  # slow to import

    result = recovery(placement, samples=samples, seed=seed)
    failures = np.arange(len(result.probability))
    return result.expected(binom.pmf(failures, len(failures) - 1, failure_probability).tolist())


def mro_closed_form(group_sizes: Sequence[int], num_nodes: int) -> list[int]:
    """[N + 1], sets of k failed nodes after which each of these disjoint groups has a live node (MRO).

    The coefficient of x^(N - k) in (1 + x)^(N - sum of s) times the product of (1 + x)^s - 1 (Lazarus, section 4.2).
    Raises: ValueError for a negative size or more nodes in the groups than there are
    """
    if min(group_sizes, default=0) < 0 or sum(group_sizes) > num_nodes:
        raise ValueError(f"group sizes must be of disjoint groups of {num_nodes} nodes, got {list(group_sizes)}")
    stride = _stride(num_nodes)
    product = _times_binomial(1, num_nodes - sum(group_sizes), stride)
    for size in group_sizes:
        product = _times_binomial(product, size, stride) - product
    return _unpack(product, num_nodes, stride)[::-1]


def upper_bound(replicas: Sequence[int], slots_per_node: int, num_nodes: int) -> list[int]:
    """[N + 1], upper bound of the sets of k failed nodes that any placement of these replicas survives.

    U(1, N, N - k) of the recursion in the optimality proof of MRO (Lazarus, appendix). With the holders of the rarest
    expert in front, the first live node is one of them and holds at most c experts, at best the c rarest; the live
    nodes after it must hold the rest. With rho_i the replica count of the first expert of group i of c experts,
    U(i, n, R) = sum over t = 1..min(rho_i, n) of U(i + 1, n - t, R - 1), and U(G + 1, n, R) = C(n, R). MRO reaches the
    bound if all experts fit on one node or the sum of the rho_i is at most N. Otherwise, contrary to the paper, MRO may
    not even be the best placement.
    slots_per_node: c, the largest slot count if they are unequal
    Raises: ValueError for no replicas, a replica count < 1, slots_per_node < 1 or num_nodes < 1
    """
    if not replicas or min(replicas) < 1 or slots_per_node < 1 or num_nodes < 1:
        raise ValueError(
            "replicas, slots_per_node and num_nodes must be at least 1, "
            f"got {list(replicas)}, {slots_per_node} and {num_nodes}"
        )
    stride = _stride(num_nodes)
    row = [1]
    for _ in range(num_nodes):
        row.append(_times_binomial(row[-1], 1, stride))
    for first in reversed(sorted(replicas)[::slots_per_node]):
        until = [0]
        for polynomial in row:
            until.append(until[-1] + polynomial)
        row = [until[nodes] - until[max(nodes - first, 0)] << stride for nodes in range(num_nodes + 1)]
    return _unpack(row[num_nodes], num_nodes, stride)[::-1]


def _joint_holders(placement: Placement | Sequence[Placement]) -> tuple[int, set[int]]:
    """Number of nodes, and the distinct holder sets of all experts of all layers."""
    layers = [placement] if isinstance(placement, Placement) else list(placement)
    if not layers:
        raise ValueError("there must be at least one placement, got none")
    sizes = sorted({layer.num_nodes for layer in layers})
    if len(sizes) > 1:
        raise ValueError(f"all layers must be on the same nodes, got placements on {sizes} nodes")
    return sizes[0], {sum(1 << node for node in nodes) for layer in layers for nodes in layer.holders}


def _recovery(num_nodes: int, holders: set[int], samples: int, seed: int) -> Recovery:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    minimal = _minimal(holders)
    good = _count(num_nodes, minimal)
    if good is None:
        return _sampled(num_nodes, minimal, samples, seed)
    every = [math.comb(num_nodes, failed) for failed in range(num_nodes + 1)]
    return Recovery(
        [part / whole for part, whole in zip(good, every, strict=True)], good, True, [0.0] * (num_nodes + 1)
    )


def _minimal(holders: set[int]) -> list[int]:
    """The holder sets that contain no other one, smallest first."""
    ordered = sorted(holders, key=lambda mask: (mask.bit_count(), mask))
    if ordered and not ordered[0]:
        return [0]
    member_of = _transposed(ordered)
    dropped = 0
    for number, mask in enumerate(ordered):
        if not dropped >> number & 1:
            dropped |= _intersection(member_of, mask) & ~(1 << number)
    return [mask for number, mask in enumerate(ordered) if not dropped >> number & 1]


def _count(num_nodes: int, minimal: list[int]) -> list[int] | None:
    """Good sets of k failed nodes, k = 0..N; None if counting them is not affordable."""
    if minimal == [0]:
        return [0] * (num_nodes + 1)
    stride = _stride(num_nodes)
    product, free = 1, num_nodes
    for component in _components(minimal):
        member_of = [membership for membership in _transposed(component) if membership]
        polynomial = _count_component(member_of)
        if polynomial is None:
            return None
        product *= _pack(polynomial, stride)
        free -= len(member_of)
    return _unpack(_times_binomial(product, free, stride), num_nodes, stride)[::-1]


def _components(minimal: list[int]) -> list[list[int]]:
    """The holder sets in groups, so that sets of different groups share no node."""
    groups: list[tuple[int, list[int]]] = []
    for mask in minimal:
        union, members, apart = mask, [mask], []
        for group in groups:
            if group[0] & mask:
                union, members = union | group[0], group[1] + members
            else:
                apart.append(group)
        groups = [*apart, (union, members)]
    return [members for _, members in groups]


def _count_component(member_of: list[int]) -> list[int] | None:
    """Good sets of a live nodes, a = 0..n, of n nodes that are all in at least one holder set.

    member_of: [n], the holder sets that contain each node
    """
    holders = _transposed(member_of)
    by_nodes = 1 << max(0, len(member_of) - 6)
    by_holders = -(-len(member_of) // 64) << len(holders)
    words = min(by_nodes, by_holders)
    found = None if words <= CHEAP_WORDS else _by_steps(member_of)
    if found is not None or words > SUBSET_WORDS:
        return found
    return _by_failures(len(member_of), holders) if by_nodes <= by_holders else _by_unions(len(member_of), holders)


def _by_failures(num_nodes: int, holders: list[int]) -> list[int]:
    """Enumerate all sets of failed nodes, a bit per set: the bad ones contain a holder set."""
    bad_W = np.zeros(1 << max(0, num_nodes - 6), dtype=np.uint64)
    for mask in holders:
        bad_W[mask >> 6] |= np.uint64(1 << (mask & 63))
    for node in range(num_nodes):
        if node < 6:  # within each word: from the sets without the node to those with it
            bad_W |= (bad_W & WITHOUT[node]) << np.uint64(1 << node)
        else:
            halves = bad_W.reshape(-1, 2, 1 << (node - 6))
            halves[:, 1] |= halves[:, 0]
    size_W = np.bitwise_count(np.arange(len(bad_W))).astype(np.int64)
    bad = np.zeros(num_nodes + 7, dtype=np.int64)
    for size in range(7):
        count_W = np.bitwise_count(bad_W & OF_SIZE[size])
        # bincount adds floats, exact here: the sums are below 2**53.
        sums = np.bincount(size_W, weights=count_W).astype(np.int64)
        bad[size : size + len(sums)] += sums
    return [math.comb(num_nodes, failed) - bad[failed].item() for failed in range(num_nodes, -1, -1)]


def _by_unions(num_nodes: int, holders: list[int]) -> list[int]:
    """Inclusion and exclusion over all sets of holder sets: all of them have failed if their union has."""
    union_HW = np.zeros((1, -(-num_nodes // 64)), dtype=np.uint64)
    sign_H = np.ones(1)
    for mask in holders:
        words = [np.uint64(mask >> shift & (1 << 64) - 1) for shift in range(0, num_nodes, 64)]
        union_HW = np.concatenate([union_HW, union_HW | np.array(words)])
        sign_H = np.concatenate([sign_H, -sign_H])
    size_H = np.bitwise_count(union_HW).sum(axis=1, dtype=np.int64)
    signed = [int(count) for count in np.bincount(size_H, weights=sign_H)]
    return [
        sum(count * math.comb(num_nodes - size, live) for size, count in enumerate(signed) if count)
        for live in range(num_nodes + 1)
    ]


def _by_steps(member_of: list[int]) -> list[int] | None:
    """Node by node: for each set of holder sets not yet met, the polynomial of the choices that lead to it.

    Nodes in the same holder sets are one step. A holder set that contains all remaining nodes of another one is met if
    that one is, and so is dropped from states in which both are unmet. None after MAX_STATES states.
    """
    stride = _stride(len(member_of))
    sizes = Counter(member_of)
    steps = _ordered(sizes)
    left = _transposed(steps)  # for each holder set, its remaining steps
    implied = [0] * len(left)  # for each holder set, those that are met with it
    states, visited, degree = {(1 << len(left)) - 1: 1}, 0, 0
    for number, membership in enumerate(steps):
        touched = list(_bits(membership))
        for holder in touched:
            left[holder] &= ~(1 << number)
        lost = sum(1 << holder for holder in touched if not left[holder])
        for holder in touched:
            if left[holder]:
                for other in _bits(_intersection(steps, left[holder]) & ~(1 << holder | implied[holder])):
                    if left[other] != left[holder] or other > holder:
                        implied[holder] |= 1 << other
        degree += sizes[membership]
        following: dict[int, int] = {}
        for unmet, polynomial in states.items():
            met = unmet & ~membership
            any_live = _times_binomial(polynomial, sizes[membership], stride) - polynomial
            following[met] = following.get(met, 0) + any_live
            if not unmet & lost:
                for holder in _bits(unmet & membership):
                    if unmet >> holder & 1:
                        unmet &= ~implied[holder]
                following[unmet] = following.get(unmet, 0) + polynomial
        states = following
        visited += len(states) * (1 + degree * stride // STATE_BITS)
        if visited > MAX_STATES:
            return None
    return _unpack(states[0], len(member_of), stride)


def _ordered(memberships: Iterable[int]) -> list[int]:
    """The steps in an order that keeps few holder sets open (begun, with steps remaining): greedily the fewest."""
    rest = list(memberships)
    steps_left = [mask.bit_count() for mask in _transposed(rest)]
    closing = sum(1 << holder for holder, count in enumerate(steps_left) if count == 1)
    begun, order = 0, []
    while rest:
        fewest = min(range(len(rest)), key=lambda at: (begun | rest[at]).bit_count() - (closing & rest[at]).bit_count())
        step = rest.pop(fewest)
        order.append(step)
        begun = (begun | step) & ~(closing & step)
        for holder in _bits(step):
            steps_left[holder] -= 1
            closing = closing | 1 << holder if steps_left[holder] == 1 else closing & ~(1 << holder)
    return order


def _sampled(num_nodes: int, minimal: list[int], samples: int, seed: int) -> Recovery:
    """Estimate from random orders of failure: an order survives until a holder set has failed completely.

    Two things are certain without samples: fewer failures than nodes in the smallest holder set lose nothing, and fewer
    live nodes than disjoint holder sets lose some expert.
    """
    rng = np.random.default_rng(seed)
    rows = [list(_bits(mask)) for mask in minimal]
    survived = np.zeros(num_nodes + 1, dtype=np.int64)  # orders by the failures that they survive
    for start in range(0, samples, SAMPLE_BLOCK):
        order_SN = np.tile(np.arange(num_nodes, dtype=np.int32), (min(SAMPLE_BLOCK, samples - start), 1))
        rank_NS = np.ascontiguousarray(rng.permuted(order_SN, axis=1).T)
        first_S = np.min([rank_NS[row].max(axis=0) for row in rows], axis=0)
        survived += np.bincount(first_S, minlength=num_nodes + 1)
    good = survived[::-1].cumsum()[::-1]
    probability = [count / samples for count in good.tolist()]

    disjoint, used = 0, 0
    for mask in minimal:
        if not mask & used:
            disjoint, used = disjoint + 1, used | mask
    sampled = range(minimal[0].bit_count(), num_nodes - disjoint + 1)
    half_width = [_half_width(part, samples) if failed in sampled else 0.0 for failed, part in enumerate(probability)]
    return Recovery(probability, None, False, half_width)


def _half_width(share: float, samples: int) -> float:
    """Distance from a share to the further end of its 95 % interval by Wilson."""
    shrink = 1 + Z_95 * Z_95 / samples
    centre = (share + Z_95 * Z_95 / (2 * samples)) / shrink
    reach = Z_95 * math.sqrt(share * (1 - share) / samples + Z_95 * Z_95 / (4 * samples * samples)) / shrink
    return abs(centre - share) + reach


def _transposed(masks: Sequence[int]) -> list[int]:
    """For each bit number, the set of the masks with that bit."""
    columns = [0] * max((mask.bit_length() for mask in masks), default=0)
    for number, mask in enumerate(masks):
        for bit in _bits(mask):
            columns[bit] |= 1 << number
    return columns


def _intersection(columns: Sequence[int], mask: int) -> int:
    """Intersection of the columns in a mask, which is not empty."""
    common = -1
    for bit in _bits(mask):
        common &= columns[bit]
    return common


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _stride(num_nodes: int) -> int:
    """Bits, in whole bytes, that hold any number of subsets of these nodes."""
    return 8 * (num_nodes // 8 + 1)


def _times_binomial(packed: int, power: int, stride: int) -> int:
    """Times (1 + x)^power."""
    for _ in range(power):
        packed += packed << stride
    return packed


def _pack(polynomial: Sequence[int], stride: int) -> int:
    return int.from_bytes(b"".join(count.to_bytes(stride // 8, "little") for count in polynomial), "little")


def _unpack(packed: int, degree: int, stride: int) -> list[int]:
    width = stride // 8
    raw = packed.to_bytes((degree + 1) * width, "little")
    return [int.from_bytes(raw[start : start + width], "little") for start in range(0, len(raw), width)]
