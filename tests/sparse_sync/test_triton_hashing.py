"""Algorithm 1 as a Triton kernel: the partitions of the counting sort, and nothing lost however small the memory.

Triton's interpreter is chosen where Triton is imported, so the kernel runs in a process of its own, once for all cases.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.grouping import group_indices, measure_grouping
from artifact.sparse_sync.tensors.hashing import counting_sort
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

if find_spec("triton") is None:
    pytest.skip("Triton is for Linux only", allow_module_level=True)

from artifact.sparse_sync.tensors import triton_hashing

BLOCK = triton_hashing.BLOCK
SEED = 5


def random_support(num_indices, low, high):
    return np.unique(np.random.default_rng(0).integers(low, high, num_indices))


SUPPORTS = {
    "random": np.union1d([0], random_support(1500, 0, 1_000_000)),  # index 0 is the published marker of an empty slot
    "strided": np.arange(0, 1500 * 4096, 4096),
    "above 32 bits": np.union1d([0, (1 << 32) - 1, 1 << 32, (1 << 63) - 1], random_support(1500, 1 << 32, 1 << 62)),
    "unsorted": np.random.default_rng(1).permutation(1500),
}
PARTITIONS = (1, 3, 16)
SMALL = {"num_hashes": 1, "slots_per_index": 1.0}

CASES = {(name, n): (support, n, {}) for name, support in SUPPORTS.items() for n in PARTITIONS}
CASES |= {("small memory", n): (SUPPORTS["random"], n, SMALL) for n in PARTITIONS}
CASES |= {
    ("hardly any memory", n): (SUPPORTS["random"], n, {"slots_per_index": 1e-9, "serial_share": 0}) for n in (1, 16)
}
CASES |= {("that many indices", count): (np.arange(count), 16, {}) for count in (0, 1, 2, BLOCK, BLOCK + 1)}
CASES |= {("more partitions than indices", 1000): (np.array([0, 7]), 1000, {})}
SHARE = (random_support(6000, 0, 1 << 30), 4, {})
NEGATIVE = {f"negative {low}": (np.arange(low, 10), 3, {}) for low in (-1, -2)}

WORKER = """
import sys
import torch
from artifact.sparse_sync.tensors.triton_hashing import hierarchical

def outcome(index_N, num_partitions, seed, options):
    try:
        found = hierarchical(index_N, num_partitions, seed, **options)
        assert found.lost == 0
        return index_N[found.order_N], torch.from_numpy(found.count_P), found.serial, found.grown
    except ValueError as error:
        return str(error)

torch.save([outcome(*call) for call in torch.load(sys.argv[1])], sys.argv[2])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernel gives for every case on this machine's CPU: (index_N, count_P, serial, grown), or an error."""
    cases = CASES | {"share": SHARE} | NEGATIVE
    calls = [(torch.from_numpy(index), n, SEED, options) for index, n, options in cases.values()]
    calls.append((torch.arange(3000)[::2], 3, SEED, {}))
    given, taken = (tmp_path_factory.mktemp("interpreted") / name for name in ("calls.pt", "outcomes.pt"))
    torch.save(calls, given)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", WORKER, given, taken], env=environment, check=True, timeout=300)
    return dict(zip([*cases, "view"], torch.load(taken), strict=True))


def by_partition(index_N, count_P):
    """The indices of each partition, sorted."""
    return [sorted(part.tolist()) for part in np.split(np.asarray(index_N), np.asarray(count_P).cumsum()[:-1])]


def expected(index, num_partitions):
    grouping = counting_sort(index, num_partitions, SEED)
    return by_partition(index[grouping.order_N], grouping.count_P)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_every_partition_holds_the_indices_that_counting_puts_there(interpreted, case):
    index, num_partitions, _ = CASES[case]
    index_N, count_P, serial, grown = interpreted[case]
    assert (index_N.dtype, count_P.dtype, len(count_P)) == (torch.int64, torch.int64, num_partitions)
    assert by_partition(index_N, count_P) == expected(index, num_partitions)
    assert 0 <= serial <= len(index) and grown >= 0


@pytest.mark.parametrize("n", PARTITIONS)
def test_one_hash_at_one_slot_an_index_overflows_and_grows_once(interpreted, n):
    _, _, serial, grown = interpreted["small memory", n]
    assert grown == 1, "what one hash leaves over does not depend on the order"
    assert serial == hashing.hierarchical(SUPPORTS["random"], n, SEED, **SMALL).serial


def test_the_default_memory_does_not_grow_and_its_serial_share_is_the_published_one(interpreted):
    _, _, serial, grown = interpreted["share"]
    assert grown == 0
    share = serial / len(SHARE[0])
    assert 0.025 < share < 0.045, "3.0 % one index at a time, 4.2 % attempt by attempt"


def test_no_index_leaves_nothing_in_every_partition(interpreted):
    index_N, count_P, serial, grown = interpreted["that many indices", 0]
    assert (index_N.tolist(), count_P.tolist(), serial, grown) == ([], [0] * 16, 0, 0)


def test_a_view_of_indices_is_grouped_as_its_copy(interpreted):
    index_N, count_P, _, _ = interpreted["view"]
    assert by_partition(index_N, count_P) == expected(np.arange(0, 3000, 2), 3)


@pytest.mark.parametrize("low", [-1, -2])
def test_a_negative_index_is_refused(interpreted, low):
    assert interpreted[f"negative {low}"] == f"indices must not be negative, got {low}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_partition_is_the_same_on_a_gpu():
    million = random_support(1_000_000, 0, 1 << 40)
    for name, (index, n, options) in (CASES | {"million": (million, 16, {}), "grows": (million, 16, SMALL)}).items():
        grouping = triton_hashing.hierarchical(torch.from_numpy(index).cuda(), n, SEED, **options)
        assert grouping.order_N.is_cuda
        assert by_partition(index[grouping.order_N.cpu().numpy()], grouping.count_P) == expected(index, n), name
        assert options != SMALL or grouping.grown == 1, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_partition_command_runs_on_the_gpu_and_counts_what_the_cpu_counts():
    support = torch.from_numpy(random_support(100_000, 0, 1 << 24))
    tensors = [SparseTensor(support, torch.ones(len(support), 1), 1 << 24)]
    ours, theirs = (measure_grouping(tensors, method, 16, seed=SEED) for method in ("hierarchical", "counting"))
    assert (ours["device"], theirs["device"]) == ("cuda", "cpu")
    assert (ours["counts"], ours["lost"]) == (theirs["counts"], 0)


def test_indices_on_a_gpu_are_grouped_by_the_kernel_and_others_on_the_cpu(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(triton_hashing, "hierarchical", lambda *given, **options: (given, options))
    index = torch.arange(100)
    given, options = group_indices(index.as_subclass(OnGpu), "hierarchical", 4, 100, seed=SEED, num_hashes=2)
    assert given[0].is_cuda and given[1:] == (4, SEED) and options == {"num_hashes": 2, "slots_per_index": 2.0}
    for tensor, method in ((index, "hierarchical"), (index.as_subclass(OnGpu), "counting")):
        grouping = group_indices(tensor, method, 4, 100, seed=SEED)
        assert by_partition(grouping.order_N, grouping.count_P) == expected(np.arange(100), 4)


@pytest.mark.skipif(triton_hashing.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")
@pytest.mark.parametrize("slots_type", ["i32", "i64"])  # i64 above 2**31 slots
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(slots_type, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = triton_hashing._place
    types = ["*i64"] * 4 + ["i32", "i32", slots_type, slots_type] + ["constexpr"] * 2
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, {"NUM_HASHES": 2, "BLOCK": BLOCK})
    assembly = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    assert re.search(r"atom\.\S*relaxed\S*\.cas\.b64", assembly)
    assert any(tmp_path.iterdir())


def test_without_a_gpu_and_the_interpreter_an_error_says_what_to_set(monkeypatch):
    monkeypatch.setattr(triton_hashing, "INTERPRETED", False)
    for index in (torch.arange(3), torch.arange(0)):
        with pytest.raises(RuntimeError, match=r"indices on cpu .* TRITON_INTERPRET=1"):
            triton_hashing.hierarchical(index, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ((torch.arange(3), 0), {}, "num_partitions must be in [1, 65536], got 0"),
        ((torch.arange(3), 65_537), {}, "num_partitions must be in [1, 65536], got 65537"),
        ((torch.arange(3), 4), {"num_hashes": 0}, "got 0, 2.0, 0.1"),
        ((torch.arange(3), 4), {"slots_per_index": 0}, "got 3, 0, 0.1"),
        ((torch.arange(3), 4), {"serial_share": -0.5}, "got 3, 2.0, -0.5"),
        ((torch.arange(3).int(), 4), {}, "indices must be int64 [N], got torch.int32 [3]"),
        ((torch.zeros(2, 3).long(), 4), {}, "indices must be int64 [N], got torch.int64 [2, 3]"),
    ],
)
def test_a_wrong_value_is_named(arguments, options, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        triton_hashing.hierarchical(*arguments, **options)
