"""Memory for states: real tensors on the model's device, or in pinned host memory beside a GPU.

Every tensor owns its storage, so that freeing one half of what was split frees its bytes. A split or a join copies
tensor by tensor and frees each as it goes: beyond the capacity it takes the bytes of one tensor, for a moment.

Shape legend: H = KV heads, L = tokens, D = width of a head
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class TensorMemory:
    """Tensors on one device, counted.

    pinned: page-locked, for copies that a GPU can do by itself
    watch:  also keep a weak reference to each, so that `held_bytes` tells what is really alive
    """

    def __init__(self, device: torch.device | str, *, pinned: bool = False, watch: bool = False) -> None:
        self.device, self.pinned, self.watch = torch.device(device), pinned, watch
        self.used_bytes, self.peak_bytes = 0, 0
        self._alive: list[weakref.ref[Tensor]] = []

    def copy(self, tensors: list[Tensor]) -> list[Tensor]:
        """Copies in this memory."""
        return [self._made([tensor], dim=0) for tensor in tensors]

    def split(self, kv: list[Tensor], tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """The KV [H, L, D] of a segment's first tokens and of the rest; what is passed in is freed."""
        upper, lower = [], []
        while kv:
            tensor = kv.pop(0)
            upper.append(self._made([tensor[:, :tokens]], dim=1))
            lower.append(self._made([tensor[:, tokens:]], dim=1))
            self.free([tensor])
        return upper, lower

    def join(self, upper: list[Tensor], lower: list[Tensor]) -> list[Tensor]:
        """The KV of two segments, one after the other; what is passed in is freed."""
        joined = []
        while upper:
            pair = [upper.pop(0), lower.pop(0)]
            joined.append(self._made(pair, dim=1))
            self.free(pair)
        return joined

    def free(self, tensors: list[Tensor]) -> None:
        """The tensors are no longer held here; the caller drops them."""
        self.used_bytes -= sum(tensor.nbytes for tensor in tensors)

    @property
    def held_bytes(self) -> int:
        """Bytes of all tensors made here that are still alive, whoever holds them. Needs `watch`."""
        tensors = [reference() for reference in self._alive]
        self._alive = [alive for alive, tensor in zip(self._alive, tensors, strict=True) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _made(self, parts: list[Tensor], dim: int) -> Tensor:
        """A new tensor of the parts, one after the other."""
        first = parts[0]
        shape = list(first.shape)
        if len(parts) > 1:
            shape[dim] = sum(part.shape[dim] for part in parts)
        made = torch.empty(shape, dtype=first.dtype, device=self.device, pin_memory=self.pinned)
        at = 0
        for part in parts:
            place = made.narrow(dim, at, part.shape[dim]) if len(parts) > 1 else made
            place.copy_(part)
            at += part.shape[dim] if len(parts) > 1 else 0
        self.used_bytes += made.nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        if self.watch:
            self._alive.append(weakref.ref(made))
        return made
