"""Sparse gradients of data-parallel workers: from small models trained here, or drawn to a given shape.

The models are those that Zen measures (section 5.1) at a size that trains in a minute, all workers in one process. What
differs: corpora hold 10^4 to 10^6 words or clicks, so vocabularies are smaller and densities higher; outputs and inputs
share no weights, so only rows of input words are non-zero; SGD is plain. One thread repeats results bit for bit.

Shape legend: W = workers, E = examples, B = batch, S, T = source and target words, F = fields, D = width, N = units
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from artifact import datasets
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, from_coo
from artifact.sparse_sync.tensors.topk import TopK

NAMES = ("lstm", "deepfm", "nmt", "bert", "topk-lstm", "topk-transformer")
EMBEDDING_ROWS, TOP_K = "embedding rows", "top-k"
PADDING, MARK, RARE, RESERVED = range(4)
"""Rows before those of words: padding, masked word or start of a sentence, unknown word; their number."""
FIELDS, WIDTH = 26, 64
UNSEEN_SCALE = 8
"""Rows of the click table per value in the sample: gives a batch the density that the paper reports, 2.8 %."""

_Softmax = partial(nn.AdaptiveLogSoftmaxWithLoss, cutoffs=[500, 2000, 4000])
_WORD = re.compile(r"'?\w+(?:[.'-]\w+)*|<unk>|@.@|\S")
_Data = tuple[tuple[Tensor, ...], int, bool]  # examples, rows of the vocabulary, whether they are generated
_Limit = int | None


@dataclass(frozen=True)
class WorkerGradients:
    """The gradient of each data-parallel worker, before any exchange.

    The table of deepfm has UNSEEN_SCALE rows per value of its sample: most values of the full log are not in the
    sample; in a table sorted by frequency they take the last rows, which no batch touches.
    """

    workload: str  # prefixed "synthetic-" if the data set is not available and its data are generated
    kind: str  # "embedding rows" (units are rows of the table) or "top-k" (elements of the flat gradient, table first)
    tensors: list[SparseTensor]  # one per worker
    full_rows: int  # rows of the vocabulary, after scaling


@dataclass(frozen=True)
class Task:
    """A model, its examples, and the batches of every worker and step."""

    workload: str
    kind: str
    num_rows: int  # of the embedding, the most frequent word first
    batch_size: int  # examples of one worker in one step
    learning_rate: float  # of SGD
    seed: int
    examples: tuple[Tensor, ...]  # [E, ...] each, in the order in which the model takes them
    build: Callable[[int], nn.Module]  # rows to a model that returns the mean loss; its `embedding` is the sparse table

    def model(self) -> nn.Module:
        """A new model, the same at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build(self.num_rows)

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        """Tensors [B, ...]: part number `worker` of the step's shuffle of the examples, for any number of workers.

        Workers beyond the last part (more than 7 of deepfm, 22 of nmt) read another shuffle, and share examples.
        """
        count = len(self.examples[0])
        shuffle, part = divmod(worker, max(1, count // self.batch_size))
        order = np.random.default_rng([self.seed, 2, step, shuffle]).permutation(count)
        chosen_B = order[part * self.batch_size :][: self.batch_size]
        return tuple(tensor[chosen_B] for tensor in self.examples)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean loss of a batch, scalar, in nats per predicted word or click."""
        return model(*batch)


def task(name: str, seed: int = 0, *, limit_batch: _Limit = None) -> Task:
    """The task of that name, on generated data if its data set is not available. limit_batch: examples at most

    Raises: ValueError if the name is unknown or limit_batch < 1
    """
    known: dict[str, tuple[Callable[..., _Data], Callable[..., nn.Module], int, float]] = {
        "lstm": (partial(_words, 20), LanguageModel, 128, 2.0),
        "deepfm": (_clicks, DeepFM, 1024, 0.5),
        "nmt": (_translation, Translator, 64, 1.0),
        "bert": (partial(_words, 64, masked=True), partial(Transformer, causal=False), 32, 0.5),
        "topk-lstm": (partial(_words, 20, limit=8000), partial(LanguageModel, sparse=False), 32, 2.0),
        "topk-transformer": (partial(_words, 32, limit=8000), partial(Transformer, causal=True, sparse=False), 16, 0.5),
    }
    if name not in known:
        raise ValueError(f"workload must be one of {', '.join(NAMES)}, got {name!r}")
    _check(limit_batch=1 if limit_batch is None else limit_batch)
    load, build, batch_size, rate = known[name]
    examples, num_rows, generated = load(seed=seed)
    workload, kind = f"{'synthetic-' * generated}{name}", TOP_K if name.startswith("topk-") else EMBEDDING_ROWS
    return Task(workload, kind, num_rows, min(batch_size, limit_batch or batch_size), rate, seed, examples, build)


def gradients(
    name: str,
    *,
    num_workers: int,
    seed: int = 0,
    steps: int = 20,
    density: float = 0.05,
    limit_batch: _Limit = None,
) -> WorkerGradients:
    """Each worker's gradient of its next batch, after `steps` steps of SGD on the mean of the workers' gradients.

    density: share of elements that top-k selects; the density of embedding rows follows from the words of a batch
    Raises:  ValueError if the name is unknown, num_workers or limit_batch < 1, steps < 0, or density not in (0, 1]
    """
    _check(density, num_workers=num_workers, steps=steps)
    job = task(name, seed, limit_batch=limit_batch)
    model, top_ks = job.model(), [TopK(density) for _ in range(num_workers)]
    table = model.embedding.weight
    parameters = [table, *(parameter for parameter in model.parameters() if parameter is not table)]
    for step in range(steps + 1):
        losses = (job.loss(model, job.batch(worker, step)) for worker in range(num_workers))
        # A batch without rare words does not use one part of the softmax, whose gradient is then zero.
        sent = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
        if job.kind == TOP_K:
            tensors = list(map(TopK.select, top_ks, map(nn.utils.parameters_to_vector, sent)))
            for tensor, gradient in zip(tensors, sent, strict=True):
                nn.utils.vector_to_parameters(tensor.to_dense(), gradient)
        else:
            tensors = [from_coo(of_table) for of_table, *_ in sent]
        for parameter, first, *others in zip(parameters, *sent, strict=True):
            parameter.data -= job.learning_rate / num_workers * sum(others, first)
    return WorkerGradients(job.workload, job.kind, tensors, job.num_rows)


def zipf_embedding(
    *, rows: int, width: int, tokens_per_worker: int, num_workers: int, exponent: float = 1.0, seed: int
) -> list[SparseTensor]:
    """Rows touched by tokens that every worker draws by Zipf's law, in a table sorted by frequency, as LM1B's is.

    Row r is drawn with probability proportional to (r + 1)**-exponent; values are standard normal, fp32. The One
    Billion Word table has 793,470 rows of 512 columns (Zen, table 1). Raises: ValueError if a count is < 1
    """
    _check(rows=rows, width=width, tokens_per_worker=tokens_per_worker, num_workers=num_workers)
    rngs = [np.random.default_rng([seed, 3, worker]) for worker in range(num_workers)]
    return [_normal(rng, np.unique(_zipf(rng, rows, tokens_per_worker, exponent)), rows, width) for rng in rngs]


def uniform(*, size: int, density: float, overlap: float, num_workers: int, seed: int) -> list[SparseTensor]:
    """Supports of k = max(1, round(density * size)) elements, of which any two share overlap * k in expectation.

    A support is `common` elements that all workers have, and k - common others, which a worker draws independently and
    without replacement. The others overlap by chance, so overlap >= k / size, and `common` is the solution of
    common + (k - common)**2 / (size - common) = overlap * k. Values are standard normal, fp32.

    Raises: ValueError if density is not in (0, 1], overlap not in [k / size, 1], or a count < 1
    """
    _check(density, num_workers=num_workers, size=size)
    k = max(1, round(density * size))
    if not k / size <= overlap <= 1:
        raise ValueError(f"overlap must be in [{k / size:g}, 1], got {overlap}")
    common = round(k * (overlap * size - k) / ((size + overlap * k - 2 * k) or 1))
    rng = np.random.default_rng([seed, 4])
    shared = rng.choice(size, common, replace=False)
    below = np.sort(shared) - np.arange(common)  # as many shared elements are below the i-th other as are here <= i
    others = [rng.choice(size - common, k - common, replace=False) for _ in range(num_workers)]
    supports = [np.concatenate([shared, other + np.searchsorted(below, other, side="right")]) for other in others]
    return [_normal(rng, np.sort(support), size, 1) for support in supports]


def workload_tensors(workload: str, num_workers: int, steps: int, seed: int) -> tuple[str, list[SparseTensor]]:
    """Label and gradients of a workload.

    workload: a name of NAMES; `name:B` for batches of B examples, small enough for the density of the paper's
              vocabulary; or `zipf`, a generated embedding sorted by frequency, as LM1B's is
    """
    if workload == "zipf":
        made = zipf_embedding(rows=79_347, width=64, tokens_per_worker=2000, num_workers=num_workers, seed=seed)
        return "synthetic-zipf", made
    name, _, batch = workload.partition(":")
    limit = int(batch) if batch else None
    found = gradients(name, num_workers=num_workers, steps=steps, seed=seed, limit_batch=limit)
    return found.workload + (f":{batch}" if batch else ""), found.tensors


class LanguageModel(nn.Module):
    """Next word by an LSTM."""

    def __init__(self, num_rows: int, *, sparse: bool = True) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(num_rows, WIDTH, sparse=sparse), _Softmax(WIDTH, num_rows)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, given_BT: Tensor, target_BT: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(given_BT))[0].flatten(0, 1), target_BT.flatten()).loss


class Transformer(nn.Module):
    """Next word by causal attention, or masked words by attention to both sides; two pre-norm layers."""

    def __init__(self, num_rows: int, *, causal: bool, sparse: bool = True) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(num_rows, WIDTH, sparse=sparse), _Softmax(WIDTH, num_rows)
        self.causal, self.position = causal, nn.Parameter(torch.randn(64, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, given_BT: Tensor, target_BT: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(given_BT.shape[1]) if self.causal else None
        hidden_BTD = self.layers(self.embedding(given_BT) + self.position[: given_BT.shape[1]], mask)
        asked = target_BT != PADDING
        return self.output(hidden_BTD[asked], target_BT[asked]).loss


class Translator(nn.Module):
    """GRU encoder and decoder with dot-product attention; `embedding` is the source's."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_rows, WIDTH, padding_idx=PADDING, sparse=True)
        self.target_embedding, self.output = nn.Embedding(num_rows, WIDTH), _Softmax(2 * WIDTH, num_rows)
        self.encoder, self.decoder = (nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(2))

    def forward(self, source_BS: Tensor, given_BT: Tensor, target_BT: Tensor) -> Tensor:
        source_BSD, last = self.encoder(self.embedding(source_BS))
        hidden_BTD, _ = self.decoder(self.target_embedding(given_BT), last)
        read = (source_BS != PADDING)[:, None]
        context_BTD = nn.functional.scaled_dot_product_attention(hidden_BTD, source_BSD, source_BSD, attn_mask=read)
        asked = target_BT != PADDING
        return self.output(torch.cat([hidden_BTD, context_BTD], 2)[asked], target_BT[asked]).loss


class DeepFM(nn.Module):
    """Clicks by a factorisation machine and an MLP on one table of all fields; column 0 holds first-order weights."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_rows, 1 + 16, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.mlp = nn.Sequential(nn.Linear(FIELDS * 16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, value_BF: Tensor, label_B: Tensor) -> Tensor:
        weight_BF1, vector_BFD = self.embedding(value_BF).tensor_split([1], 2)
        pairs_B = (vector_BFD.sum(1).square() - vector_BFD.square().sum(1)).sum(1) / 2
        logit_B = weight_BF1.sum((1, 2)) + pairs_B + self.mlp(vector_BFD.flatten(1))[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(logit_B, label_B)


def _read(*names: str) -> list[str]:
    files = [datasets.path_or_none(name) for name in names]
    return [] if None in files else [file.read_text(encoding="utf-8") for file in files if file]


def _rows(sentences: Sequence[Sequence[Hashable]], limit: _Limit = None) -> tuple[Tensor, int]:
    """Rows of the words by falling frequency, padded to the longest sentence, and the number of rows."""
    counted = Counter(word for sentence in sentences for word in sentence).most_common(limit and limit - RESERVED)
    row_of = {word: row for row, (word, _) in enumerate(counted, start=RESERVED)}
    rows = [np.array([row_of.get(word, RARE) for word in sentence], np.int64) for sentence in sentences]
    return nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, rows)), True, PADDING), RESERVED + len(row_of)


def _words(length: int, *, seed: int, limit: _Limit = None, masked: bool = False) -> _Data:
    """Windows of text and their targets: every next word, or 15 % of the words, which are masked in the text."""
    rng = np.random.default_rng([seed, 1])
    texts = _read("wikitext2-valid", "wikitext2-test", *([] if masked else ["tiny-shakespeare"]))
    row_1T, num_rows = _rows([_WORD.findall(" ".join(texts)) or _zipf(rng, 20_000, 400_000).tolist()], limit)
    window_ET = row_1T[0].unfold(0, length + 1, length)
    given_ET, target_ET = window_ET[:, :-1], window_ET[:, 1:]
    if masked:
        hidden_ET = torch.from_numpy(rng.random(given_ET.shape).argsort(1) < 0.15 * length)
        given_ET, target_ET = given_ET.where(~hidden_ET, MARK), given_ET.where(hidden_ET, PADDING)
    return (given_ET, target_ET), num_rows, not texts


def _clicks(*, seed: int, count: int = 7200) -> _Data:
    """Values of the categorical fields, without shared rows, and whether there was a click."""
    if texts := _read("criteo"):
        table = [line.split("\t") for line in texts[0].splitlines()]
        labels, lines = [int(line[0]) for line in table], [line[-FIELDS:] for line in table]
    else:
        rng = np.random.default_rng([seed, 1])
        values = np.stack([_zipf(rng, int(size), count) for size in np.geomspace(4, 8000, FIELDS)], 1)
        labels, lines = (rng.random(count) < 0.5 / (1 + values[:, -1] % 5)).tolist(), values.tolist()
    value_EF, num_rows = _rows([list(enumerate(line)) for line in lines])
    return (value_EF, torch.tensor(labels).float()), UNSEEN_SCALE * num_rows, not texts


def _translation(*, seed: int, count: int = 1430, longest: int = 40) -> _Data:
    """Questions and paragraphs, cut off, from German to English: source, target behind a mark, target."""
    rng = np.random.default_rng([seed, 1])
    words = _zipf(rng, 30_000, 22 * count).tolist()
    languages = [[words[start : start + rng.integers(5, 23)] for start in range(0, 22 * count, 22)]] * 2
    for language, text in enumerate(texts := _read("xquad-de", "xquad-en")):
        paragraphs = [paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]]
        segments = [paragraph["context"] for paragraph in paragraphs]
        segments += [question["question"] for paragraph in paragraphs for question in paragraph["qas"]]
        languages[language] = [_WORD.findall(segment) for segment in segments]
    (source, num_rows), (target, target_rows) = (_rows(language) for language in languages)
    source_ES, target_ET = source[:, :longest], target[:, :longest]
    given_ET = nn.functional.pad(target_ET[:, :-1], (1, 0), value=MARK)
    return (source_ES, given_ET, target_ET), max(num_rows, target_rows), not texts


def _zipf(rng: np.random.Generator, rows: int, count: int, exponent: float = 1.0) -> np.ndarray:
    cumulative = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")


def _normal(rng: np.random.Generator, index_N: np.ndarray, num_units: int, width: int) -> SparseTensor:
    value_ND = rng.standard_normal((len(index_N), width), dtype=np.float32)
    return SparseTensor(torch.from_numpy(index_N), torch.from_numpy(value_ND), num_units)


def _check(density: float = 1.0, **counts: int) -> None:
    for name, count in counts.items():
        if count < (least := 0 if name == "steps" else 1):
            raise ValueError(f"{name} must be at least {least}, got {count}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
