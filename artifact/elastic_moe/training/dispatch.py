"""Which tokens go to which rank if experts have replicas on several ranks (Lazarus, algorithm 1), in integers.

Shape legend: S = source ranks, R = destination ranks (the same ranks), E = experts, T = token choices of one rank,
N = token choices that one rank receives. With top-k, a token is k choices: choice i is of token i // k.

On a device a plan is a few dozen operations of torch. On a CPU it is one compiled pass, `dispatch_kernels`, as starting
an operation there costs more than its work on a few numbers per rank and expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from artifact.elastic_moe.training.dispatch_kernels import NO_REPLICA, PLANNED, plan_row


@dataclass(frozen=True)
class DispatchPlan:
    """What one rank sends, receives and computes. With x_T its rows, a layer is:

    received_N = all_to_all(x_T.index_select(0, order_T), recv_counts, send_counts)
    outputs_N  = each expert on its part of empty_N.index_copy(0, place_N, received_N).split(expert_counts)
    returned_T = all_to_all(outputs_N.index_select(0, place_N), send_counts, recv_counts)
    result_T   = empty_T.index_copy(0, order_T, returned_T)
    """

    order_T: Tensor  # int64, choices by (destination rank, expert), else as given
    send_counts: list[int]  # [R], choices to each rank
    recv_counts: list[int]  # [S], choices from each rank; they arrive by (source rank, expert)
    place_N: Tensor  # int64, where each received choice stands by (expert, source rank)
    expert_counts: list[int]  # [E], choices that this rank runs on each expert


def plan_dispatch(expert_T: Tensor, replicas_RE: Tensor, tokens_SE: Tensor, rank: int) -> DispatchPlan:
    """The plan of `rank` for its token choices, in time and memory of its row and column only.

    The t tokens of an expert with r replicas make t // r for each replica, and one more for the first t % r of them in
    the order of ranks. A rank keeps as many local tokens as its replicas take. The remaining tokens fill the remaining
    room cyclically: in the order of ranks, a token goes to the next rank with room. So each rank gets the share of its
    replicas, no token is lost and nothing is padded. All ranks compute the same.

    expert_T:    [T], int64, expert of each choice; tokens_SE[rank] is how often each occurs
    replicas_RE: [R, E], integers >= 0, copies of each expert on each rank; copies on one rank share its tokens
    tokens_SE:   [S, E], integers >= 0, tokens that each rank routes to each expert
    Raises: ValueError if shapes differ, an expert has tokens and no replica, the rank is none of R, or the choices are
            not those of tokens_SE[rank]
    Source: Lazarus, algorithm 1, which shares the rest in proportion to the room and leaves rounding open
    """
    if not 0 <= rank < len(replicas_RE):
        raise ValueError(f"rank must be in [0, {len(replicas_RE)}), got {rank}")
    tokens_SE, replicas_RE = _checked(tokens_SE, replicas_RE)
    planned = _planned_by_kernel if expert_T.device.type == "cpu" else _planned_by_torch
    return planned(expert_T, replicas_RE, tokens_SE, rank)


def _planned_by_torch(expert_T: Tensor, replicas_RE: Tensor, tokens_SE: Tensor, rank: int) -> DispatchPlan:
    local_RE, start_2RE, end_2RE = _flows(tokens_SE, replicas_RE)
    # This rank's overflow against all room, and its room against all overflow: what it sends and what it receives.
    mine, other = slice(rank, rank + 1), [1, 0]
    moved_2RE = _overlap(start_2RE[:, mine], end_2RE[:, mine], start_2RE[other], end_2RE[other])
    moved_2RE[:, rank] += local_RE[rank]
    # All that the host needs in one copy, as each makes it wait for the device.
    sums = [moved_2RE.sum(2).ravel(), moved_2RE[1].sum(0)]
    counts, num_ranks = torch.cat(sums).tolist(), len(replicas_RE)
    send_counts, recv_counts = counts[:num_ranks], counts[num_ranks : 2 * num_ranks]
    num_sent, num_received = sum(send_counts), sum(recv_counts)
    _check_choices(num_sent, expert_T, rank)
    # Both ways, choices travel by (rank, expert) and stand by (expert, rank) at this rank: they keep their order in a
    # block, and each block moves by the difference of its starts, which is that of its ends.
    end_2ER = moved_2RE.swapaxes(1, 2).reshape(2, -1).cumsum(1).reshape(2, -1, num_ranks)
    shift_2RE = end_2ER.swapaxes(1, 2) - moved_2RE.ravel().cumsum(0).reshape(moved_2RE.shape)
    total = num_sent + num_received
    place = shift_2RE.ravel().repeat_interleave(moved_2RE.ravel(), output_size=total)
    place_T, place_N = place.add_(torch.arange(total, device=place.device)).split([num_sent, num_received])
    order_T = expert_T.argsort(stable=True).index_select(0, place_T)
    return DispatchPlan(order_T, send_counts, recv_counts, place_N, counts[2 * num_ranks :])


def _planned_by_kernel(expert_T: Tensor, replicas_RE: Tensor, tokens_SE: Tensor, rank: int) -> DispatchPlan:
    outcome, order_T, place_N, sent_R, received_S, run_E = plan_row(
        expert_T.numpy(), replicas_RE.numpy(), tokens_SE.numpy(), rank
    )
    if outcome == NO_REPLICA:
        _flows(tokens_SE, replicas_RE)  # raises, and names the experts
    if outcome != PLANNED:
        num_sent = int(tokens_SE[rank].sum())
        _check_choices(num_sent, expert_T, rank)
        raise ValueError(f"expert_T must have the choices of tokens_SE[{rank}], got others of the same number")
    return DispatchPlan(
        torch.from_numpy(order_T), sent_R.tolist(), received_S.tolist(), torch.from_numpy(place_N), run_E.tolist()
    )


def _check_choices(num_sent: int, expert_T: Tensor, rank: int) -> None:
    if num_sent != len(expert_T):
        raise ValueError(f"expert_T must have the {num_sent} choices of tokens_SE[{rank}], got {len(expert_T)}")


def _checked(tokens_SE: Tensor, replicas_RE: Tensor) -> tuple[Tensor, Tensor]:
    if tokens_SE.ndim != 2 or tokens_SE.shape != replicas_RE.shape:
        shapes = f"{tuple(tokens_SE.shape)} and {tuple(replicas_RE.shape)}"
        raise ValueError(f"tokens_SE and replicas_RE must have one shape [ranks, experts], got {shapes}")
    return tokens_SE.long(), replicas_RE.long()


def _flows(tokens_SE: Tensor, replicas_RE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that each rank keeps, [R, E]; start and end of its overflow (0) and its room (1) on a line, [2, R, E].

    Going round the ranks from one before which no token waits, first in, first out means that the p-th token of the
    overflow takes the p-th place of the room. No token waits after the rank at which the sum of room is furthest ahead
    of the sum of overflow. The line starts after that rank.
    """
    total_E, copies_E = tokens_SE.sum(0), replicas_RE.sum(0)
    base_E = total_E // copies_E.clamp(min=1)
    before_RE = replicas_RE.cumsum(0) - replicas_RE
    extra_RE = torch.minimum((total_E - base_E * copies_E - before_RE).clamp(min=0), replicas_RE)
    capacity_RE = base_E * replicas_RE + extra_RE
    local_RE = torch.minimum(tokens_SE, capacity_RE)
    size_2RE = torch.stack([tokens_SE, capacity_RE]) - local_RE
    end_2RE = size_2RE.cumsum(1)
    if (end_2RE[0, -1] != end_2RE[1, -1]).any():  # the overflow is more than the room only where there is none
        without = [expert for expert, tokens in enumerate((total_E * (copies_E == 0)).tolist()) if tokens]
        raise ValueError(f"experts with tokens must have a replica, got none of {without}")
    last_E = (end_2RE[0] - end_2RE[1]).argmin(0)
    shifted_2RE = end_2RE - end_2RE[:, last_E, torch.arange(len(last_E), device=last_E.device)][:, None]
    end_2RE = torch.where(shifted_2RE > 0, shifted_2RE, shifted_2RE + end_2RE[:, -1:])
    return local_RE, end_2RE - size_2RE, end_2RE


def _overlap(start: Tensor, end: Tensor, other_start: Tensor, other_end: Tensor) -> Tensor:
    """Lengths of the intersections of intervals."""
    return (torch.minimum(end, other_end) - torch.maximum(start, other_start)).clamp(min=0)
