"""The recurrence of a Mamba-2 layer and its convolution, with the state handed in and out in the open.

State-space duality (SSD, arXiv 2405.21060) scans a sequence chunk by chunk: inside a chunk it is a masked product of
matrices, and from a chunk to the next only the state goes. A request that goes on from a cached state (Marconi,
section 4.1) is one more chunk. For each head, with a scalar A:

    state_t = exp(dt_t A) state_{t-1} + dt_t x_t B_t^T        y_t = state_t C_t + D x_t

The state after any token is exact: at a chunk's end it is there anyway, within a chunk it is that chunk's partial sum
(Marconi's chunked state passing keeps the last chunk end and rolls forward). Nothing is changed in place, so a state
can be kept and gone on from any number of times. Values, and states of 4 bytes, are as in mamba-ssm, whose kernels run
instead where they are built and the tensors are on a GPU: see `implementation`.

| here        | paper, mamba-ssm | meaning                                                       |
|-------------|------------------|---------------------------------------------------------------|
| x_BLHP      | X, x             | input                                                         |
| dt_BLH      | delta, dt        | step, positive: after softplus and bias                       |
| A_H         | A                | logarithm of the decay for a step of one, negative            |
| B_BLGN      | B                | into the state, shared by the heads of a group                |
| C_BLGN      | C                | out of the state, shared by the heads of a group              |
| D_H         | D                | skip                                                          |
| state_BHPN  | h, ssm_state     | what a prefix leaves behind, whatever its length              |
| window_BWK  | conv_state       | the convolution's last K inputs, zero before the first token  |

Shape legend: B = sequences, L = tokens, H = heads, P = channels of a head, G = groups of heads, R = heads of a group,
N = state dimension, Q = tokens of a chunk, W = channels of the convolution, K = its taps
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from artifact.prefix_cache.serving.model_states import implementation

CHUNK_SIZE = 64
ScanInput = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""x, dt, A, B, C and D of one scan."""
Scanned = tuple[Tensor, Tensor, dict[int, Tensor]]
"""y, the state after the last token, the state at each position."""


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None = None,
    *,
    initial_states: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
    positions: Iterable[int] = (),
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Scan L tokens (any number of them), from a state to a state.

    initial_states: [B, H, P, N], the state before the first token; zeros by default
    positions:      numbers of tokens after which the state is wanted, each in [0, L]

    Returns: y [B, L, H, P] in the type of x, the state after the last token [B, H, P, N], the state at each position.
             States are float32, float64 for a float64 x.
    Raises:  ValueError for shapes that do not fit, a chunk_size below 1, a position beyond the tokens
    """
    batch, length, heads, head_dim = x_BLHP.shape
    groups, state_dim = B_BLGN.shape[2:]
    _check_shape("dt", dt_BLH, (batch, length, heads))
    _check_shape("A", A_H, (heads,))
    _check_shape("B", B_BLGN, (batch, length, groups, state_dim))
    _check_shape("C", C_BLGN, (batch, length, groups, state_dim))
    if heads % groups:
        raise ValueError(f"heads must be a multiple of groups, got {heads} and {groups}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    wanted = _check_positions(positions, length)
    precision = torch.promote_types(x_BLHP.dtype, torch.float32)
    if initial_states is None:
        state_BHPN = x_BLHP.new_zeros(batch, heads, head_dim, state_dim, dtype=precision)
    else:
        _check_shape("initial_states", initial_states, (batch, heads, head_dim, state_dim))
        state_BHPN = initial_states.to(precision)
    if length == 1:
        y_BHP, after_BHPN = ssd_step(state_BHPN, x_BLHP[:, 0], dt_BLH[:, 0], A_H, B_BLGN[:, 0], C_BLGN[:, 0], D_H)
        return y_BHP[:, None], after_BHPN, {position: (state_BHPN, after_BHPN)[position] for position in wanted}
    scan = _scan_by_kernels if implementation(x_BLHP.device, x_BLHP.dtype).name == "mamba-ssm" else _scan
    return scan((x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H), state_BHPN, chunk_size, wanted)


def _scan(layer: ScanInput, state_BHPN: Tensor, chunk_size: int, positions: list[int]) -> Scanned:
    x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H = layer
    length, groups, precision = x_BLHP.shape[1], B_BLGN.shape[2], state_BHPN.dtype
    x_BGRLP = x_BLHP.to(precision).unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    dt_BGRL = dt_BLH.to(precision).unflatten(2, (groups, -1)).permute(0, 2, 3, 1)
    B_BGLN, C_BGLN = (each.to(precision).transpose(1, 2) for each in (B_BLGN, C_BLGN))
    input_BGRLP = x_BGRLP * dt_BGRL[..., None]
    # float64: a segment's decay is a difference of sums, which loses the digits that the sums have in common
    log_decay_BGRL = dt_BGRL.double() * A_H.double().unflatten(0, (groups, -1))[..., None]

    state_BGRPN = state_BHPN.unflatten(1, (groups, -1))
    states = {0: state_BHPN}
    y_BGRLP = torch.empty_like(x_BGRLP)
    for start in range(0, length, chunk_size):
        chunk = slice(start, min(start + chunk_size, length))
        input_BGRQP, B_BGQN, C_BGQN = input_BGRLP[..., chunk, :], B_BGLN[:, :, chunk], C_BGLN[:, :, chunk]
        sum_BGRQ = log_decay_BGRL[..., chunk].cumsum(-1)

        # from the chunk's own tokens: the lower triangle of a matrix of decays
        decay_BGRQQ = (sum_BGRQ[..., :, None] - sum_BGRQ[..., None, :]).to(precision)
        above = torch.ones(decay_BGRQQ.shape[-2:], dtype=torch.bool, device=x_BLHP.device).triu(1)
        decay_BGRQQ = decay_BGRQQ.masked_fill_(above, -torch.inf).exp_()
        scores_BGRQQ = decay_BGRQQ.mul_((C_BGQN @ B_BGQN.mT)[:, :, None])
        # from what was before the chunk: the state, decayed; heads and channels are columns of one product
        carried_BGRQP = (C_BGQN @ state_BGRPN.flatten(2, 3).mT).unflatten(-1, state_BGRPN.shape[2:4]).transpose(2, 3)
        y_BGRLP[..., chunk, :] = scores_BGRQQ @ input_BGRQP + carried_BGRQP * sum_BGRQ.exp().to(precision)[..., None]

        after = {
            stop: _state_after(stop - start, state_BGRPN, input_BGRQP, B_BGQN, sum_BGRQ)
            for stop in {*positions, chunk.stop}
            if start < stop <= chunk.stop
        }
        states |= {stop: state.flatten(1, 2) for stop, state in after.items()}
        state_BGRPN = after[chunk.stop]

    if D_H is not None:
        y_BGRLP += x_BGRLP * D_H.to(precision).unflatten(0, (groups, -1))[..., None, None]
    y_BLHP = y_BGRLP.permute(0, 3, 1, 2, 4).flatten(2, 3).to(x_BLHP.dtype)
    return y_BLHP, states[length], {position: states[position] for position in positions}


def _state_after(tokens: int, state_BGRPN: Tensor, input_BGRQP: Tensor, B_BGQN: Tensor, sum_BGRQ: Tensor) -> Tensor:
    """The state after a chunk's first `tokens` tokens, [B, G, R, P, N]: each input, decayed from there to here."""
    precision, last_BGR = state_BGRPN.dtype, sum_BGRQ[..., tokens - 1]
    decay_BGRQ = (last_BGR[..., None] - sum_BGRQ[..., :tokens]).to(precision).exp()
    weighted_BGRQP = input_BGRQP[..., :tokens, :] * decay_BGRQ[..., None]
    added_BGRPN = (weighted_BGRQP.transpose(2, 3).flatten(3).mT @ B_BGQN[:, :, :tokens]).view(state_BGRPN.shape)
    return state_BGRPN * last_BGR.exp().to(precision)[..., None, None] + added_BGRPN


def _scan_by_kernels(layer: ScanInput, state_BHPN: Tensor, chunk_size: int, positions: list[int]) -> Scanned:
    """The same by mamba-ssm: a scan up to each position, since its kernels give no state but the last."""
    x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H = layer
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    states, parts = {0: state_BHPN}, [x_BLHP[:, :0]]
    for start, stop in pairwise(sorted({0, *positions, x_BLHP.shape[1]})):
        x, dt, B, C = (each[:, start:stop] for each in (x_BLHP, dt_BLH, B_BLGN, C_BLGN))
        y, states[stop] = mamba_chunk_scan_combined(
            x, dt, A_H, B, C, chunk_size, D=D_H, initial_states=states[start], return_final_states=True
        )
        parts.append(y)
    return torch.cat(parts, dim=1), states[x_BLHP.shape[1]], {position: states[position] for position in positions}


def ssd_step(
    state_BHPN: Tensor,
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    D_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token, as in decoding.

    Returns: y [B, H, P] in the type of x, the state after the token [B, H, P, N]; the given state stays as it is
    """
    if implementation(x_BHP.device, x_BHP.dtype).name == "mamba-ssm":
        return _step_by_kernel(state_BHPN, x_BHP, dt_BH, A_H, B_BGN, C_BGN, D_H)
    precision = torch.promote_types(x_BHP.dtype, torch.float32)
    dt_BH, x = dt_BH.to(precision), x_BHP.to(precision)
    heads_of_group = x_BHP.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = (each.to(precision).repeat_interleave(heads_of_group, dim=1) for each in (B_BGN, C_BGN))
    decay_BH = (dt_BH * A_H.to(precision)).exp()
    added_BHPN = (x * dt_BH[..., None])[..., None] * B_BHN[:, :, None]
    state_BHPN = state_BHPN.to(precision) * decay_BH[..., None, None] + added_BHPN
    y_BHP = (state_BHPN @ C_BHN[..., None])[..., 0]
    if D_H is not None:
        y_BHP = y_BHP + x * D_H.to(precision)[:, None]
    return y_BHP.to(x_BHP.dtype), state_BHPN


def _step_by_kernel(
    state_BHPN: Tensor, x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, D_H: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by mamba-ssm, whose kernel writes into the state and wants D and a bias. Strides of 0: one A a head."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    state_BHPN = state_BHPN.to(torch.promote_types(x_BHP.dtype, torch.float32), copy=True)
    zeros_H = torch.zeros_like(A_H)
    y_BHP = selective_state_update(
        state_BHPN,
        x_BHP,
        dt_BH[..., None].expand(x_BHP.shape),
        A_H[:, None, None].expand(state_BHPN.shape[1:]),
        B_BGN,
        C_BGN,
        D=(zeros_H if D_H is None else D_H)[:, None].expand(x_BHP.shape[1:]),
        dt_bias=zeros_H[:, None].expand(x_BHP.shape[1:]),
    )
    return y_BHP, state_BHPN


def causal_convolution(
    x_BLW: Tensor,
    weight_WK: Tensor,
    bias_W: Tensor | None = None,
    *,
    initial_window: Tensor | None = None,
    positions: Iterable[int] = (),
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Convolve each channel with its own K taps over the last K tokens, from a window to a window.

    initial_window: [B, W, K], the K inputs before the first token; zeros by default
    positions:      numbers of tokens after which the window is wanted, each in [0, L]

    Returns: y [B, L, W], the window after the last token [B, W, K], the window at each position. A window owns its
             memory. It has K inputs, as in mamba-ssm and in the paper's bytes, though the oldest is not read again.
    Raises:  ValueError for shapes that do not fit, a position beyond the tokens
    """
    batch, length, channels = x_BLW.shape
    taps = weight_WK.shape[1]
    _check_shape("weight", weight_WK, (channels, taps))
    wanted = _check_positions(positions, length)
    if initial_window is None:
        padded_BLW = functional.pad(x_BLW, (0, 0, taps, 0))
    else:
        _check_shape("initial_window", initial_window, (batch, channels, taps))
        padded_BLW = torch.cat([initial_window.to(x_BLW.dtype).mT, x_BLW], dim=1)
    precision = torch.promote_types(x_BLW.dtype, torch.float32)
    y_BLW = torch.zeros_like(x_BLW, dtype=precision) if bias_W is None else bias_W.to(precision).expand(x_BLW.shape)
    for tap in range(taps):  # not conv1d, whose order of summing may depend on the length
        y_BLW = y_BLW + padded_BLW[:, tap + 1 : tap + 1 + length] * weight_WK[:, tap].to(precision)
    windows = {
        stop: padded_BLW[:, stop : stop + taps].mT.clone(memory_format=torch.contiguous_format)
        for stop in {*wanted, length}
    }
    return y_BLW.to(x_BLW.dtype), windows[length], {position: windows[position] for position in wanted}


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def _check_positions(positions: Iterable[int], length: int) -> list[int]:
    wanted = list(positions)
    for position in wanted:
        if not 0 <= position <= length:
            raise ValueError(f"positions must be in [0, {length}], got {position}")
    return wanted
