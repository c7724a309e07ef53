"""Dispatch: every token reaches a replica, each replica gets its exact share, and layers equal a dense one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe.training import dispatch
from artifact.elastic_moe.training.dispatch import plan_dispatch


def split_tokens(tokens_SE, replicas_RE):
    """[S, E, R], tokens that each source sends to each rank for each expert: the plans of all ranks together."""
    local_RE, start_2RE, end_2RE = dispatch._flows(*dispatch._checked(tokens_SE, replicas_RE))
    sent_SRE = dispatch._overlap(start_2RE[0, :, None], end_2RE[0, :, None], start_2RE[1], end_2RE[1])
    ranks = torch.arange(len(local_RE), device=local_RE.device)
    sent_SRE[ranks, ranks] += local_RE
    return sent_SRE.transpose(1, 2)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(tokens, replicas):
    """The rule for one expert, rank by rank: lists over ranks to a list of lists, source by destination."""
    ranks = range(len(tokens))
    share, more = divmod(sum(tokens), sum(replicas) or 1)
    capacity = []
    for copies in replicas:
        capacity.append(share * copies + min(copies, more))
        more -= min(copies, more)
    sent = [[0] * len(tokens) for _ in ranks]
    for rank in ranks:
        sent[rank][rank] = min(tokens[rank], capacity[rank])
    over = [tokens[rank] - sent[rank][rank] for rank in ranks]
    room = [capacity[rank] - sent[rank][rank] for rank in ranks]
    for first in ranks:  # a round that starts behind a rank after which nothing waits serves all
        queue, moved, unserved = [], [], 0
        for rank in [*ranks][first:] + [*ranks][:first]:
            queue += [rank] * over[rank]
            unserved += max(0, room[rank] - len(queue))
            moved += [(source, rank) for source in queue[: room[rank]]]
            del queue[: room[rank]]
        if not unserved:
            break
    assert not queue and not unserved
    for source, rank in moved:
        sent[source][rank] += 1
    return sent


def random_columns(rng, ranks, experts):
    """[R, E] tokens and replicas: any skew, ranks without tokens, copies on few ranks, experts without tokens."""
    tokens = rng.integers(0, 12, (ranks, experts)) * (rng.random((ranks, experts)) < rng.random(experts))
    tokens[:, rng.random(experts) < 0.05] = 0
    one = rng.random(experts) < 0.1
    tokens[:, one] *= rng.integers(ranks, size=one.sum()) == np.arange(ranks)[:, None]
    replicas = rng.integers(1, 4, (ranks, experts)) * (rng.random((ranks, experts)) < rng.random(experts))
    replicas[rng.integers(ranks, size=experts), np.arange(experts)] += 1
    return torch.from_numpy(tokens), torch.from_numpy(replicas)


def choices(rng, tokens_SE):
    """For each rank, its choices in a random order."""
    experts_E = torch.arange(tokens_SE.shape[1])
    each = [experts_E.repeat_interleave(counts_E) for counts_E in tokens_SE]
    return [expert_T[torch.from_numpy(rng.permutation(len(expert_T)))] for expert_T in each]


def exchange(plans, rows_of):
    """All-to-all of equal processes: what each rank receives, with autograd."""
    parts = [rows.split(each.send_counts) for each, rows in zip(plans, rows_of, strict=True)]
    return [torch.cat([part[rank] for part in parts]) for rank in range(len(plans))]


def exchange_back(plans, rows_of):
    parts = [rows.split(each.recv_counts) for each, rows in zip(plans, rows_of, strict=True)]
    return [torch.cat([part[rank] for part in parts]) for rank in range(len(plans))]


def test_worked_example():
    # 13 tokens and replicas on ranks 0, 1, 2: 5 + 4 + 4. Rank 3's token was met before those of rank 0, and goes first.
    found = split_tokens(torch.tensor([[10], [0], [2], [1]]), torch.tensor([[1], [1], [1], [0]]))
    assert found[:, 0].tolist() == [[5, 3, 2, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0]]


def test_split_equals_the_rule_applied_rank_by_rank_in_10000_cases():
    rng = np.random.default_rng(0)
    for ranks in range(1, 11):
        tokens_SE, replicas_RE = random_columns(rng, ranks, 1000)
        found = split_tokens(tokens_SE, replicas_RE).permute(1, 0, 2).tolist()
        columns = zip(tokens_SE.T.tolist(), replicas_RE.T.tolist(), strict=True)
        assert found == [reference(*column) for column in columns]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([1, 1000, 10**12]))
def test_each_replica_gets_its_share_no_token_is_lost_and_ranks_serve_themselves_first(ranks, experts, seed, scale):
    tokens_SE, replicas_RE = random_columns(np.random.default_rng(seed), ranks, experts)
    tokens_SE = tokens_SE * scale + tokens_SE % 7
    sent_SER = split_tokens(tokens_SE, replicas_RE)
    assert sent_SER.dtype == torch.int64 and sent_SER.min() >= 0
    assert torch.equal(sent_SER.sum(2), tokens_SE)
    total_E, copies_E = tokens_SE.sum(0), replicas_RE.sum(0)
    received_RE = sent_SER.sum(0).T
    assert (received_RE >= total_E // copies_E * replicas_RE).all()
    assert (received_RE <= -(-total_E // copies_E) * replicas_RE).all()
    kept_RE = sent_SER.diagonal(dim1=0, dim2=2).T
    assert torch.equal(kept_RE, torch.minimum(tokens_SE, received_RE))


def test_no_rank_is_favoured_by_its_number():
    # With replicas that divide the tokens, ranks renumbered round the circle send the same, renumbered.
    rng = np.random.default_rng(1)
    tokens_SE, replicas_RE = random_columns(rng, 6, 300)
    tokens_SE = tokens_SE * replicas_RE.sum(0)
    found = split_tokens(tokens_SE, replicas_RE)
    for by in range(1, 6):
        assert torch.equal(split_tokens(tokens_SE.roll(by, 0), replicas_RE.roll(by, 0)), found.roll((by, by), (0, 2)))


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_plans_of_all_ranks_agree_with_the_split_and_with_one_another(ranks):
    rng = np.random.default_rng(ranks)
    tokens_SE, replicas_RE = random_columns(rng, ranks, 40)
    expert_of = choices(rng, tokens_SE)
    plans = [plan_dispatch(expert_of[rank], replicas_RE, tokens_SE, rank) for rank in range(ranks)]
    sent_SER = split_tokens(tokens_SE, replicas_RE)
    for rank, each in enumerate(plans):
        assert each.send_counts == sent_SER[rank].sum(0).tolist()
        assert each.recv_counts == sent_SER[:, :, rank].sum(1).tolist()
        assert each.expert_counts == sent_SER[:, :, rank].sum(0).tolist()
        assert sorted(each.order_T.tolist()) == list(range(len(expert_of[rank])))
        for part in expert_of[rank][each.order_T].split(each.send_counts):
            assert all(before <= after for before, after in pairwise(part.tolist()))
    received = exchange(plans, [expert_T[each.order_T] for expert_T, each in zip(expert_of, plans, strict=True)])
    for rank, (each, expert_N) in enumerate(zip(plans, received, strict=True)):
        run_N = torch.arange(40).repeat_interleave(torch.tensor(each.expert_counts))
        assert torch.equal(torch.empty_like(run_N).index_copy(0, each.place_N, expert_N), run_N)
        assert (replicas_RE[rank, run_N] > 0).all()


def test_choices_of_an_expert_keep_their_order():
    expert_T = torch.tensor([1, 0, 1, 1, 0, 1])
    found = plan_dispatch(expert_T, torch.tensor([[1, 1], [0, 1]]), torch.tensor([[2, 4], [0, 0]]), 0)
    assert found.send_counts == [4, 2]
    assert found.order_T.tolist() == [1, 4, 0, 2, 3, 5]


def layer(plans, rows_of, expert_of_run):
    """The layer as `Plan` says, on all ranks of one process; expert_of_run(rank, rows, expert_counts)."""
    sent = [rows.index_select(0, each.order_T) for each, rows in zip(plans, rows_of, strict=True)]
    outputs = []
    for rank, (each, received) in enumerate(zip(plans, exchange(plans, sent), strict=True)):
        run = torch.empty_like(received).index_copy(0, each.place_N, received)
        outputs.append(expert_of_run(rank, run, each.expert_counts).index_select(0, each.place_N))
    returned = exchange_back(plans, outputs)
    return [
        torch.empty_like(rows).index_copy(0, each.order_T, rows) for each, rows in zip(plans, returned, strict=True)
    ]


def test_outputs_and_gradients_equal_a_dense_layer_in_10000_cases():
    # Each expert of ten large layers is a case of its own, and so is each of 1,000 small layers. Each rank has its own
    # copy of the weights, poisoned where it holds none, and gradients of copies are summed.
    rng, width = np.random.default_rng(2), 4
    large = [(ranks, 1000) for ranks in range(1, 11)]
    small = rng.integers(1, (9, 13), size=(1000, 2)).tolist()
    torch.manual_seed(2)
    for ranks, experts in large + small:
        tokens_SE, replicas_RE = random_columns(rng, ranks, experts)
        expert_of = choices(rng, tokens_SE)
        plans = [plan_dispatch(expert_of[rank], replicas_RE, tokens_SE, rank) for rank in range(ranks)]
        weight = torch.randn(experts, width, width) / 2
        copies = [weight.clone().requires_grad_() for _ in range(ranks)]
        for rank in range(ranks):
            copies[rank].data[replicas_RE[rank] == 0] = torch.nan
        rows_of = [torch.randn(len(expert_T), width, requires_grad=True) for expert_T in expert_of]
        target_of = [torch.randn_like(rows) / 8 for rows in rows_of]

        def run(rank, rows, expert_counts, copies=copies, experts=experts):
            expert_N = torch.arange(experts).repeat_interleave(torch.tensor(expert_counts))
            return torch.einsum("nd,ndk->nk", rows, copies[rank][expert_N]).tanh()

        found = layer(plans, rows_of, run)
        sum((rows * target).sum() for rows, target in zip(found, target_of, strict=True)).backward()
        grad = sum(copy.grad.nan_to_num() for copy in copies)

        dense_weight = weight.requires_grad_()
        dense_rows = torch.cat([rows.detach() for rows in rows_of]).requires_grad_()
        expected = torch.einsum("nd,ndk->nk", dense_rows, dense_weight[torch.cat(expert_of)]).tanh()
        (expected * torch.cat(target_of)).sum().backward()
        close = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(torch.cat(found), expected, **close)
        torch.testing.assert_close(torch.cat([rows.grad for rows in rows_of]), dense_rows.grad, **close)
        torch.testing.assert_close(grad, dense_weight.grad, **close)


def test_a_top_2_layer_of_two_matrices_equals_the_dense_one():
    torch.manual_seed(0)
    ranks, experts, tokens, width = 4, 8, 64, 16
    inner = [(torch.randn(width, 2 * width) / 8, torch.randn(2 * width, width) / 8) for _ in range(experts)]
    replicas_RE = torch.tensor([[1, 1, 0, 0, 0, 0, 2, 1], [0, 1, 1, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1, 0, 1], [1] * 8])
    x_STD = torch.randn(ranks, tokens, width)
    gate_STE = (x_STD @ torch.randn(width, experts) * torch.linspace(0.2, 2, experts)).softmax(2)
    weight_STK, expert_STK = gate_STE.topk(2)
    tokens_SE = torch.stack([each.flatten().bincount(minlength=experts) for each in expert_STK])
    plans = [plan_dispatch(expert_STK[rank].flatten(), replicas_RE, tokens_SE, rank) for rank in range(ranks)]

    def feed_forward(rows, expert):
        return (rows @ inner[expert][0]).relu() @ inner[expert][1]

    def run(rank, rows, expert_counts):
        return torch.cat([feed_forward(part, expert) for expert, part in enumerate(rows.split(expert_counts))])

    found = layer(plans, [x_TD.repeat_interleave(2, 0) for x_TD in x_STD], run)
    found = (torch.stack(found).view(ranks, tokens, 2, width) * weight_STK[..., None]).sum(2)
    all_STED = torch.stack([feed_forward(x_STD, expert) for expert in range(experts)], 2)
    expected = (all_STED * torch.zeros_like(gate_STE).scatter(2, expert_STK, weight_STK)[..., None]).sum(2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_nothing_to_send_is_a_plan_of_zeros():
    found = plan_dispatch(torch.zeros(0, dtype=torch.int64), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64), 1)
    assert (found.send_counts, found.recv_counts, found.expert_counts) == ([0, 0], [0, 0], [0, 0, 0])
    assert len(found.order_T) == len(found.place_N) == 0


def test_an_expert_without_tokens_needs_no_replica():
    assert split_tokens(torch.tensor([[3, 0]]), torch.tensor([[1, 0]])).tolist() == [[[3], [0]]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: split_tokens(torch.tensor([[1, 0, 2]]), torch.tensor([[0, 0, 0]])),
            r"must have a replica, got none of \[0, 2\]",
        ),
        (
            lambda: split_tokens(torch.ones(2, 3), torch.ones(3, 3)),
            r"one shape \[ranks, experts\], got \(2, 3\) and \(3, 3\)",
        ),
        (
            lambda: plan_dispatch(torch.tensor([0]), torch.ones(2, 1), torch.ones(2, 1), 2),
            r"rank must be in \[0, 2\), got 2",
        ),
        (
            lambda: plan_dispatch(torch.tensor([0, 0]), torch.ones(1, 1), torch.ones(1, 1), 0),
            "must have the 1 choices .* got 2",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_compiled_plan_equals_that_of_torch(monkeypatch):
    # What runs on a device is torch throughout; here it is on the CPU.
    rng = np.random.default_rng(4)
    for num_ranks, num_experts in [(8, 64), (1, 3), (5, 1)] + [(4, 8)] * 200:
        tokens_SE, replicas_RE = random_columns(rng, num_ranks, num_experts)
        rank = int(rng.integers(num_ranks))
        expert_T = choices(rng, tokens_SE)[rank]
        found = plan_dispatch(expert_T, replicas_RE, tokens_SE, rank)
        with monkeypatch.context() as patched:
            patched.setattr(dispatch, "_planned_by_kernel", dispatch._planned_by_torch)
            expected = plan_dispatch(expert_T, replicas_RE, tokens_SE, rank)
        for field in vars(expected):
            one, other = (torch.as_tensor(getattr(each, field)) for each in (found, expected))
            assert torch.equal(one, other), field


@pytest.mark.parametrize("wrong", [0, 2, -1, 9])
def test_choices_that_are_not_those_counted_are_refused(wrong):
    tokens_SE, replicas_RE = torch.tensor([[2, 1, 0]]), torch.tensor([[1, 1, 1]])
    with pytest.raises(ValueError, match=r"choices of tokens_SE\[0\], got others of the same number"):
        plan_dispatch(torch.tensor([0, wrong, wrong]), replicas_RE, tokens_SE, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_plan_on_cuda_equals_that_on_cpu():
    rng = np.random.default_rng(3)
    tokens_SE, replicas_RE = random_columns(rng, 8, 64)
    expert_T = choices(rng, tokens_SE)[3]
    expected = plan_dispatch(expert_T, replicas_RE, tokens_SE, 3)
    found = plan_dispatch(expert_T.cuda(), replicas_RE.cuda(), tokens_SE.cuda(), 3)
    assert found.order_T.is_cuda and found.place_N.is_cuda
    assert torch.equal(found.order_T.cpu(), expected.order_T)
    assert torch.equal(found.place_N.cpu(), expected.place_N)
    assert found.expert_counts == expected.expert_counts
    assert torch.equal(split_tokens(tokens_SE.cuda(), replicas_RE.cuda()).cpu(), split_tokens(tokens_SE, replicas_RE))
