"""Real processes over gloo: the same bits and bytes as in one process, in DDP too, and no process is left behind."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from artifact.sparse_sync.links import launch
from artifact.sparse_sync.links.launch import RankFailed
from artifact.sparse_sync.links.transport import run_counted
from artifact.sparse_sync.schemes import SCHEMES
from artifact.sparse_sync.tensors.formats import as_bytes
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor
from artifact.sparse_sync.tensors.topk import TopK

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks cannot import a test

STEPS = 6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tensors_of(n):
    """Ranks that list different rows; the last lists none."""
    rng = np.random.default_rng(n)
    tensors = []
    for rank in range(n):
        index = np.unique(rng.integers(0, 211, 50 * (rank + 1))) if rank < n - 1 else np.empty(0, int)
        value = rng.standard_normal((len(index), 3), dtype=np.float32)
        tensors.append(SparseTensor(torch.from_numpy(index), torch.from_numpy(value), 211))
    return tensors


def every_scheme(rank, n):
    """Of each scheme, this rank's result and payload bytes."""
    from artifact.sparse_sync.links.transport import Link

    outcomes = {}
    for name, scheme in SCHEMES.items():
        link = Link()
        result = link.run(scheme, tensors_of(n)[rank], seed=5)
        outcomes[name] = (result.index_N, result.value_ND, link.sent_bytes, link.received_bytes)
    return outcomes


def every_scheme_in_one_call_a_phase(rank, n):
    """The same by the way that nccl takes, one all_to_all_single a phase: gloo has it too."""
    from artifact.sparse_sync.links.transport import Link

    Link._rounds = Link._all_to_all
    return every_scheme(rank, n)


def messages_of_every_length(rank, n):
    """What arrives of messages on both sides of the length that goes along with its size."""
    from artifact.sparse_sync.links.transport import EAGER_BYTES, Link
    from artifact.sparse_sync.schemes import Exchange

    link, others = Link(), tuple(other for other in range(n) if other != rank)
    lengths = [0, 1, EAGER_BYTES - 1, EAGER_BYTES, EAGER_BYTES + 1, 5 * EAGER_BYTES + 3]
    arrived = {}
    for length in lengths:
        message = (torch.arange(length) * (rank + 1) % 251).to(torch.uint8)
        arrived[length] = link.exchange(Exchange(dict.fromkeys(others, message), others))
    return arrived


def test_messages_of_every_length_arrive_whole():
    for rank, arrived in enumerate(launch.run(messages_of_every_length, 3)):
        for length, received in arrived.items():
            assert sorted(received) == [other for other in range(3) if other != rank]
            for source, message in received.items():
                assert torch.equal(message, (torch.arange(length) * (source + 1) % 251).to(torch.uint8))


@pytest.mark.parametrize("way", ["rounds", "all_to_all_single"])
def test_over_gloo_every_scheme_has_the_bits_and_bytes_that_are_counted_in_one_process(way, request):
    n = 3 if way == "rounds" else 4
    ranks = (
        request.getfixturevalue("training_and_schemes")[1]
        if way == "rounds"
        else launch.run(every_scheme_in_one_call_a_phase, n)
    )
    for name, scheme in SCHEMES.items():
        results, traffic = run_counted(scheme, tensors_of(n), seed=5)
        for rank, (index, value, sent_bytes, received_bytes) in enumerate(outcomes[name] for outcomes in ranks):
            expected = results[rank]().to_dense()
            found = torch.zeros_like(expected)
            found[index] = value
            assert torch.equal(as_bytes(found), as_bytes(expected)), (name, rank)
            assert sent_bytes == traffic.sent_FW[:, rank].sum(), (name, rank)
            assert received_bytes == traffic.received_FW[:, rank].sum(), (name, rank)


# Training


class Small(nn.Module):
    """Two sparse tables and a linear layer; a table may be left out."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 8, sparse=True)
        self.fields = nn.Embedding(31, 4, sparse=True)
        self.linear = nn.Linear(12, 3)

    def forward(self, words, fields):
        read = self.words(words).sum(0)
        added = torch.zeros(4, dtype=read.dtype) if fields is None else self.fields(fields).sum(0)
        return self.linear(torch.cat([read, added])).square().sum()


def batch(rank, step, kind):
    """What a rank reads: of `fields` rank 1 reads nothing in even steps; "unused" leaves the table out instead, and in
    step 3 on every rank."""
    rng = np.random.default_rng([rank, step])
    words = torch.from_numpy(rng.integers(0, 60, 5 + 3 * rank))
    fields = torch.from_numpy(rng.integers(0, 31, 4))
    if rank == 1 and step % 2 == 0:
        fields = None if kind == "unused" else fields[:0]
    return words, None if kind == "unused" and step == 3 else fields


def trained(rank, scheme, kind, dtype=torch.float32, **options):
    """Parameters after `STEPS` steps of SGD with stock DDP (no scheme) or the hook, and the hook's state."""
    from artifact.sparse_sync.links.ddp_hook import register_sparse_sync

    torch.manual_seed(1)
    model = Small().to(dtype)
    ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=kind == "unused")
    state = register_sparse_sync(ddp, scheme, **options) if scheme else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        ddp(*batch(rank, step, kind)).backward()
        optimizer.step()
    parameters = {name: as_bytes(value.detach()) for name, value in model.named_parameters()}
    return parameters, (state.schemes, state.sent_bytes) if state else None


def every_training(rank, n):
    found = {}
    for dtype in DTYPES:
        for scheme in (None, "auto", "zen-row", "zen"):
            found[scheme, dtype] = trained(rank, scheme, "used", DTYPES[dtype])
    for scheme in ("auto", "zen-row", "zen"):
        found[scheme, "unused"] = trained(rank, scheme, "unused")
    found["top-k"] = trained(rank, "zen", "used", density=0.1)
    return found


@pytest.fixture(scope="module")
def training_and_schemes():
    """Of three ranks, in one launch."""
    found = launch.run(lambda rank, n: (every_training(rank, n), every_scheme(rank, n)), 3)
    return [training for training, _ in found], [schemes for _, schemes in found]


@pytest.fixture(scope="module")
def training(training_and_schemes):
    return training_and_schemes[0]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["auto", "zen-row", "zen"])
def test_parameters_are_bit_for_bit_those_of_stock_ddp(training, scheme, dtype):
    for rank in training:
        assert_same(rank[scheme, dtype][0], rank[None, dtype][0])


def test_every_rank_has_the_same_parameters_whatever_they_travelled_by(training):
    for key in training[0]:
        for rank in training[1:]:
            assert_same(rank[key][0], training[0][key][0])


def test_the_scheme_chosen_is_the_same_on_every_rank_and_named_by_parameter(training):
    schemes, sent_bytes = training[0]["auto", "fp32"][1]
    assert set(schemes) == {"words.weight", "fields.weight"}
    assert set(schemes.values()) <= set(SCHEMES)
    assert sent_bytes > 0
    assert all(rank["auto", "fp32"][1][0] == schemes for rank in training)


@pytest.mark.parametrize("scheme", ["auto", "zen-row", "zen"])
def test_a_table_that_a_rank_leaves_out_trains_as_one_process_would(training, scheme):
    torch.manual_seed(1)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        (sum(model(*batch(rank, step, "unused")) for rank in range(3)) / 3).backward()
        optimizer.step()
    for name, expected in model.named_parameters():
        found = training[0][scheme, "unused"][0][name].view(torch.float32).reshape(expected.shape)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_top_k_trains_other_parameters_than_everything_does(training):
    assert not torch.equal(training[0]["top-k"][0]["linear.weight"], training[0][None, "fp32"][0]["linear.weight"])
    assert "linear.weight" in "+".join(training[0]["top-k"][1][0])


class TwoLayers(nn.Module):
    """Two parameters that DDP puts into one bucket, the last first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(7, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, step, rank):
        given = torch.from_numpy(np.random.default_rng([rank, step]).standard_normal((4, 7)).astype(np.float32))
        return self.second(self.first(given)).square().mean()


def top_k_gradients(rank, n):
    """The gradient of each of two steps from the same parameters, of elements that top-k selected."""
    from artifact.sparse_sync.links.ddp_hook import register_sparse_sync

    model = TwoLayers()
    ddp = nn.parallel.DistributedDataParallel(model)
    register_sparse_sync(ddp, "agsparse", density=0.2)
    gradients = []
    for step in range(2):
        model.zero_grad()
        ddp(step, rank).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    return gradients


def schemes_by_step(rank, n, **options):
    """The automatic choice after each of five steps: one row is read in the first, every row from then on."""
    from artifact.sparse_sync.links.ddp_hook import register_sparse_sync

    table = nn.Embedding(2000, 4, sparse=True)
    ddp = nn.parallel.DistributedDataParallel(table)
    state = register_sparse_sync(ddp, **options)
    found = []
    for step in range(5):
        table.zero_grad()
        ddp(torch.arange(2000 if step else 1)).sum().backward()
        found += state.schemes.values()
    return found


CHOICES = {
    "every step": {"interval": 1, "hysteresis": 0.0},
    "every third step": {"interval": 3, "hysteresis": 0.0},
    "a gain of 15 %": {"interval": 1, "hysteresis": 0.15},
    "a gain of 25 %": {"interval": 1, "hysteresis": 0.25},
}


@pytest.fixture(scope="module")
def hooked():
    """Top-k gradients of two ranks, and the schemes chosen by each of CHOICES, in one launch."""
    return launch.run(
        lambda rank, n: (
            top_k_gradients(rank, n),
            {name: schemes_by_step(rank, n, **options) for name, options in CHOICES.items()},
        ),
        2,
    )


def test_top_k_in_ddp_sends_each_parameter_the_largest_elements_of_its_own_gradient(hooked):
    sparsifiers = [{name: TopK(0.2) for name in ("first.weight", "second.weight")} for _ in range(2)]
    for step in range(2):
        expected = {}
        for rank in range(2):
            model = TwoLayers()
            model(step, rank).backward()
            for name, parameter in model.named_parameters():
                sent = sparsifiers[rank][name].select(parameter.grad.flatten() / 2).to_dense()
                expected[name] = expected.get(name, 0) + sent.reshape(parameter.shape)
        for gradients, _ in hooked:
            for name in expected:
                torch.testing.assert_close(gradients[step][name], expected[name])


@pytest.mark.parametrize(
    ("choice", "renewed"), [("every step", 1), ("every third step", 3), ("a gain of 15 %", 1), ("a gain of 25 %", 5)]
)
def test_the_choice_is_renewed_at_intervals_and_only_for_a_gain_beyond_the_hysteresis(hooked, choice, renewed):
    # Every row of 4 elements, 2 ranks: agsparse-row sends 2000 (4 + 16) bytes, the ring 2 * 4000 * 4, a fifth less.
    for _, chosen in hooked:
        assert chosen[choice] == ["agsparse-row"] * renewed + ["ring"] * (5 - renewed)


def test_stock_ddp_fails_where_a_rank_leaves_a_sparse_table_out():
    def stock(rank, n):
        trained(rank, None, "unused")

    with pytest.raises(RankFailed, match="rank 1 failed"):
        launch.run(stock, 3)


# Failures


def test_a_rank_that_raises_is_named_with_its_error_and_one_that_is_killed_with_its_signal():
    def raises(rank, n):
        if rank == 1:
            raise ArithmeticError("no sum today")
        torch.distributed.barrier()

    with pytest.raises(RankFailed, match=r"rank 1 failed:[\s\S]*ArithmeticError: no sum today"):
        launch.run(raises, 2)

    def killed(rank, n):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # the others are not waited for

    with pytest.raises(RankFailed, match="rank 1 died with status -9"):
        launch.run(killed, 2)


def test_ranks_end_when_their_launcher_is_killed(tmp_path):
    def sleeps(rank, n):
        (tmp_path / f"unfinished-{rank}").write_text(f"{os.getpid()} {os.getppid()}")
        (tmp_path / f"unfinished-{rank}").rename(tmp_path / f"rank-{rank}")
        time.sleep(600)

    failures = []

    def run():
        try:
            launch.run(sleeps, 2)
        except RankFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: len(list(tmp_path.glob("rank-*"))) == 2)
    (one, launcher), (other, same) = (map(int, file.read_text().split()) for file in tmp_path.glob("rank-*"))
    assert launcher == same and alive(one) and alive(other)
    os.kill(launcher, signal.SIGKILL)
    thread.join()
    assert len(failures) == 1
    wait_for(lambda: not alive(one) and not alive(other))


def alive(pid):
    """Whether a process runs: one that has ended may stay as a zombie where nobody asks for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    while not condition():  # a hang is the runner's to end
        time.sleep(0.05)


def test_a_number_of_workers_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        launch.run(every_scheme, 0)
    with pytest.raises(ValueError, match="each needs a namespace"):
        launch.run(every_scheme, 2, namespaces=["one"])
