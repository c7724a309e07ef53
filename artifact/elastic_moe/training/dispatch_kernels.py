"""One rank's dispatch plan as one compiled pass over its tokens: `dispatch.plan_dispatch` on a CPU.

Shape legend: as in `dispatch`
"""

from __future__ import annotations

import numpy as np
from numba import njit

PLANNED, NO_REPLICA, OTHER_CHOICES = range(3)


@njit(cache=True)
def _flows(tokens_SE, replicas_RE, expert, tokens, due, overflow, room):
    """For one expert: tokens and due share of each rank, and the ends of overflow and room, see `dispatch._flows`.

    Returns: whether the expert has a replica or no token
    """
    num_ranks = len(tokens_SE)
    total, copies, before = 0, 0, 0
    for rank in range(num_ranks):
        tokens[rank] = tokens_SE[rank, expert]
        total += tokens[rank]
        copies += replicas_RE[rank, expert]
    if total and not copies:
        return False
    base = total // max(copies, 1)
    sent, taken, furthest, start = 0, 0, 0, -1
    for rank in range(num_ranks):
        mine = replicas_RE[rank, expert]
        due[rank] = base * mine + min(max(total - base * copies - before, 0), mine)
        before += mine
        kept = min(tokens[rank], due[rank])
        sent += tokens[rank] - kept
        taken += due[rank] - kept
        overflow[rank], room[rank] = sent, taken
        if start < 0 or sent - taken < furthest:
            start, furthest = rank, sent - taken
    for ends in (overflow, room):  # the line starts after the rank `start`; what ends up to there comes a circle later
        shift = ends[start]
        for rank in range(num_ranks):
            ends[rank] -= shift
            if ends[rank] <= 0:
                ends[rank] += sent
    return True


@njit(cache=True)
def plan_row(expert_T, replicas_RE, tokens_SE, rank):
    """The fields of a `dispatch.DispatchPlan` as arrays.

    Returns: outcome, order_T, place_N, send_counts [R], recv_counts [S], expert_counts [E]
    """
    num_ranks, num_experts = tokens_SE.shape
    sent_RE = np.zeros((num_ranks, num_experts), np.int64)
    received_SE = np.zeros((num_ranks, num_experts), np.int64)
    sent_R, received_S = np.zeros(num_ranks, np.int64), np.zeros(num_ranks, np.int64)
    run_E = np.zeros(num_experts, np.int64)
    nothing = np.empty(0, np.int64)
    tokens, due, overflow, room = np.empty((4, num_ranks), np.int64)
    for expert in range(num_experts):
        if not _flows(tokens_SE, replicas_RE, expert, tokens, due, overflow, room):
            return NO_REPLICA, nothing, nothing, sent_R, received_S, run_E
        for other in range(num_ranks):
            kept = min(tokens[other], due[other]) if other == rank else 0
            mine_sent, mine_taken = max(tokens[rank] - due[rank], 0), max(due[rank] - tokens[rank], 0)
            other_sent, other_taken = max(tokens[other] - due[other], 0), max(due[other] - tokens[other], 0)
            sent = min(overflow[rank], room[other])
            sent -= max(overflow[rank] - mine_sent, room[other] - other_taken)
            received = min(overflow[other], room[rank])
            received -= max(overflow[other] - other_sent, room[rank] - mine_taken)
            sent_RE[other, expert] = max(sent, 0) + kept
            received_SE[other, expert] = max(received, 0) + kept
            sent_R[other] += sent_RE[other, expert]
            received_S[other] += received_SE[other, expert]
            run_E[expert] += received_SE[other, expert]
    # An expert's choices go to the ranks in turn, each to its block.
    next_RE, at = np.empty_like(sent_RE), 0
    for other in range(num_ranks):
        for expert in range(num_experts):
            next_RE[other, expert] = at
            at += sent_RE[other, expert]
    if at != len(expert_T):
        return OTHER_CHOICES, nothing, nothing, sent_R, received_S, run_E
    order_T, turn_E = np.empty(at, np.int64), np.zeros(num_experts, np.int64)
    for choice in range(len(expert_T)):
        expert = expert_T[choice]
        if not 0 <= expert < num_experts:
            return OTHER_CHOICES, nothing, nothing, sent_R, received_S, run_E
        other = turn_E[expert]
        while other < num_ranks and sent_RE[other, expert] == 0:
            other += 1
        if other == num_ranks:
            return OTHER_CHOICES, nothing, nothing, sent_R, received_S, run_E
        turn_E[expert] = other
        order_T[next_RE[other, expert]] = choice
        next_RE[other, expert] += 1
        sent_RE[other, expert] -= 1
    place_N, at = np.empty(run_E.sum(), np.int64), 0
    stands_E = np.cumsum(run_E) - run_E
    for source in range(num_ranks):
        for expert in range(num_experts):
            for _ in range(received_SE[source, expert]):
                place_N[at] = stands_E[expert]
                stands_E[expert] += 1
                at += 1
    return PLANNED, order_T, place_N, sent_R, received_S, run_E
