"""Run a scheme: all ranks in one process, counting every byte, or this process's rank over torch.distributed.

Shape legend: F = phases, W = workers
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from artifact.sparse_sync.schemes import Exchange, RankContext, Scheme
from artifact.sparse_sync.schemes.base import Message, Received, Result
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

EAGER_BYTES = 65_536
"""Bytes of a message that are sent together with its length: a small message then costs one handshake, not two."""


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of every phase and rank; what a rank keeps for itself is free.

    sent_FW, received_FW: [phases, workers], int64
    """

    sent_FW: NDArray[np.int64]
    received_FW: NDArray[np.int64]

    @property
    def max_sent_bytes(self) -> int:
        """Bytes sent by the rank that sends most."""
        return int(self.sent_FW.sum(axis=0).max(initial=0))

    @property
    def max_received_bytes(self) -> int:
        """Bytes received by the rank that receives most."""
        return int(self.received_FW.sum(axis=0).max(initial=0))

    @property
    def total_bytes(self) -> int:
        """Bytes sent by all ranks."""
        return int(self.sent_FW.sum())

    @property
    def busiest_bytes(self) -> int:
        """Sum over the phases of the most that a rank sends or receives in one: time times bandwidth."""
        return int(np.maximum(self.sent_FW, self.received_FW).max(axis=1, initial=0).sum())

    def seconds(self, bandwidth_gbps: float) -> float:
        """Time on full-duplex links of `bandwidth_gbps` (10^9 bits a second), one phase after the other."""
        if not bandwidth_gbps > 0:
            raise ValueError(f"bandwidth_gbps must be positive, got {bandwidth_gbps}")
        return self.busiest_bytes * 8 / (bandwidth_gbps * 1e9)


def run_counted(scheme: Scheme, tensors: Sequence[SparseTensor], seed: int = 0) -> tuple[list[Result], Traffic]:
    """Run every rank of a scheme in this process, phase by phase, and count the bytes.

    tensors: one per worker, of one size, width and value type
    seed:    of the hash
    Returns: the result of each rank, to be called, and the traffic
    Raises:  ValueError if the tensors differ in size, width or type
    """
    first = tensors[0]
    for rank, tensor in enumerate(tensors):
        same = (tensor.num_units, tensor.width, tensor.value_ND.dtype)
        if same != (first.num_units, first.width, first.value_ND.dtype):
            raise ValueError(f"tensors must have one size, width and type, worker {rank} differs from worker 0: {same}")
    workers = len(tensors)
    steps = [scheme.steps(RankContext(rank, workers, seed), tensor) for rank, tensor in enumerate(tensors)]
    received: list[Any] = [None] * workers  # what starts a generator
    sent_bytes: list[list[int]] = []
    received_bytes: list[list[int]] = []
    while True:
        exchanges: list[Exchange] = []
        results: list[Result] = []
        for generator, messages in zip(steps, received, strict=True):
            try:
                exchanges.append(generator.send(messages))
            except StopIteration as stop:
                results.append(stop.value)
        assert not (exchanges and results), "all ranks of a scheme have the same number of phases"
        if results:
            return results, Traffic(*np.array([sent_bytes, received_bytes], np.int64).reshape(2, -1, workers))
        received = [
            {source: exchanges[source].send[rank] for source in exchanges[rank].sources} for rank in range(workers)
        ]
        sent_bytes.append([_payload(exchange.send) for exchange in exchanges])
        received_bytes.append([_payload(messages) for messages in received])
        assert sum(sent_bytes[-1]) == sum(received_bytes[-1]), "every message has one receiver that expects it"


def _payload(messages: dict[int, Message]) -> int:
    return sum(message.numel() for message in messages.values())


class Link:
    """This process's end of a torch.distributed group: one `exchange` is one phase of a scheme.

    On gloo, messages go in rounds: in round d to rank + d, from rank - d. Sending to all ranks at once takes 1.4 to 1.6
    times as long on a limited link. A message starts with its length; its bytes beyond EAGER_BYTES follow in a second
    send. On nccl all messages take one `all_to_all_single`, after one for their lengths.

    sent_bytes, received_bytes: payload so far; seconds: in exchanges so far
    """

    def __init__(self, group: distributed.ProcessGroup | None = None, device: torch.device | None = None) -> None:
        self.group = group
        self.rank = distributed.get_rank(group)
        self.num_workers = distributed.get_world_size(group)
        self.device = device or torch.device("cpu")
        self.sent_bytes = self.received_bytes = 0
        self.seconds = 0.0

    def run(self, scheme: Scheme, tensor: SparseTensor, seed: int = 0) -> SparseTensor:
        """Run this rank of a scheme. Returns the sum over all ranks."""
        steps = scheme.steps(RankContext(self.rank, self.num_workers, seed), tensor)
        try:
            exchange = next(steps)
            while True:
                exchange = steps.send(self.exchange(exchange))
        except StopIteration as stop:
            result: Result = stop.value
        return result()

    def exchange(self, exchange: Exchange) -> Received:
        """Send and receive one phase's messages."""
        together = distributed.get_backend(self.group) == "nccl"
        start = time.perf_counter()
        received = self._all_to_all(exchange) if together else self._rounds(exchange)
        self.seconds += time.perf_counter() - start
        self.sent_bytes += _payload(exchange.send)
        self.received_bytes += _payload(received)
        return received

    def _rounds(self, exchange: Exchange) -> Received:
        received: Received = {}
        for step in range(1, self.num_workers):
            to, source = (self.rank + step) % self.num_workers, (self.rank - step) % self.num_workers
            message = exchange.send.get(to)
            waiting: list[distributed.Work] = []
            if message is not None:
                length = torch.tensor([message.numel()]).view(torch.uint8)
                waiting.append(self._send(torch.cat((length, message[:EAGER_BYTES])), to))
                if message.numel() > EAGER_BYTES:
                    waiting.append(self._send(message[EAGER_BYTES:].contiguous(), to))
            if source in exchange.sources:
                received[source] = self._receive(source)
            for work in waiting:
                work.wait()
        return received

    def _send(self, tensor: Tensor, to: int) -> distributed.Work:
        work = distributed.isend(tensor, self._global(to), group=self.group)
        assert work is not None
        return work

    def _receive(self, source: int) -> Tensor:
        """A message as `_rounds` sends it. Gloo accepts a message that is shorter than the buffer."""
        eager = torch.empty(8 + EAGER_BYTES, dtype=torch.uint8)
        distributed.recv(eager, self._global(source), group=self.group)
        length = int(eager[:8].view(torch.int64))
        if length <= EAGER_BYTES:
            return eager[8 : 8 + length].clone()
        message = torch.empty(length, dtype=torch.uint8)
        message[:EAGER_BYTES] = eager[8:]
        distributed.recv(message[EAGER_BYTES:], self._global(source), group=self.group)
        return message

    def _global(self, rank: int) -> int:
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    def _all_to_all(self, exchange: Exchange) -> Received:
        empty = torch.empty(0, dtype=torch.uint8, device=self.device)
        messages = [exchange.send.get(rank, empty) for rank in range(self.num_workers)]
        lengths = torch.tensor([message.numel() for message in messages], device=self.device)
        incoming = torch.empty_like(lengths)
        distributed.all_to_all_single(incoming, lengths, group=self.group)
        sizes = incoming.tolist()
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        distributed.all_to_all_single(
            buffer, torch.cat(messages), sizes, [message.numel() for message in messages], group=self.group
        )
        arrived = buffer.split(sizes)
        return {source: arrived[source] for source in exchange.sources}
