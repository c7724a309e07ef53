"""Exact sparse synchronisation inside DistributedDataParallel, by the cheapest scheme.

- Sparse buckets (`nn.Embedding(sparse=True)`) stay sparse, by row. The parameters after training are bit for bit those
  of stock DDP: values are divided by n first and summed in rank order, as its own sparse all-reduce does.
- Dense buckets go through the usual all-reduce, or, given a density, are reduced to their largest elements with error
  feedback: elements that are not sent stay in a residual, which is added to the next gradient (DGC without momentum
  correction).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from artifact.sparse_sync.links.transport import Link
from artifact.sparse_sync.schemes import SCHEMES, Exchange
from artifact.sparse_sync.schemes.cost_model import choose_scheme, measure_statistics
from artifact.sparse_sync.tensors.formats import as_bytes, from_bytes
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, from_coo
from artifact.sparse_sync.tensors.topk import TopK

AUTO = "auto"


@dataclass
class SparseSync:
    """The state of a registered hook.

    schemes:           scheme in use by bucket, which is named by its parameters
    sent_bytes:        payload that this rank has sent in sparse exchanges
    own_seconds:       time in the hook outside exchanges
    exchange_seconds:  time in exchanges, sending and waiting
    """

    link: Link
    scheme: str
    density: float | None
    bandwidth_gbps: float
    interval: int
    hysteresis: float
    seed: int
    names: dict[int, str]
    schemes: dict[str, str] = field(default_factory=dict)
    own_seconds: float = 0.0
    _steps: dict[str, int] = field(default_factory=dict)
    _topk: dict[int, TopK] = field(default_factory=dict)

    @property
    def sent_bytes(self) -> int:
        return self.link.sent_bytes

    @property
    def exchange_seconds(self) -> float:
        return self.link.seconds

    def sum(self, key: str, tensor: SparseTensor) -> SparseTensor:
        """The sum of every rank's tensor. key: of the bucket"""
        started, waited = time.perf_counter(), self.link.seconds
        name = self._scheme_of(key, tensor)
        total = self.link.run(SCHEMES[name], tensor, self.seed)
        self.own_seconds += time.perf_counter() - started - (self.link.seconds - waited)
        return total

    def _scheme_of(self, key: str, tensor: SparseTensor) -> str:
        """Chosen at intervals from the indices of all ranks, which every rank receives: all make the same choice."""
        if self.scheme != AUTO:
            self.schemes[key] = self.scheme
            return self.scheme
        step = self._steps[key] = self._steps.get(key, -1) + 1
        if step % self.interval == 0:
            statistics = measure_statistics(self._supports(tensor), self.seed)
            current, gbps = self.schemes.get(key), self.bandwidth_gbps
            self.schemes[key] = choose_scheme(
                statistics, bandwidth_gbps=gbps, current=current, hysteresis=self.hysteresis
            )
        return self.schemes[key]

    def _supports(self, tensor: SparseTensor) -> list[SparseTensor]:
        """Every rank's indices, without values."""
        others = tuple(rank for rank in range(self.link.num_workers) if rank != self.link.rank)
        message = as_bytes(tensor.index_N)
        received = self.link.exchange(Exchange(dict.fromkeys(others, message), others))
        received[self.link.rank] = message
        index = [from_bytes(received[rank], torch.int64).cpu() for rank in range(self.link.num_workers)]
        no_value = torch.empty(1, 1, dtype=tensor.value_ND.dtype)
        return [SparseTensor(each_N, no_value.expand(len(each_N), tensor.width), tensor.num_units) for each_N in index]

    def select(self, parameters: list[Tensor], flat: Tensor) -> SparseTensor:
        """The largest elements of each parameter's stretch of a flat gradient, after its residual was added."""
        assert self.density is not None
        index, value, start = [], [], 0
        for parameter in parameters:
            topk = self._topk.setdefault(id(parameter), TopK(self.density))
            selected = topk.select(flat[start : start + parameter.numel()])
            index.append(selected.index_N + start)
            value.append(selected.value_ND)
            start += parameter.numel()
        return SparseTensor(torch.cat(index), torch.cat(value), flat.numel())


def register_sparse_sync(
    ddp_model: DistributedDataParallel,
    scheme: str = AUTO,
    *,
    density: float | None = None,
    bandwidth_gbps: float = 1.0,
    interval: int = 100,
    hysteresis: float = 0.1,
    seed: int = 0,
) -> SparseSync:
    """Have `ddp_model` synchronise its gradients by `scheme`. Gradients become the mean over all ranks, as DDP's are.

    Works on gloo and nccl. A rank that used no row of an embedding sends an empty gradient, if the model was wrapped
    with find_unused_parameters=True (stock DDP fails there).

    scheme:         a name of `artifact.sparse_sync.SCHEMES`, or auto: the cheapest for each bucket
    density:        share of a dense bucket's elements to send each step, in (0, 1); None sends dense buckets whole
    bandwidth_gbps: of a link, for the automatic choice, in 10^9 bits a second
    interval:       steps from one automatic choice to the next
    hysteresis:     fraction by which another scheme must be faster to replace the one in use
    seed:           of the hash, the same on all ranks
    Raises:         ValueError for another scheme, density or interval
    """
    if scheme != AUTO and scheme not in SCHEMES:
        raise ValueError(f"scheme must be auto or one of {', '.join(SCHEMES)}, got {scheme!r}")
    if density is not None and not 0 < density < 1:
        raise ValueError(f"density must be in (0, 1), got {density}")
    if interval < 1:
        raise ValueError(f"interval must be at least 1, got {interval}")
    link = Link(ddp_model.process_group, next(ddp_model.module.parameters()).device)
    names = {id(parameter): name for name, parameter in ddp_model.module.named_parameters()}
    state = SparseSync(link, scheme, density, bandwidth_gbps, interval, hysteresis, seed, names)
    if ddp_model.find_unused_parameters:
        ddp_model.register_forward_pre_hook(_define_sparse_gradients)
    ddp_model.register_comm_hook(state, _hook)
    return state


def _hook(state: SparseSync, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    gradient, n = bucket.buffer(), state.link.num_workers
    key = "+".join(state.names[id(parameter)] for parameter in bucket.parameters())
    if gradient.layout == torch.sparse_coo:
        total = state.sum(key, from_coo(gradient / n))
        return _done(_as_coo(total, gradient.shape))
    if state.density is None:  # a product, as DDP does it: a quotient rounds differently if n is not a power of 2
        work = distributed.all_reduce(gradient.mul_(1 / n), group=state.link.group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])
    total = state.sum(key, state.select(bucket.parameters(), gradient / n))
    gradient.zero_()
    gradient[total.index_N] = total.value_ND.reshape(-1)
    return _done(gradient)


# DDP compares the annotations with these objects, not with their names.
_hook.__annotations__ = {"bucket": distributed.GradBucket, "return": torch.futures.Future[torch.Tensor]}


def _as_coo(total: SparseTensor, shape: torch.Size) -> Tensor:
    """A coalesced gradient of that shape; elements become whole rows again."""
    row_width = shape.numel() // shape[0]
    if total.width != row_width:
        rows, place_N = torch.unique_consecutive(total.index_N // row_width, return_inverse=True)
        values = torch.zeros(rows.numel(), row_width, dtype=total.value_ND.dtype, device=total.value_ND.device)
        values[place_N, total.index_N % row_width] = total.value_ND.reshape(-1)
        total = SparseTensor(rows, values, shape[0])
    return torch.sparse_coo_tensor(
        total.index_N[None], total.value_ND.reshape(-1, *shape[1:]), shape, is_coalesced=True, check_invariants=False
    )


def _done(value: Tensor) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(value)
    return future


def _define_sparse_gradients(model: DistributedDataParallel, _: object) -> None:
    """Give sparse embeddings an empty gradient: DDP asserts that one is defined, also on a rank that used no row."""
    for module in model.module.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.grad is None:
            weight = module.weight.detach()
            none = torch.empty(0, dtype=torch.int64, device=weight.device)
            empty = SparseTensor(none, weight.new_empty(0, weight.shape[1]), len(weight))
            module.weight.grad = _as_coo(empty, weight.shape)
