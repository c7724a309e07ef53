"""Formats: every message is exactly as long as its formula says, and decodes to the very bits that were encoded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from artifact.sparse_sync.tensors.formats import (
    Bitmap,
    Blocks,
    Coo,
    Dense,
    as_bytes,
    from_bytes,
    pack_bits,
    unpack_bits,
)
from artifact.sparse_sync.tensors.partitions import Hashed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def units(draw, max_length=70, widths=(1, 2, 5)):
    """A range, and units in it: none, all, the first and the last are as likely as any others."""
    length, width = draw(st.integers(1, max_length)), draw(st.sampled_from(widths))
    edges = st.sampled_from([[], [0], [length - 1], sorted({0, length - 1}), list(range(length))])
    anywhere = st.sets(st.integers(0, length - 1)).map(sorted)
    positions = torch.tensor(draw(edges | anywhere), dtype=torch.int64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.randn(len(positions), width, generator=generator).to(draw(st.sampled_from(DTYPES)))
    values[torch.rand(values.shape, generator=generator) < 0.1] = -0.0  # a listed unit may hold zeros of either sign
    return length, positions, values


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(as_bytes(one), as_bytes(other))


@pytest.mark.parametrize("form", [Coo, Bitmap])
@given(case=units())
@settings(max_examples=60, deadline=None)
def test_listed_units_come_back_bit_for_bit(form, case):
    length, positions, values = case
    format_ = form(length, values.shape[1], values.dtype)
    message = format_.encode(positions, values)
    assert (message.dtype, message.numel()) == (torch.uint8, format_.num_bytes(len(positions)))
    position, value = format_.decode(message)
    assert torch.equal(position, positions)
    assert same_bits(value, values)


@given(case=units())
@settings(max_examples=60, deadline=None)
def test_a_dense_message_is_every_unit_of_the_range(case):
    length, positions, values = case
    format_ = Dense(length, values.shape[1], values.dtype)
    message = format_.encode(positions, values)
    assert message.numel() == format_.num_bytes(len(positions)) == length * values.shape[1] * values.dtype.itemsize
    position, value = format_.decode(message)
    expected = torch.zeros(length, values.shape[1], dtype=values.dtype)
    expected[positions] = values
    assert torch.equal(position, torch.arange(length))
    assert same_bits(value, expected)


@given(case=units(max_length=1100, widths=(1,)))
@settings(max_examples=60, deadline=None)
def test_blocks_are_the_elements_of_every_block_touched_and_no_other(case):
    length, positions, values = case
    format_ = Blocks(length, 1, values.dtype)
    message = format_.encode(positions, values)
    blocks = sorted({position // 256 for position in positions.tolist()})
    assert message.numel() == format_.num_bytes(len(blocks))
    position, value = format_.decode(message)
    assert position.tolist() == [p for block in blocks for p in range(256 * block, min(256 * block + 256, length))]
    expected = torch.zeros(length, 1, dtype=values.dtype)
    expected[positions] = values
    assert same_bits(value, expected[position])


@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_keep_the_first_and_the_last_element(length, dtype):
    positions = torch.tensor(sorted({0, length - 1}))
    values = torch.arange(1, len(positions) + 1, dtype=dtype)[:, None]
    format_ = Blocks(length, 1, dtype)
    position, value = format_.decode(format_.encode(positions, values))
    kept = value.reshape(-1) != 0
    assert torch.equal(position[kept], positions)
    assert same_bits(value[kept], values)


@pytest.mark.parametrize(
    ("format_", "num_units", "num_bytes"),
    [
        (Coo(1000, 1, torch.float32), 10, 10 * (4 + 4)),
        (Coo(1000, 64, torch.float32), 10, 10 * (4 + 256)),
        (Coo(1000, 1, torch.bfloat16), 10, 10 * (4 + 2)),
        (Coo(1000, 3, torch.float16), 0, 0),
        (Coo((1 << 31) - 1, 1, torch.float32), 10, 10 * (4 + 4)),
        (Coo(1 << 31, 1, torch.float32), 10, 10 * (8 + 4)),
        (Bitmap(1000, 1, torch.float32), 10, 125 + 40),
        (Bitmap(1001, 1, torch.float32), 10, 126 + 40),
        (Bitmap(0, 1, torch.float32), 0, 0),
        (Bitmap(7, 512, torch.float16), 7, 1 + 7 * 1024),
        (Blocks(1000, 1, torch.float32), 3, 3 * (4 + 1024)),  # here of blocks
        (Blocks(1000, 1, torch.bfloat16), 1, 4 + 512),
        (Dense(1000, 1, torch.float32), 10, 4000),
        (Dense(1000, 64, torch.bfloat16), 0, 128_000),
    ],
)
def test_bytes_are_those_worked_by_hand(format_, num_units, num_bytes):
    assert format_.num_bytes(num_units) == num_bytes


def test_a_message_is_laid_out_index_first_lowest_byte_first():
    one = torch.tensor([[1.0]])
    assert Coo(300, 1, torch.float32).encode(torch.tensor([258]), one).tolist() == [2, 1, 0, 0, 0, 0, 128, 63]
    assert Bitmap(12, 1, torch.float32).encode(torch.tensor([9]), one).tolist() == [0, 2, 0, 0, 128, 63]
    blocks = Blocks(600, 1, torch.float32).encode(torch.tensor([513]), one)
    assert blocks.tolist()[:12] == [2, 0, 0, 0] + [0, 0, 0, 0] + [0, 0, 128, 63]


@pytest.mark.parametrize("length", [(1 << 31) - 1, 1 << 31, 1 << 40])
def test_an_index_keeps_all_its_bits_however_long_the_range(length):
    format_ = Coo(length, 1, torch.float32)
    positions = torch.tensor([0, (1 << 31) - 2, length - 1]).unique()
    message = format_.encode(positions, torch.ones(len(positions), 1))
    assert message.numel() == len(positions) * ((4 if length < 1 << 31 else 8) + 4)
    assert torch.equal(format_.decode(message)[0], positions)


@pytest.mark.parametrize(
    ("format_", "num_bytes", "told"),
    [
        (Coo(10, 1, torch.float32), 9, "a COO message must be whole units, got 9 bytes"),
        (Coo(10, 2, torch.float16), 7, "a COO message must be whole units, got 7 bytes"),
        (Bitmap(17, 1, torch.float32), 2, "a bitmap of 17 units has 3 bytes, got 2"),
        (Bitmap(17, 1, torch.float32), 7, "a value for each of 0 bits, got 1"),
        (Blocks(600, 1, torch.float32), 1024, "a message must be whole blocks, got 1024 bytes"),
        (Dense(10, 1, torch.float32), 39, "a dense message has 40 bytes, got 39"),
        (Dense(10, 1, torch.float32), 44, "a dense message has 40 bytes, got 44"),
    ],
)
def test_a_message_of_a_wrong_length_is_refused(format_, num_bytes, told):
    with pytest.raises(ValueError, match=told):
        format_.decode(torch.zeros(num_bytes, dtype=torch.uint8))


def test_a_bitmap_with_a_value_short_is_refused():
    format_ = Bitmap(16, 1, torch.float32)
    message = format_.encode(torch.tensor([3, 9]), torch.ones(2, 1))
    with pytest.raises(ValueError, match="a value for each of 2 bits, got 1"):
        format_.decode(message[:-4])


@pytest.mark.parametrize("form", [Coo, Bitmap, Blocks, Dense])
def test_a_range_a_width_and_a_type_that_cannot_be_are_refused(form):
    with pytest.raises(ValueError, match="got -1 and 1"):
        form(-1, 1, torch.float32)
    with pytest.raises(ValueError, match="got 5 and 0"):
        form(5, 0, torch.float32)
    with pytest.raises(ValueError, match=r"got torch\.int32"):
        form(5, 1, torch.int32)


def test_blocks_of_rows_are_refused():
    with pytest.raises(ValueError, match="width must be 1, got 2"):
        Blocks(5, 2, torch.float32)


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1))))))
@settings(max_examples=100, deadline=None)
def test_packed_bits_are_numpys_with_the_lowest_bit_first(case):
    length, chosen = case
    positions = torch.tensor(sorted(chosen) if length else [], dtype=torch.int64)
    packed = pack_bits(positions, length)
    bits = np.zeros(length, dtype=np.uint8)
    bits[positions.numpy()] = 1
    assert packed.tolist() == np.packbits(bits, bitorder="little").tolist()
    assert torch.equal(unpack_bits(packed, length), positions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64])
def test_a_part_of_a_message_is_read_wherever_it_starts(dtype):
    tensor = torch.arange(6).to(dtype)
    message = torch.cat([torch.zeros(3, dtype=torch.uint8), as_bytes(tensor)])
    assert torch.equal(from_bytes(message[3:], dtype), tensor)


def test_nothing_is_no_bytes_whatever_its_strides():
    from_numpy = torch.from_numpy(np.unique(np.empty(0, dtype=np.int64)))  # has a stride of 0 as int32
    assert as_bytes(from_numpy.to(torch.int32)).numel() == 0
    assert Coo(10, 1, torch.float32).encode(from_numpy, torch.empty(0, 1)).numel() == 0
    assert Dense(2, 1, torch.float32).encode(from_numpy, torch.empty(0, 1)).tolist() == [0] * 8


@pytest.mark.parametrize("num_units", [8, 1000, 12_345, 100_003])
@pytest.mark.parametrize("servers", [1, 4, 16, 64, 128])
def test_the_hash_bitmaps_of_all_servers_cost_one_bit_a_unit(num_units, servers):
    parts = Hashed(num_units, servers)
    total = sum(Bitmap(parts.part_size(part), 1, torch.float32).num_bytes(0) for part in range(servers))
    assert num_units / 8 <= total < num_units / 8 + servers
