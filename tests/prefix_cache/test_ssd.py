"""The scan against its recurrence one token at a time, against mamba-ssm, and against itself cut anywhere."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference_ssd as module
import torch
from hypothesis import given, settings, strategies as st
from reference_ssd import causal_convolution, ssd, ssd_step

from artifact import hardware
from artifact.prefix_cache.serving.model_states import implementation

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Of the largest value."""
ON_GPU = TOLERANCE | {torch.float32: 5e-3}
"""mamba-ssm's kernels multiply float32 in TF32: 10 bits of the fraction."""


def random_inputs(seed, batch, length, heads, head_dim, groups, state_dim, dtype=torch.float64):
    """x, dt, A, B, C, D as a layer of Mamba-2 has them at the start of its training, and a state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    dt = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64).to(dtype) * 0.1
    A = -torch.rand(heads, generator=generator, dtype=torch.float64).to(dtype) * 15 - 1
    B, C = normal(2, batch, length, groups, state_dim)
    x, D, state = normal(batch, length, heads, head_dim), normal(heads), normal(batch, heads, head_dim, state_dim)
    return (x, dt, A, B, C, D), state


def recurrence(x, dt, A, B, C, D, state):
    """The definition, one token and one head at a time, in float64: outputs, and the state after each token."""
    x, dt, A, B, C, D, state = (each.double() for each in (x, dt, A, B, C, D, state))
    heads_of_group = x.shape[2] // B.shape[2]
    y, states = torch.empty_like(x), [state]
    for t in range(x.shape[1]):
        state = state.clone()
        for head in range(x.shape[2]):
            group = head // heads_of_group
            decay = torch.exp(dt[:, t, head] * A[head])[:, None, None]
            added = dt[:, t, head, None, None] * x[:, t, head, :, None] * B[:, t, group, None, :]
            state[:, head] = decay * state[:, head] + added
            y[:, t, head] = (state[:, head] * C[:, t, group, None, :]).sum(-1) + D[head] * x[:, t, head]
        states.append(state)
    return y, states


def part(arguments, start, stop):
    return tuple(each if each.dim() == 1 else each[:, start:stop] for each in arguments)


def assert_near(found, expected, dtype, tolerance=TOLERANCE):
    largest = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance[dtype] * max(largest, 1))


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3))
    sizes = {
        "seed": draw(st.integers(0, 2**31)),
        "batch": draw(st.integers(1, 2)),
        "length": draw(st.integers(0, 40)),
        "heads": groups * draw(st.integers(1, 3)),
        "head_dim": draw(st.integers(1, 5)),
        "groups": groups,
        "state_dim": draw(st.integers(1, 5)),
    }
    positions = draw(st.lists(st.integers(0, sizes["length"]), max_size=4))
    return sizes, draw(st.integers(1, 17)), positions, draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([torch.float64, torch.float32]))
def test_the_scan_is_its_recurrence_whatever_the_shapes_chunks_and_positions(case, dtype):
    sizes, chunk_size, positions, from_state = case
    arguments, state = random_inputs(**sizes, dtype=dtype)
    state = state if from_state else None
    y, states = recurrence(*arguments, state if from_state else torch.zeros_like(random_inputs(**sizes)[1]))
    found, final, at = ssd(*arguments, initial_states=state, chunk_size=chunk_size, positions=positions)
    assert (found.dtype, final.dtype, list(at)) == (dtype, dtype, list(dict.fromkeys(positions)))
    assert_near(found, y, dtype)
    assert_near(final, states[-1], dtype)
    for position in positions:
        assert_near(at[position], states[position], dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_keep_their_states_in_float32(dtype):
    (x, dt, A, B, C, D), state = random_inputs(0, 1, 100, 4, 8, 2, 8, torch.float32)
    arguments = (x.to(dtype), dt, A, B.to(dtype), C.to(dtype), D)
    y, states = recurrence(*arguments, state)
    found, final, _ = ssd(*arguments, initial_states=state)
    assert (found.dtype, final.dtype) == (dtype, torch.float32)
    assert_near(found, y, dtype)
    assert_near(final, states[-1], torch.float32)


@pytest.mark.parametrize("cut", [1, 2, 31, 32, 33, 64, 95, 96, 99])
def test_a_resumed_scan_equals_the_whole_one_and_bit_by_bit_the_same_cut_computed_again(cut):
    arguments, _ = random_inputs(1, 2, 100, 4, 16, 2, 16, torch.float32)
    y, final, at = ssd(*arguments, chunk_size=32, positions=[cut])
    _, prefix, _ = ssd(*part(arguments, 0, cut), chunk_size=32)
    assert_near(prefix, at[cut], torch.float32)
    kept = prefix.clone()
    first, first_final, _ = ssd(*part(arguments, cut, 100), initial_states=prefix, chunk_size=32)
    assert torch.equal(prefix, kept), "a state that was handed in has changed"
    assert_near(first, y[:, cut:], torch.float32)
    assert_near(first_final, final, torch.float32)
    again, again_final, _ = ssd(*part(arguments, cut, 100), initial_states=kept, chunk_size=32)
    assert torch.equal(again, first) and torch.equal(again_final, first_final)
    zeroed, _, _ = ssd(*part(arguments, cut, 100), chunk_size=32)
    assert (zeroed - y[:, cut:]).abs().max() > 1e-2, "a lost state has to show"


def test_a_state_from_the_end_of_a_chunk_gives_the_very_bits_of_the_whole_scan():
    arguments, _ = random_inputs(2, 1, 128, 4, 16, 1, 16, torch.float32)
    y, final, at = ssd(*arguments, chunk_size=32, positions=[64])
    suffix, end, _ = ssd(*part(arguments, 64, 128), initial_states=at[64], chunk_size=32)
    assert torch.equal(suffix, y[:, 64:]) and torch.equal(end, final)


def test_strong_decay_over_a_long_chunk_neither_overflows_nor_loses_digits():
    (x, dt, A, B, C, D), state = random_inputs(3, 1, 256, 2, 8, 1, 8, torch.float32)
    arguments = (x, dt * 20, A, B, C, D)
    y, states = recurrence(*arguments, state)
    found, final, _ = ssd(*arguments, initial_states=state, chunk_size=256)
    assert_near(found, y, torch.float32)
    assert_near(final, states[-1], torch.float32)


def test_steps_are_the_scan():
    (x, dt, A, B, C, D), state = random_inputs(4, 2, 20, 6, 4, 3, 5, torch.float32)
    y, final, _ = ssd(x, dt, A, B, C, D, initial_states=state, chunk_size=8)
    for t in range(20):
        kept = state.clone()
        one, after = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        assert torch.equal(state, kept)
        assert_near(one, y[:, t], torch.float32)
        state = after
    assert_near(state, final, torch.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5), st.data())
def test_the_convolution_is_torchs_and_goes_on_from_its_window_bit_by_bit(seed, length, taps, data):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, length, 3), (3, taps), (3,)))
    expected = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=taps - 1, groups=3)[..., :length].mT
    cut = data.draw(st.integers(0, length))
    y, window, at = causal_convolution(x, weight, bias, positions=[cut])
    assert_near(y, expected, torch.float32)
    last = torch.nn.functional.pad(x, (0, 0, taps, 0))[:, length : length + taps].mT
    assert torch.equal(window, last) and window.untyped_storage().nbytes() == window.nbytes
    _, prefix, _ = causal_convolution(x[:, :cut], weight, bias)
    assert torch.equal(prefix, at[cut])
    suffix, end, _ = causal_convolution(x[:, cut:], weight, bias, initial_window=prefix)
    assert torch.equal(suffix, y[:, cut:]) and torch.equal(end, window)


def test_a_wrong_value_is_named():
    arguments, state = random_inputs(5, 1, 10, 4, 2, 2, 3)
    x, dt, A, B, C, D = arguments
    for wrong, options, told in (
        (arguments, {"positions": [11]}, "positions must be in [0, 10], got 11"),
        (arguments, {"positions": [-1]}, "positions must be in [0, 10], got -1"),
        (arguments, {"chunk_size": 0}, "chunk_size must be positive, got 0"),
        (arguments, {"initial_states": state[:, :3]}, "initial_states must have shape [1, 4, 2, 3], got [1, 3, 2, 3]"),
        ((x, dt[:, 1:], A, B, C, D), {}, "dt must have shape [1, 10, 4], got [1, 9, 4]"),
        ((x, dt, A[1:], B, C, D), {}, "A must have shape [4], got [3]"),
        ((x[:, :, 1:], dt[:, :, 1:], A[1:], B, C, D[1:]), {}, "heads must be a multiple of groups, got 3 and 2"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            ssd(*wrong, **options)
    with pytest.raises(ValueError, match=r"initial_window must have shape \[1, 3, 4\], got \[1, 3, 3\]"):
        causal_convolution(torch.zeros(1, 5, 3), torch.zeros(3, 4), initial_window=torch.zeros(1, 3, 3))


@pytest.mark.parametrize(
    ("machine", "device", "dtype", "name", "reason"),
    [
        (("cpu", False), None, torch.float32, "torch", "kernels need CUDA: why this device"),
        (("cuda", False), None, torch.float32, "torch", "compiled kernels are not installed"),
        (("cuda", True), None, torch.bfloat16, "mamba-ssm", "installed and why this device"),
        (("cuda", True), "cuda:0", torch.float32, "mamba-ssm", "installed and why this device"),
        (("cuda", True), "cpu", torch.float32, "torch", "the tensors are on cpu"),
        (("cuda", True), None, torch.float64, "torch", "the tensors are float64"),
    ],
)
def test_kernels_are_chosen_where_they_can_run_and_the_reason_is_told(
    monkeypatch, machine, device, dtype, name, reason
):
    seen = SimpleNamespace(device=machine[0], mamba_kernels=machine[1], reason="why this device")
    monkeypatch.setattr(hardware, "detect", lambda: seen)
    chosen = implementation(device, dtype)
    assert chosen.name == name and reason in chosen.reason


@pytest.fixture(scope="module")
def oracles():
    for needed in ("mamba_ssm", "triton"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    script = Path(__file__).with_name("mamba_ssm_oracles.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "oracle",
    [
        "ssd_minimal_discrete float32",
        "ssd_minimal_discrete float64",
        "ssd_chunk_scan_combined_ref float32",
        "selective_state_update_ref float32",
        "kernels, from nothing float32",
        "kernels, from a state float32",
        "kernels, from a state, odd length, positions float32",
        "kernels, from a state float16",
        "step kernel float32",
        "step kernel without D float32",
        "step kernel float16",
        "step kernel bfloat16",
    ],
)
def test_the_scan_is_that_of_mamba_ssm(oracles, oracle):
    assert oracles[oracle] <= TOLERANCE[getattr(torch, oracle.split()[-1])]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_on_a_gpu_equal_the_scan_on_a_cpu(dtype):
    chosen = implementation(dtype=dtype)
    if chosen.name != "mamba-ssm":
        pytest.skip(chosen.reason)
    (x, dt, A, B, C, D), state = random_inputs(6, 2, 1000, 8, 64, 2, 64, torch.float32)
    arguments = (x.to(dtype), dt, A, B.to(dtype), C.to(dtype), D)
    options = {"chunk_size": 128, "positions": [0, 100, 128, 1000]}
    y, final, at = module._scan(arguments, state, 128, options["positions"])
    on_gpu, gpu_final, gpu_at = ssd(*(each.cuda() for each in arguments), initial_states=state.cuda(), **options)
    assert on_gpu.is_cuda and list(gpu_at) == list(at)
    for found, expected in ((on_gpu, y), (gpu_final, final), *((gpu_at[p], at[p]) for p in at)):
        assert_near(found.cpu(), expected, dtype, ON_GPU)
    token = tuple(each if each.dim() == 1 else each[:, 0] for each in arguments)
    one, after = ssd_step(state, *token)
    gpu_one, gpu_after = ssd_step(state.cuda(), *(each.cuda() for each in token))
    assert_near(gpu_one.cpu(), one, dtype, ON_GPU)
    assert_near(gpu_after.cpu(), after, dtype, ON_GPU)
