"""Workloads: gradients are those of plain training, top-k loses nothing, and the shapes are those Zen describes."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from artifact import datasets
from artifact.sparse_sync import workloads
from artifact.sparse_sync.workloads import MARK, NAMES, PADDING, RARE, RESERVED, TopK, gradients, task, uniform

EMBEDDINGS = {"lstm": 128, "deepfm": 1024, "nmt": 64, "bert": 32}
"""Examples of a worker in a step."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(datasets, "path_or_none", lambda name: None)


@cache
def small_task(name):
    """With real data if they are at hand, loaded once."""
    return task(name, limit_batch=8)


@cache
def first_gradients(name):
    return gradients(name, num_workers=4, steps=0)


def overlap(one, other):
    shared = np.intersect1d(one.index_N.numpy(), other.index_N.numpy())
    return len(shared) / min(one.num_indices, other.num_indices)


def mean_overlap(tensors):
    return np.mean([overlap(one, other) for one, other in combinations(tensors, 2)])


def union(tensors):
    return torch.cat([tensor.index_N for tensor in tensors]).unique()


def trained(job, num_workers, steps):
    """The model after plain SGD on the mean loss of all workers."""
    model = job.model()
    for step in range(steps):
        model.zero_grad()
        (sum(job.loss(model, job.batch(worker, step)) for worker in range(num_workers)) / num_workers).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= job.learning_rate * parameter.grad
    return model


# Gradients of models


@pytest.mark.parametrize("name", ["nmt", "deepfm"])
def test_embedding_gradients_are_those_of_plain_data_parallel_training(name):
    found = gradients(name, num_workers=3, steps=2, limit_batch=8)
    job = small_task(name)
    model = trained(job, 3, 2)
    for worker, tensor in enumerate(found.tensors):
        model.zero_grad()
        job.loss(model, job.batch(worker, 2)).backward()
        torch.testing.assert_close(tensor.to_dense(), model.embedding.weight.grad.to_dense(), rtol=1e-4, atol=1e-6)


def test_top_k_of_everything_trains_as_dense_data_parallel_training_does():
    found = gradients("topk-transformer", num_workers=2, steps=2, density=1.0, limit_batch=8)
    job = small_task("topk-transformer")
    model = trained(job, 2, 2)
    for worker, tensor in enumerate(found.tensors):
        model.zero_grad()
        job.loss(model, job.batch(worker, 2)).backward()
        # Part of the softmax has no gradient where a batch has no rare word; the table comes first in the flat order.
        dense = {id(each): torch.zeros_like(each) if each.grad is None else each.grad for each in model.parameters()}
        table = dense.pop(id(model.embedding.weight))
        expected = nn.utils.parameters_to_vector([table, *dense.values()])
        torch.testing.assert_close(tensor.to_dense()[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_rows_are_those_that_a_worker_reads(name):
    job, found = replace(small_task(name), batch_size=EMBEDDINGS[name]), first_gradients(name)
    assert found.full_rows == job.num_rows
    for worker, tensor in enumerate(found.tensors):
        read = job.batch(worker, 0)[0].unique()
        assert tensor.validate().index_N.tolist() == read[read != PADDING].tolist()
        assert tensor.num_units == job.num_rows
        assert tensor.width == job.model().embedding.weight.shape[1]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embedding_gradients_have_the_shape_that_the_paper_describes(name):
    found = first_gradients(name)
    tensors = found.tensors
    density = np.mean([tensor.num_indices / tensor.num_units for tensor in tensors])
    assert 0.01 < density < 0.1
    assert mean_overlap(tensors) > 0.1  # C1: much above 0.05
    assert 1 < len(union(tensors)) / tensors[0].num_units / density < len(tensors)  # C2: densification
    # C3: most rows are in the first of eight parts; generated sentences have fewer distinct words, so a larger share of
    # them is rare, and the first part holds three times an even share.
    least = 3 / 8 if found.workload.startswith("synthetic-") else 0.5
    for tensor in tensors:
        assert (tensor.index_N < tensor.num_units / 8).float().mean() > least


@pytest.mark.parametrize("name", ["nmt", "topk-transformer"])
def test_a_seed_repeats_bit_by_bit_and_another_gives_other_gradients_of_the_same_density(name):
    one, again, other = (gradients(name, num_workers=2, steps=1, limit_batch=8, seed=seed) for seed in (3, 3, 4))
    for mine, same, different in zip(one.tensors, again.tensors, other.tensors, strict=True):
        assert torch.equal(mine.index_N, same.index_N)
        assert torch.equal(mine.value_ND, same.value_ND)
        assert not torch.equal(mine.index_N, different.index_N)
    if one.kind == "top-k":
        size = sum(each.numel() for each in small_task(name).model().parameters())
        for tensor in one.tensors:
            assert (tensor.validate().num_units, tensor.width, tensor.num_indices) == (size, 1, round(0.05 * size))


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_of_examples_not_seen(name):
    job = replace(small_task(name), batch_size=32)
    before, after = job.model(), trained(job, 1, 10)
    unseen = job.batch(worker=5, step=99)
    with torch.no_grad():
        assert job.loss(after, unseen) < job.loss(before, unseen) - 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_stands_in_for_data_and_says_so(name, no_data):
    found = gradients(name, num_workers=2, steps=1, limit_batch=8)
    assert found.workload == f"synthetic-{name}"
    assert found.kind == ("top-k" if name.startswith("topk-") else "embedding rows")
    for tensor in found.tensors:
        assert tensor.validate().num_indices > 0
        assert tensor.value_ND.isfinite().all()
        assert overlap(tensor, found.tensors[0]) > 0.05


def test_models_are_the_same_at_each_call_and_leave_the_global_seed_alone():
    job = small_task("nmt")
    before = torch.random.get_rng_state()
    one, other = job.model(), job.model()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Who reads what


def test_workers_share_no_example_until_the_data_run_out():
    job = replace(small_task("nmt"), examples=(torch.arange(100),), batch_size=16)
    first = [set(job.batch(worker, 7)[0].tolist()) for worker in range(6)]
    assert all(len(batch) == 16 for batch in first)
    assert len(set.union(*first)) == 6 * 16
    seventh = set(job.batch(6, 7)[0].tolist())
    assert len(seventh) == 16
    assert seventh not in first
    assert set(job.batch(0, 8)[0].tolist()) != first[0]


def test_a_batch_larger_than_the_data_is_all_of_them():
    job = replace(small_task("nmt"), examples=(torch.arange(10),), batch_size=16)
    assert all(sorted(job.batch(worker, 0)[0].tolist()) == list(range(10)) for worker in range(3))


# Examples


def test_words_are_rows_by_falling_frequency_and_rare_ones_share_a_row(tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_text("the cat, the <unk> the " * 7 + "cat dog")
    monkeypatch.setattr(datasets, "path_or_none", lambda name: file)
    the, cat, comma, unknown, dog = (RESERVED + i for i in range(5))
    (given, target), num_rows, generated = workloads._words(6, seed=0)
    # The text is there three times: as validation, test and Shakespeare.
    assert given[0].tolist() == [the, cat, comma, the, unknown, the]
    assert target[0].tolist() == [cat, comma, the, unknown, the, the]
    assert (num_rows, generated) == (dog + 1, False)
    (limited, _), num_rows, _ = workloads._words(6, seed=0, limit=RESERVED + 2)
    assert limited[0].tolist() == [the, cat, RARE, the, RARE, the]
    assert num_rows == RESERVED + 2


def test_fifteen_per_cent_of_the_words_are_masked_and_to_be_predicted():
    given, target = small_task("bert").examples
    assert torch.equal(given == MARK, target != PADDING)
    assert set((given == MARK).sum(1).tolist()) == {10}  # of 64
    assert (target[given == MARK] >= RARE).all()


def test_no_two_fields_share_a_row_of_the_click_table():
    job = small_task("deepfm")
    value, label = job.examples
    rows = [set(column.tolist()) for column in value.T]
    assert len(rows) == workloads.FIELDS
    assert sum(len(each) for each in rows) == len(set.union(*rows))
    assert job.num_rows == workloads.UNSEEN_SCALE * (RESERVED + len(set.union(*rows)))
    assert set(label.tolist()) == {0, 1}


def test_a_translation_is_predicted_from_the_words_before():
    source, given, target = small_task("nmt").examples
    assert (given[:, 0] == MARK).all()
    assert torch.equal(given[:, 1:], target[:, :-1])
    assert (source[:, 0] >= RESERVED).all()


# Top-k selection with error feedback


def test_top_k_sends_the_largest_and_keeps_the_rest():
    sparsifier = TopK(0.4)
    sent = sparsifier.select(torch.tensor([1.0, -5.0, 0.0, 3.0, 2.0]))
    assert sent.validate().index_N.tolist() == [1, 3]
    assert sent.value_ND.tolist() == [[-5.0], [3.0]]
    assert sparsifier.residual.tolist() == [1.0, 0.0, 0.0, 0.0, 2.0]


def test_what_is_too_small_to_be_sent_adds_up_until_it_is_not():
    sparsifier = TopK(0.25)
    sent = [sparsifier.select(torch.tensor([1.0, 2.5, 0.0, 0.0])) for _ in range(4)]
    assert [tensor.index_N.tolist() for tensor in sent] == [[1], [1], [0], [1]]
    assert sent[2].value_ND.item() == 3.0
    assert sent[3].value_ND.item() == 5.0


@pytest.mark.parametrize("density", [0.01, 0.05, 0.5, 1.0])
def test_nothing_is_lost_by_error_feedback(density):
    generator = torch.Generator().manual_seed(0)
    sparsifier, given, sent = TopK(density), torch.zeros(999), torch.zeros(999)
    for _ in range(10):
        # Sums of small integers are exact in fp32, so that equality is too.
        gradient = torch.randint(-1000, 1000, (999,), generator=generator).float()
        given += gradient
        sent += sparsifier.select(gradient).to_dense()[:, 0]
        assert torch.equal(sent + sparsifier.residual, given)


@pytest.mark.parametrize(("density", "size", "k"), [(0.05, 1000, 50), (0.001, 100, 1), (1.0, 7, 7), (0.5, 3, 2)])
def test_exactly_k_are_sent_even_of_zeros_and_of_equals(density, size, k):
    for gradient in (torch.zeros(size), torch.ones(size), torch.randn(size)):
        assert TopK(density).select(gradient).validate().num_indices == k


def test_selecting_leaves_the_gradient_alone():
    gradient = torch.tensor([3.0, 1.0])
    TopK(0.5).select(gradient)
    assert gradient.tolist() == [3.0, 1.0]


# Drawn supports


@pytest.mark.parametrize(("exponent", "rows", "tokens"), [(1.0, 50_000, 4000), (0.0, 5000, 5000), (1.5, 1000, 500)])
def test_zipf_touches_as_many_rows_as_its_probabilities_say(exponent, rows, tokens):
    weight = np.arange(1, rows + 1) ** -exponent
    expected = np.sum(1 - (1 - weight / weight.sum()) ** tokens)
    tensors = workloads.zipf_embedding(
        rows=rows, width=3, tokens_per_worker=tokens, num_workers=8, exponent=exponent, seed=1
    )
    assert np.mean([tensor.validate().num_indices for tensor in tensors]) == pytest.approx(expected, rel=0.03)
    values = torch.cat([tensor.value_ND for tensor in tensors])
    assert (values.dtype, values.shape[1], tensors[0].num_units) == (torch.float32, 3, rows)
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.05)
    if exponent:
        assert all(0 in tensor.index_N for tensor in tensors)


def test_zipf_workers_stay_the_same_when_more_are_added():
    few, more = (
        workloads.zipf_embedding(rows=1000, width=2, tokens_per_worker=100, num_workers=count, seed=5)
        for count in (2, 4)
    )
    assert all(torch.equal(a.value_ND, b.value_ND) for a, b in zip(few, more, strict=False))
    assert not torch.equal(more[0].index_N, more[1].index_N)


@pytest.mark.parametrize("share", [0.05, 0.06, 0.3, 0.75, 1.0])
def test_uniform_supports_overlap_as_asked(share):
    tensors = uniform(size=100_000, density=0.05, overlap=share, num_workers=6, seed=2)
    assert all(tensor.validate().num_indices == 5000 for tensor in tensors)
    assert mean_overlap(tensors) == pytest.approx(share, abs=0.005)
    parts = [np.histogram(tensor.index_N.numpy(), 8, (0, 100_000))[0].max() * 8 / 5000 for tensor in tensors]
    assert max(parts) < 1.2


def test_uniform_supports_overlap_as_asked_where_they_are_dense():
    pairs = [uniform(size=10, density=0.9, overlap=0.95, num_workers=2, seed=seed) for seed in range(300)]
    assert np.mean([overlap(*pair) for pair in pairs]) == pytest.approx(0.95, abs=0.03)
    full = uniform(size=10, density=1.0, overlap=1.0, num_workers=2, seed=0)
    assert [tensor.index_N.tolist() for tensor in full] == [list(range(10))] * 2


def test_of_full_overlap_all_supports_are_one_but_values_differ():
    one, other = uniform(size=1000, density=0.1, overlap=1.0, num_workers=2, seed=0)
    assert torch.equal(one.index_N, other.index_N)
    assert not torch.equal(one.value_ND, other.value_ND)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task("gpt"), f"workload must be one of {', '.join(NAMES)}, got 'gpt'"),
        (lambda: gradients("gpt", num_workers=1), f"workload must be one of {', '.join(NAMES)}, got 'gpt'"),
        (lambda: task("nmt", limit_batch=0), "limit_batch must be at least 1, got 0"),
        (lambda: gradients("nmt", num_workers=0), "num_workers must be at least 1, got 0"),
        (lambda: gradients("nmt", num_workers=1, density=2), "density must be in (0, 1], got 2"),
        (lambda: gradients("nmt", num_workers=1, steps=-1), "steps must be at least 0, got -1"),
        (lambda: TopK(0.0), "density must be in (0, 1], got 0.0"),
        (lambda: TopK(1.01), "density must be in (0, 1], got 1.01"),
        (lambda: uniform(size=9, density=-1, overlap=1, num_workers=1, seed=0), "density must be in (0, 1], got -1"),
        (lambda: uniform(size=9, density=1, overlap=1, num_workers=0, seed=0), "num_workers must be at least 1, got 0"),
        (
            lambda: uniform(size=100, density=0.1, overlap=0.05, num_workers=2, seed=0),
            "overlap must be in [0.1, 1], got 0.05",
        ),
        (
            lambda: workloads.zipf_embedding(rows=1, width=1, tokens_per_worker=0, num_workers=1, seed=0),
            "tokens_per_worker must be at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_rule_and_value(call, message):
    with pytest.raises(ValueError) as raised:
        call()
    assert str(raised.value) == message
