"""Schemes: the sum is exact and the same on every rank, and every byte is one that an independent oracle expects."""

import re

import numpy as np
import pytest
import torch

from artifact.sparse_sync.links.accounting import synchronise
from artifact.sparse_sync.links.transport import Traffic, run_counted
from artifact.sparse_sync.schemes import SCHEMES, scheme
from artifact.sparse_sync.tensors.bijection import Bijection
from artifact.sparse_sync.tensors.formats import as_bytes
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

RANKS = (1, 2, 3, 4, 6, 7, 8, 12, 16)
FEW = (2, 3, 8)
ORDERED = [name for name, each in SCHEMES.items() if each.in_rank_order]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def worker(rng, rows, width, listed, dtype=torch.float32, *, integers=False, include=()):
    """A tensor with about `listed` rows, of small integers (whose sum is exact in any order) or of normal values."""
    index = np.unique(np.concatenate([rng.choice(rows, min(rows, listed), replace=False), np.array(include, int)]))
    shape = (len(index), width)
    value = rng.integers(-7, 8, shape) if integers else rng.standard_normal(shape)
    return SparseTensor(torch.from_numpy(index), torch.from_numpy(value).to(dtype), rows).validate()


def workers(n, rows, width=1, listed=60, dtype=torch.float32, *, integers=False, seed=0):
    """Ranks that list different numbers of rows, some of them common, with row 0 and the last among them."""
    rng = np.random.default_rng([seed, n, rows, width])
    common = rng.choice(rows, min(rows, listed // 3), replace=False)
    ends = ([0], [], [rows - 1], [0, rows - 1])
    return [
        worker(rng, rows, width, listed + 10 * (rank % 3), dtype, integers=integers, include=[*common, *ends[rank % 4]])
        for rank in range(n)
    ]


def nothing(rows, width=1, dtype=torch.float32):
    return SparseTensor(torch.empty(0, dtype=torch.int64), torch.empty(0, width, dtype=dtype), rows)


def listing(rows, index, value, dtype=torch.float32):
    value = torch.tensor(value, dtype=dtype)
    return SparseTensor(torch.tensor(index), value.reshape(len(index), -1), rows).validate()


def folded(tensors):
    """((0 + first) + second) + ..., dense."""
    total = torch.zeros(tensors[0].num_units, tensors[0].width, dtype=tensors[0].value_ND.dtype)
    for tensor in tensors:
        total += tensor.to_dense()
    return total


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(as_bytes(one), as_bytes(other))


def on_every_rank(name, tensors, seed=0):
    """The one result of all ranks, dense; fails if two ranks differ in a bit."""
    results, _ = run_counted(SCHEMES[name], tensors, seed)
    assert len(results) == len(tensors)
    first = results[0]().validate()
    for result in results[1:]:
        other = result()
        assert torch.equal(first.index_N, other.index_N)
        assert same_bits(first.value_ND, other.value_ND)
    return first.to_dense().reshape(tensors[0].num_units, tensors[0].width)


# The sum


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("name", SCHEMES)
def test_the_sum_is_exact_and_the_same_on_every_rank(name, n):
    tensors = workers(n, 521, 3, integers=True)  # of a prime size: no n divides it
    assert torch.equal(on_every_rank(name, tensors), folded(tensors))


@pytest.mark.parametrize(("width", "listed"), [(1, 4), (3, 6)])
def test_a_message_that_is_as_long_in_coo_as_dense_is_decoded_as_it_was_sent(width, listed):
    units = 8  # 4 bytes of index and 4 a value in COO: listed * (4 + 4 * width) == units * 4 * width
    tensors = [worker(np.random.default_rng(seed), units, width, listed, integers=True) for seed in range(2)]
    assert all(tensor.num_indices * (4 + 4 * width) == units * 4 * width for tensor in tensors)
    assert torch.equal(on_every_rank("sparcml-row", tensors), folded(tensors))


MANY = [(name, 32) for name in SCHEMES] + [(name, 64) for name in ("ring", "sparcml", "zen")]


@pytest.mark.parametrize(("name", "n"), MANY)
def test_the_sum_is_exact_on_many_ranks(name, n):
    tensors = workers(n, 601, listed=15, integers=True)
    results, _ = run_counted(SCHEMES[name], tensors)
    assert len(results) == n
    for rank in (0, n - 1):
        assert torch.equal(results[rank]().to_dense(), folded(tensors))


@pytest.mark.parametrize("n", [2, 3, 7, 16])
@pytest.mark.parametrize("name", ORDERED)
def test_a_rank_ordered_scheme_is_the_fold_over_ranks_bit_for_bit(name, n):
    width, dtype = (3, torch.bfloat16) if n in (3, 16) else (2, torch.float32)
    tensors = workers(n, 331, width, listed=90, dtype=dtype)
    result = run_counted(SCHEMES[name], tensors)[0][n - 1]()
    assert same_bits(result.to_dense().reshape(331, width), folded(tensors))


def test_all_but_ring_and_sparcml_sum_in_rank_order():
    assert set(SCHEMES) - set(ORDERED) == {"ring", "sparcml", "sparcml-row"}


@pytest.mark.parametrize("n", FEW)
@pytest.mark.parametrize("name", ["ring", "sparcml", "sparcml-row"])
def test_a_scheme_that_sums_by_stages_rounds_as_often_and_agrees_on_every_rank(name, n):
    tensors = workers(n, 331, 2, listed=90)
    exact = sum(tensor.to_dense().double() for tensor in tensors)
    magnitude = sum(tensor.to_dense().double().abs() for tensor in tensors)
    error = (on_every_rank(name, tensors).double() - exact).abs()
    assert bool((error <= n * torch.finfo(torch.float32).eps * magnitude).all())


@pytest.mark.parametrize("name", SCHEMES)
def test_two_runs_are_the_same_bits_and_bytes(name):
    tensors = workers(6, 700, 2, listed=90)
    (one, first), (other, second) = (run_counted(SCHEMES[name], tensors, seed=4) for _ in range(2))
    assert same_bits(one[3]().value_ND, other[3]().value_ND)
    assert first.sent_FW.tolist() == second.sent_FW.tolist()
    assert first.received_FW.tolist() == second.received_FW.tolist()


@pytest.mark.parametrize("name", SCHEMES)
def test_the_seed_of_the_hash_changes_no_bit_of_the_sum(name):
    tensors = workers(6, 700, 2, listed=90)
    assert same_bits(on_every_rank(name, tensors, seed=0), on_every_rank(name, tensors, seed=9))


# Edges

EDGES = {
    "a rank without rows": lambda: [listing(40, [3, 7], [1, 2]), nothing(40), listing(40, [7, 39], [4, 5])],
    "no rank with rows": lambda: [nothing(40, 2) for _ in range(4)],
    "one rank with one element": lambda: [nothing(40), nothing(40), listing(40, [17], [5]), nothing(40)],
    "a tensor of one element": lambda: [listing(1, [0], [rank + 1]) for rank in range(3)],
    "only element 0": lambda: [listing(40, [0], [rank + 1]) for rank in range(4)],
    "only the last element": lambda: [listing(41, [40], [rank + 1]) for rank in range(4)],
    "explicit zeros": lambda: [listing(40, [0, 5], [0, 0]), listing(40, [5, 6], [3, 0]), nothing(40)],
    "values that cancel": lambda: [listing(40, [5], [3]), listing(40, [5], [-3]), nothing(40)],
    "every element": lambda: [listing(600, list(range(600)), [i % 9 for i in range(600)]) for _ in range(4)],
    "fewer units than ranks": lambda: workers(7, 3, integers=True),
    "rows as wide as a block and more": lambda: workers(3, 50, 300, listed=9, integers=True),
    "bf16": lambda: workers(4, 333, 3, dtype=torch.bfloat16, integers=True),
    "fp16": lambda: workers(4, 333, 3, dtype=torch.float16, integers=True),
    "fp64": lambda: workers(4, 333, 3, dtype=torch.float64, integers=True),
    "one rank": lambda: workers(1, 333, integers=True),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", SCHEMES)
def test_the_sum_is_exact_at_the_edges(name, edge):
    tensors = EDGES[edge]()
    found = on_every_rank(name, tensors)
    assert found.dtype == tensors[0].value_ND.dtype
    assert torch.equal(found, folded(tensors))


@pytest.mark.parametrize("name", ["sparcml", "sparcml-row"])
def test_ranks_list_the_same_units_where_only_one_of_two_sends_a_dense_message(name):
    many = listing(40, list(range(5, 38)), [1.0] * 33)
    for n in (2, 3, 4, 7):
        for rank in range(n):
            tensors = [many if each == rank else listing(40, [0, 9], [2, 3]) for each in range(n)]
            assert torch.equal(on_every_rank(name, tensors), folded(tensors))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_tensors_given_are_not_changed(name):
    tensors = workers(4, 333, 3)
    before = [tensor.value_ND.clone() for tensor in tensors]
    on_every_rank(name, tensors)
    assert all(torch.equal(tensor.value_ND, value) for tensor, value in zip(tensors, before, strict=True))


# The bytes, by an oracle that knows only sets of indices: for each phase, a matrix from source to destination


def hashed(index, n, seed):
    """Algorithm 1's h0 in numpy: MurmurHash3's finaliser of index xor seed, scaled to n."""
    mixed = np.random.SeedSequence([seed, 0]).generate_state(1, dtype=np.uint32)[0]
    value = (index.astype(np.uint64) & 0xFFFFFFFF) ^ np.uint64(mixed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = ((value ^ (value >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    value ^= value >> np.uint64(16)
    return ((value * np.uint64(n)) >> np.uint64(32)).astype(int)


def ring_bytes(supports, size, unit_bytes, n):
    stretch = -(-size // n)
    part = [max(0, min(stretch, size - stretch * p)) * unit_bytes for p in range(n)]
    phases = np.zeros((2 * (n - 1), n, n), dtype=int)
    for phase in range(2 * (n - 1)):
        for rank in range(n):
            phases[phase, rank, (rank + 1) % n] = part[(rank - phase) % n]
    return phases


def agsparse_bytes(supports, size, unit_bytes, n):
    phase = np.array([[len(support) * (4 + unit_bytes)] * n for support in supports])
    np.fill_diagonal(phase, 0)
    return phase[None]


def sparcml_bytes(supports, size, unit_bytes, n):
    held = [set(support) for support in supports]
    power = 1
    while 2 * power <= n:
        power *= 2

    def message(rank):
        return min(len(held[rank]) * (4 + unit_bytes), size * unit_bytes)

    phases = []
    if power < n:
        phases.append(np.zeros((n, n), dtype=int))
        for rank in range(power, n):
            phases[-1][rank, rank - power] = message(rank)
        for rank in range(power, n):
            held[rank - power] |= held[rank]
    distance = 1
    while distance < power:
        phases.append(np.zeros((n, n), dtype=int))
        for rank in range(power):
            phases[-1][rank, rank ^ distance] = message(rank)
        held[:power] = [held[rank] | held[rank ^ distance] for rank in range(power)]
        distance *= 2
    if power < n:
        phases.append(np.zeros((n, n), dtype=int))
        for rank in range(power, n):
            phases[-1][rank - power, rank] = message(rank - power)
    return np.array(phases).reshape(-1, n, n)


def served_bytes(part_of, push, pull):
    """Push to servers and pull from them; the bytes of a message from the units listed and all units of its part."""

    def count(supports, size, unit_bytes, n):
        home = part_of(np.arange(size), size, n)
        part = [set(np.flatnonzero(home == p).tolist()) for p in range(n)]
        pushes = [[push(support & part[p], part[p], unit_bytes) for p in range(n)] for support in supports]
        together = set().union(*supports)
        pulls = [[pull(together & part[p], part[p], unit_bytes)] * n for p in range(n)]
        phases = np.array([pushes, pulls])
        for phase in phases:
            np.fill_diagonal(phase, 0)
        return phases

    return count


def coo(units, part, unit_bytes):
    return len(units) * (4 + unit_bytes)


def bitmap(units, part, unit_bytes):
    return -(-len(part) // 8) + len(units) * unit_bytes


def blocks_of_part(units, part, unit_bytes):
    first = min(part, default=0)
    return len({(unit - first) // 256 for unit in units}) * (4 + 256 * unit_bytes)


def blocks_of_tensor(units, part, unit_bytes):
    return len({unit // 256 for unit in units}) * (4 + 256 * unit_bytes)


def contiguous(unit, size, n):
    return unit // -(-size // n)


def permuted(unit, size, n):
    return contiguous(Bijection(size, 5).forward(torch.from_numpy(unit)).numpy(), size, n)


ORACLES = {
    "ring": ring_bytes,
    "agsparse": agsparse_bytes,
    "sparcml": sparcml_bytes,
    "omnireduce": served_bytes(contiguous, blocks_of_part, blocks_of_part),
    "omnireduce-cyclic": served_bytes(lambda unit, size, n: unit // 256 % n, blocks_of_tensor, blocks_of_tensor),
    "ps": served_bytes(contiguous, coo, coo),
    "balanced-coo": served_bytes(lambda unit, size, n: hashed(unit, n, 5), coo, coo),
    "zen": served_bytes(lambda unit, size, n: hashed(unit, n, 5), coo, bitmap),
    "zen-bijection": served_bytes(permuted, coo, bitmap),
    "zen-modulo": served_bytes(lambda unit, size, n: unit % n, coo, bitmap),
}


def expected_bytes(name, tensors):
    """[phases, source, destination]"""
    rows, width, value_bytes = tensors[0].num_units, tensors[0].width, tensors[0].value_ND.dtype.itemsize
    supports = [tensor.index_N.tolist() for tensor in tensors]
    if not name.endswith("-row"):
        supports = [[row * width + column for row in support for column in range(width)] for support in supports]
        rows, width = rows * width, 1
    oracle = ORACLES[name.removesuffix("-row")]
    return oracle([set(support) for support in supports], rows, width * value_bytes, len(tensors))


BYTE_CASES = {
    "elements": (1031, 1, 60, torch.float32),
    "rows": (211, 4, 40, torch.float32),
    "elements of 2 bytes": (797, 1, 60, torch.bfloat16),
    "dense enough to switch": (197, 3, 75, torch.float16),
    "blocks left out": (3011, 1, 2, torch.float32),
}


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_rank_sends_and_receives_the_bytes_that_the_oracle_counts(name, n):
    for case in BYTE_CASES if n in FEW else ("rows",):
        rows, width, listed, dtype = BYTE_CASES[case]
        tensors = workers(n, rows, width, listed, dtype, seed=2)
        if n > 2:
            tensors[1] = nothing(rows, width, dtype)
        _, traffic = run_counted(SCHEMES[name], tensors, seed=5)
        phases = expected_bytes(name, tensors)
        assert traffic.sent_FW.tolist() == phases.sum(axis=2).tolist(), case
        assert traffic.received_FW.tolist() == phases.sum(axis=1).tolist(), case


def test_sparcml_switches_to_dense_within_the_cases_above():
    rows, width, listed, dtype = BYTE_CASES["dense enough to switch"]
    tensors = workers(8, rows, width, listed, dtype, seed=2)
    sent = run_counted(SCHEMES["sparcml"], tensors)[1].sent_FW
    assert sent[0].max() < rows * width * 2 or sent[-1].max() == rows * width * 2
    assert sent[-1].tolist() == [rows * width * 2] * 8
    few = workers(8, 1543, listed=60, seed=2)
    assert run_counted(SCHEMES["sparcml"], few)[1].sent_FW[0].max() < 1543 * 4


@pytest.mark.parametrize("n", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("size", [1600, 1601])
def test_the_ring_costs_twice_n_minus_one_parts_rounded_up(n, size):
    _, traffic = run_counted(SCHEMES["ring"], workers(n, size))
    assert traffic.busiest_bytes == 2 * (n - 1) * -(-size // n) * 4
    assert len(traffic.sent_FW) == 2 * (n - 1)


def test_bytes_of_two_ranks_worked_by_hand():
    tensors = [listing(16, [0, 3, 9], [1, 2, 3]), listing(16, [3, 15], [4, 5])]

    def sent(name):
        return run_counted(SCHEMES[name], tensors)[1].sent_FW.tolist()

    assert sent("ring") == [[32, 32], [32, 32]]
    assert sent("agsparse") == [[3 * 8, 2 * 8]]
    assert sent("sparcml") == [[3 * 8, 2 * 8]]
    assert sent("ps") == [[1 * 8, 1 * 8], [2 * 8, 2 * 8]]  # 0 and 3 on rank 0, 9 and 15 on rank 1
    assert sent("omnireduce") == [[1028, 1028], [1028, 1028]]
    assert sent("omnireduce-cyclic") == [[0, 1028], [1028, 0]]
    assert sent("zen-modulo") == [[2 * 8, 0], [1 + 4, 1 + 3 * 4]]  # 0 on rank 0; 3, 9 and 15 on rank 1


def test_busiest_bytes_are_the_most_that_a_rank_sends_or_receives_phase_by_phase():
    traffic = Traffic(np.array([[5, 1], [0, 2]]), np.array([[1, 5], [2, 0]]))
    assert (traffic.max_sent_bytes, traffic.max_received_bytes) == (5, 5)
    assert (traffic.total_bytes, traffic.busiest_bytes) == (8, 7)
    assert traffic.seconds(1) == pytest.approx(56e-9)
    for bandwidth in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="bandwidth_gbps must be positive, got"):
            traffic.seconds(bandwidth)


def test_one_rank_sends_nothing():
    for name in SCHEMES:
        assert run_counted(SCHEMES[name], workers(1, 100))[1].total_bytes == 0


# Reports and errors


@pytest.mark.parametrize("name", SCHEMES)
def test_a_report_finds_every_scheme_exact(name):
    found = synchronise(name, workers(4, 389, 3), bandwidth_gbps=10)
    assert found.exact
    assert found.seconds == pytest.approx(run_counted(SCHEMES[name], workers(4, 389, 3))[1].busiest_bytes * 8e-10)
    if name == "ring":
        assert found.speedup_over_ring == pytest.approx(1)
    assert (found.push_imbalance is None) == (SCHEMES[name].partition is None)


def test_a_report_finds_a_lost_element(monkeypatch):
    from artifact.sparse_sync.links import accounting

    def losing(chosen, tensors, seed):
        results, traffic = run_counted(chosen, tensors, seed)
        total = results[0]()
        lossy = SparseTensor(total.index_N[1:], total.value_ND[1:], total.num_units)
        return [lambda: lossy for _ in results], traffic

    monkeypatch.setattr(accounting, "run_counted", losing)
    assert not synchronise("zen", workers(4, 389), bandwidth_gbps=10).exact
    assert not synchronise("sparcml", workers(4, 389), bandwidth_gbps=10).exact


@pytest.mark.parametrize(
    ("second", "told"),
    [(nothing(41), "(41, 1, torch.float32)"), (nothing(40, 2), "(40, 2,"), (nothing(40, 1, torch.float16), "float16")],
)
def test_ranks_that_differ_in_size_width_or_type_are_refused(second, told):
    with pytest.raises(ValueError, match=f"worker 1 differs from worker 0: .*{re.escape(told)}"):
        run_counted(SCHEMES["zen"], [nothing(40), second])


def test_an_unknown_scheme_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"a scheme must be one of ring, .*zen.*, got 'zebra'"):
        scheme("zebra")
