"""Partitions: every unit has one place in one part, and the bijection is a permutation that can be undone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from artifact.sparse_sync.tensors.bijection import Bijection
from artifact.sparse_sync.tensors.partitions import PARTITIONS, partition

SHAPES = [(1, 1), (1, 5), (3, 8), (10, 8), (255, 2), (256, 3), (257, 3), (1000, 7), (1024, 4), (5000, 16), (5001, 64)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def every_place(parts):
    """Units of each part in the order of their positions."""
    return [parts.index(part, torch.arange(parts.part_size(part))) for part in range(parts.num_parts)]


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize(("num_units", "num_parts"), SHAPES)
@pytest.mark.parametrize("seed", [0, 3])
def test_every_unit_has_one_place_in_the_part_that_part_of_names(kind, num_units, num_parts, seed):
    parts = PARTITIONS[kind](num_units, num_parts, seed)
    part = parts.part_of(torch.arange(num_units))
    assert set(part.tolist()) <= set(range(num_parts))
    places = every_place(parts)
    assert sorted(torch.cat(places).tolist()) == list(range(num_units))
    for number, index in enumerate(places):
        assert (part[index] == number).all()
        assert torch.equal(parts.position(number, index), torch.arange(parts.part_size(number)))


@pytest.mark.parametrize("kind", PARTITIONS)
@pytest.mark.parametrize(("num_units", "num_parts"), SHAPES)
def test_part_sizes_are_what_is_counted_and_sum_to_all(kind, num_units, num_parts):
    parts = PARTITIONS[kind](num_units, num_parts)
    sizes = [parts.part_size(part) for part in range(num_parts)]
    assert sum(sizes) == num_units
    assert parts.count(torch.arange(num_units)).tolist() == sizes
    assert torch.bincount(parts.part_of(torch.arange(num_units)), minlength=num_parts).tolist() == sizes


@pytest.mark.parametrize("kind", PARTITIONS)
@given(case=st.tuples(st.integers(1, 2000), st.integers(1, 20), st.integers(0, 9), st.randoms(use_true_random=False)))
@settings(max_examples=25, deadline=None)
def test_split_has_every_place_once_in_order_under_its_part(kind, case):
    num_units, num_parts, seed, random = case
    parts = PARTITIONS[kind](num_units, num_parts, seed)
    index = torch.tensor(sorted(random.sample(range(num_units), random.randint(0, num_units))), dtype=torch.int64)
    pieces = parts.split(index)
    part = parts.part_of(index).tolist()
    assert [piece.tolist() for piece in pieces] == [
        [place for place, found in enumerate(part) if found == number] for number in range(num_parts)
    ]
    assert parts.count(index).tolist() == [len(piece) for piece in pieces]
    for number, piece in enumerate(pieces):
        position = parts.position(number, index[piece])
        assert torch.equal(parts.index(number, position), index[piece])
        assert position.numel() == 0 or int(position.max()) < parts.part_size(number)


@pytest.mark.parametrize("kind", ["contiguous", "modulo", "block-cyclic", "hashed"])
def test_positions_rise_with_the_unit_so_that_messages_stay_sorted(kind):
    parts = PARTITIONS[kind](3000, 7)
    for index in every_place(parts):
        assert bool((index[1:] > index[:-1]).all())


def test_parts_are_those_worked_by_hand():
    index = torch.arange(10)
    assert PARTITIONS["contiguous"](10, 4).part_of(index).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert PARTITIONS["modulo"](10, 4).part_of(index).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    cyclic = PARTITIONS["block-cyclic"](1300, 2)  # blocks of 256, 256, 256, 256, 256 and 20
    assert cyclic.part_of(torch.tensor([0, 255, 256, 512, 1024, 1299])).tolist() == [0, 0, 1, 0, 0, 1]
    assert [cyclic.part_size(part) for part in (0, 1)] == [768, 532]
    assert cyclic.position(1, torch.tensor([256, 768, 1280])).tolist() == [0, 256, 512]


def test_parts_of_the_bijection_differ_by_less_than_one_stretch():
    for num_units, num_parts in ((1000, 7), (4096, 16), (999_983, 64)):
        parts = PARTITIONS["bijection"](num_units, num_parts)
        stride = -(-num_units // num_parts)
        assert all(parts.part_size(part) == stride for part in range(num_parts - 1))


def test_the_hashed_parts_hold_four_bytes_a_unit():
    assert PARTITIONS["hashed"](12_345, 16).table_bytes == 4 * 12_345


def test_seeds_of_hash_and_bijection_give_other_parts():
    index = torch.arange(20_000)
    for kind in ("hashed", "bijection"):
        one, other = (PARTITIONS[kind](20_000, 16, seed).part_of(index) for seed in (0, 1))
        assert abs(float((one == other).double().mean()) - 1 / 16) < 0.02
        assert torch.equal(one, PARTITIONS[kind](20_000, 16, 0).part_of(index))


def test_a_map_is_made_once():
    assert partition("hashed", 1000, 4, 1) is partition("hashed", 1000, 4, 1)
    assert partition("hashed", 1000, 4, 1) is not partition("hashed", 1000, 4, 2)


@pytest.mark.parametrize("kind", PARTITIONS)
def test_a_partition_of_nothing_is_refused(kind):
    with pytest.raises(ValueError, match="got 0 and 4"):
        partition(kind, 0, 4)
    with pytest.raises(ValueError, match="got 4 and 0"):
        partition(kind, 4, 0)


def test_a_kind_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"a partition must be one of contiguous, .*, bijection, got 'alphabetical'"):
        partition("alphabetical", 10, 2)


# The bijection


@given(
    size=st.integers(1, 3000) | st.sampled_from([2**k + d for k in range(1, 12) for d in (-1, 0, 1)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_bijection_is_a_permutation_and_its_inverse_undoes_it(size, seed):
    bijection = Bijection(size, seed)
    everything = torch.arange(size)
    image = bijection.forward(everything)
    assert torch.equal(image.sort().values, everything)
    assert torch.equal(bijection.inverse(image), everything)
    assert torch.equal(bijection.forward(bijection.inverse(everything)), everything)


@given(
    size=st.integers(1, 1 << 62) | st.sampled_from([(1 << 31) - 1, 1 << 32, (1 << 61) + 1, 1 << 62]),
    seed=st.integers(0, 1 << 40),
    share=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
@settings(max_examples=80, deadline=None)
def test_the_bijection_of_a_large_range_can_be_undone(size, seed, share):
    index = torch.tensor([0, size - 1, *(min(size - 1, int(each * size)) for each in share)], dtype=torch.int64)
    bijection = Bijection(size, seed)
    image = bijection.forward(index)
    assert bool((image >= 0).all()) and bool((image < size).all())
    assert torch.equal(bijection.inverse(image), index)
    assert len(image.unique()) == len(index.unique())


def test_seeds_give_other_permutations_and_the_same_seed_the_same():
    index = torch.arange(10_000)
    images = [Bijection(10_000, seed).forward(index) for seed in range(5)]
    for i, one in enumerate(images):
        assert torch.equal(one, Bijection(10_000, i).forward(index))
        for other in images[i + 1 :]:
            assert float((one == other).double().mean()) < 0.01


def test_the_bijection_takes_no_table():
    bijection = Bijection(1 << 62, 1)
    assert sum(each.nbytes for each in vars(bijection).values() if isinstance(each, np.ndarray)) < 1000


@pytest.mark.parametrize(("size", "seed", "told"), [(0, 0, "got 0"), ((1 << 62) + 1, 0, "got 4611"), (5, -1, "got -1")])
def test_a_size_or_seed_that_cannot_be_is_named(size, seed, told):
    with pytest.raises(ValueError, match=told):
        Bijection(size, seed)
