"""Largest differences between `ssd` and mamba-ssm, over the largest value, as JSON. A process of its own for test_ssd.

On a CPU mamba-ssm can be imported only with a stand-in for its compiled module, with which transformers would choose
it too: hence the process. Its Triton kernels then run in Triton's interpreter, chosen before Triton is imported. The
interpreter multiplies matrices of bfloat16 as if they were integers, so float16 stands for the short types there.
"""

import json
import os
import sys
from contextlib import nullcontext
from types import ModuleType

os.environ |= {"TRITON_INTERPRET": "1", "MAMBA_DETERMINISTIC": "1", "CUDA_VISIBLE_DEVICES": ""}

import reference_ssd as ours
import torch

CHUNK = 32


def arguments(dtype=torch.float32, batch=2, length=96, heads=4, head_dim=16, groups=2, state_dim=16):
    """x, dt, A, B, C, D and a state, as a layer of Mamba-2 has them at the start of its training."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, heads, head_dim, dtype=dtype)
    B, C = torch.randn(2, batch, length, groups, state_dim, dtype=dtype)
    precision = torch.promote_types(dtype, torch.float32)
    dt = torch.rand(batch, length, heads, dtype=precision) * 0.1
    A, D = -torch.rand(heads, dtype=precision) * 15 - 1, torch.randn(heads, dtype=precision)
    return (x, dt, A, B, C, D), torch.randn(batch, heads, head_dim, state_dim, dtype=precision)


def difference(*pairs):
    """Largest difference of pairs of theirs and ours, over the largest of theirs."""
    return max(((theirs - ours).abs().max() / theirs.abs().max()).item() for theirs, ours in pairs)


def minimal(dtype):
    """`ssd_minimal_discrete` with an initial state; it has no step, no D, and B and C of every head."""
    from mamba_ssm.modules.ssd_minimal import ssd_minimal_discrete

    (x, dt, A, B, C, _), state = arguments(dtype)
    B_heads, C_heads = (each.repeat_interleave(2, dim=2) for each in (B, C))
    y, final = ssd_minimal_discrete(x * dt[..., None], A * dt, B_heads, C_heads, CHUNK, state[:, None])
    y_ours, final_ours, _ = ours.ssd(x, dt, A, B, C, initial_states=state, chunk_size=CHUNK)
    return difference((y, y_ours), (final, final_ours))


def chunk_scan_reference():
    from mamba_ssm.ops.triton.ssd_combined import ssd_chunk_scan_combined_ref

    (x, dt, A, B, C, D), _ = arguments()
    return difference((ssd_chunk_scan_combined_ref(x, dt, A, B, C, CHUNK, D), ours.ssd(x, dt, A, B, C, D)[0]))


def steps_reference():
    """`selective_state_update_ref` for every token, against one scan."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update_ref

    (x, dt, A, B, C, D), state = arguments()
    y_ours, final_ours, _ = ours.ssd(x, dt, A, B, C, D, initial_states=state, chunk_size=CHUNK)
    step = state.clone()
    dt_channels = dt[..., None].expand(x.shape)
    A_channels, D_channels = A[:, None, None].expand(state.shape[1:]), D[:, None].expand(x.shape[2:])
    outputs = []
    for t in range(x.shape[1]):
        y = selective_state_update_ref(step, x[:, t], dt_channels[:, t], A_channels, B[:, t], C[:, t], D_channels)
        one, state = ours.ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t], D)
        outputs.append((y, one))
    y = torch.stack([each for each, _ in outputs], dim=1)
    return difference((y, y_ours), (step, final_ours), (step, state), *outputs)


def kernels(dtype, initial, length=96, positions=()):
    """The Triton kernels through the module's own call of them."""
    data, state = arguments(dtype, batch=1, length=length)
    state = state if initial else torch.zeros_like(state)
    y, final, states = ours._scan_by_kernels(data, state, CHUNK, list(positions))
    y_ours, final_ours, states_ours = ours.ssd(*data, initial_states=state, chunk_size=CHUNK, positions=positions)
    assert list(states) == list(states_ours) == list(positions)
    return difference((y, y_ours), (final, final_ours), *((states[p], states_ours[p]) for p in positions))


def step_kernel(dtype, skip):
    (x, dt, A, B, C, D), given = arguments(dtype, length=1)
    kept = given.clone()
    one = (given, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D if skip else None)
    by_kernel, by_torch = ours._step_by_kernel(*one), ours.ssd_step(*one)
    assert torch.equal(given, kept), "the kernel has written into the state that it was given"
    return difference(*zip(by_kernel, by_torch, strict=True))


def main():
    assert ours.implementation().name == "torch"  # settled before the stand-in looks like the compiled kernels
    sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    torch.cuda.device = lambda *_: nullcontext()
    torch.set_num_threads(1)
    print(
        json.dumps(
            {
                "ssd_minimal_discrete float32": minimal(torch.float32),
                "ssd_minimal_discrete float64": minimal(torch.float64),
                "ssd_chunk_scan_combined_ref float32": chunk_scan_reference(),
                "selective_state_update_ref float32": steps_reference(),
                "kernels, from nothing float32": kernels(torch.float32, initial=False),
                "kernels, from a state float32": kernels(torch.float32, initial=True),
                "kernels, from a state, odd length, positions float32": kernels(
                    torch.float32, initial=True, length=75, positions=(0, 32, 41)
                ),
                "kernels, from a state float16": kernels(torch.float16, initial=True),
                "step kernel float32": step_kernel(torch.float32, skip=True),
                "step kernel without D float32": step_kernel(torch.float32, skip=False),
                "step kernel float16": step_kernel(torch.float16, skip=True),
                "step kernel bfloat16": step_kernel(torch.bfloat16, skip=True),
            }
        )
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
