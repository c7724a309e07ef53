"""The process group of one generation, whose collectives can be ended at once even if a peer is only stopped.

A group is formed through a store that outlives its members, under its own prefix; the next generation forms another.
Gloo waits for a stopped peer until its timeout, and its abort does not change that. `break_off` closes the group's
connections, so that waiting collectives raise within milliseconds.

Shape legend: R = ranks
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed


class Group:
    """Members of one generation, ranks 0 to size - 1.

    host: address at which the other members reach this machine
    """

    def __init__(
        self,
        store: distributed.Store,
        generation: int,
        rank: int,
        size: int,
        *,
        host: str,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        prefixed = distributed.PrefixStore(f"generation{generation}", store)
        before = _sockets()
        self._group: Any
        if device.type == "cuda":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = timedelta(seconds=timeout_s)
            self._group = distributed.ProcessGroupNCCL(prefixed, rank, size, options)
        else:
            options = distributed.ProcessGroupGloo._Options()
            options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
            options._timeout = timedelta(seconds=timeout_s)
            self._group = distributed.ProcessGroupGloo(prefixed, rank, size, options)
        self._connections = _sockets() - before

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place: the same bits everywhere."""
        self._group.allreduce([tensor]).wait()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[R, ...]: every rank's tensor, all of one shape."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        self._group.allgather([gathered], [tensor.contiguous()]).wait()
        return torch.stack(gathered)

    def all_to_all(self, tensor: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]) -> Tensor:
        """Send the first send_counts[0] rows to rank 0, and so on. Returns: the rows received, by source rank"""
        received = tensor.new_empty(sum(recv_counts), *tensor.shape[1:])
        self._group.alltoall_base(received, tensor.contiguous(), list(recv_counts), list(send_counts)).wait()
        return received

    def exchange(self, send: Sequence[Tensor], recv_sizes: Sequence[int]) -> list[Tensor]:
        """Send one flat tensor to each rank. Returns: one from each rank, of the given sizes"""
        received = self.all_to_all(torch.cat(list(send)), [part.numel() for part in send], recv_sizes)
        return list(received.split(list(recv_sizes)))

    def vote(self, only: int | None = None) -> None:
        """Return once every rank has called this. Every rank sends its vote directly to every other one.

        only: send to this many ranks and return, as a rank that dies within its vote
        """
        token = torch.zeros(1, device=self.device)
        others = range(1, self.size)
        sends = [self._group.send([token], (self.rank + step) % self.size, 0) for step in list(others)[:only]]
        if only is None:
            for step in others:
                self._group.recv([token], (self.rank - step) % self.size, 0).wait()
        for send in sends:
            send.wait()

    def break_off(self) -> None:
        """Close the connections, from any thread: waiting and later collectives raise."""
        if self.device.type == "cuda":
            self._group.abort()
            return
        connections, self._connections = self._connections, set()
        for number in connections:
            with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
                if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    connection.shutdown(socket.SHUT_RDWR)


class AllToAll(torch.autograd.Function):
    """`Group.all_to_all`, differentiable: gradients return to the ranks that sent the rows."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: Group, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> Tensor:
        ctx.back = group, recv_counts, send_counts
        return group.all_to_all(tensor, send_counts, recv_counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        group, send_counts, recv_counts = ctx.back
        return group.all_to_all(gradient, send_counts, recv_counts), None, None, None


def _sockets() -> set[int]:
    """File descriptors of this process's sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
    return found
