"""How one model's states are read from, and put into, a cache of `transformers`; batch size 1.

Shape legend: L = tokens, H = KV heads, D = width of a head, V = vocabulary
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from artifact import hardware
from artifact.prefix_cache.serving.carried_scan import carried, has_selective_scan

DIRECT, POSITION_IDS, CARRIED, TOKEN_BY_TOKEN = "direct", "position_ids", "carried state", "token by token"
WAYS = {
    DIRECT: "in one call",
    POSITION_IDS: "in one call with explicit position_ids",
    CARRIED: "in one call with the state carried past the scan",
    TOKEN_BY_TOKEN: "one token a call",
}
_KINDS = (DummyLayer, DynamicLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
_MAMBA_SSM = "selective_state_update"
"""How a function's name ends in the modules of `transformers` that scan with mamba-ssm if it is installed."""
_PROBE_PREFIX, _PROBE_PIECES = 41, (7, 1, 4)


class Implementation(NamedTuple):
    """What computes the scan, and why."""

    name: str
    """`mamba-ssm` (its compiled kernels) or `torch`."""
    reason: str


def implementation(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Implementation:
    """What scans tensors of `dtype` on `device` (by default the device that `hardware` chooses)."""
    machine = hardware.detect()
    kind = torch.device(device or machine.device).type
    if machine.device != "cuda":
        return Implementation("torch", f"mamba-ssm's kernels need CUDA: {machine.reason}")
    if not machine.mamba_kernels:
        return Implementation("torch", "mamba-ssm's compiled kernels are not installed")
    if kind != "cuda":
        return Implementation("torch", f"mamba-ssm's kernels need CUDA: the tensors are on {kind}")
    if dtype == torch.float64:
        return Implementation("torch", "mamba-ssm's kernels compute in float32: the tensors are float64")
    return Implementation("mamba-ssm", f"its compiled kernels are installed and {machine.reason}")


@dataclass(frozen=True)
class Tolerance:
    """How far logits may lie apart: relative to the largest of the expected ones where that exceeds `floor`."""

    limit: float
    floor: float

    @staticmethod
    def of(dtype: torch.dtype) -> Tolerance:
        """1e-5 in float32 (absolute for logits up to 1 in size), 2e-2 of the largest logit in half precision."""
        return Tolerance(1e-5, 1.0) if dtype.itemsize >= 4 else Tolerance(2e-2, 0.0)

    def difference(self, found: Tensor, expected: Tensor) -> float:
        """The largest difference, to be held against `limit`; infinite if one is not a number."""
        expected = expected.double()
        scale = max(self.floor, float(expected.abs().max()))
        largest = float((found.double() - expected).abs().max()) / scale
        return largest if largest == largest else float("inf")


@dataclass(eq=False)
class Running:
    """One sequence's live state: advanced in place by `ModelStates.run`."""

    cache: DynamicCache
    length: int = 0
    """Tokens seen."""
    logits: Tensor | None = None
    """[V], after the last token."""


@dataclass(frozen=True)
class _Slot:
    """Where one state of a recurrent layer lies in a cache."""

    layer: int
    kind: str
    """`conv` or `recurrent`."""
    index: int

    def read(self, cache: DynamicCache) -> Tensor:
        return getattr(cache.layers[self.layer], f"{self.kind}_states")[self.index]

    def write(self, cache: DynamicCache, state: Tensor) -> None:
        layer: Any = cache.layers[self.layer]
        getattr(layer, f"{self.kind}_states")[self.index] = state
        getattr(layer, f"is_{self.kind}_states_initialized")[self.index] = True
        layer.has_previous_state[self.index] = True  # without it the next call starts from nothing
        if self.kind == "conv":
            layer.conv_kernel_size[self.index] = state.shape[-1]
            layer.dtype, layer.device = state.dtype, state.device


class DoesNotResume(ValueError):
    """No way of resuming the model from its states equals a cold prefill; the message says what was measured."""


class ModelStates:
    """Runs a model over sequences whose states can be taken out and put back.

    Not every class of `transformers` resumes several tokens from a restored state: some ignore the recurrent state,
    some count positions from 0. At construction a probe compares each way of resuming with a cold prefill and takes
    the first that is right.

    Raises: DoesNotResume if no way is right; ValueError if a layer keeps less than a state per token (sliding windows),
            or no layer a recurrent state (attention alone, or a class with a cache of another kind)
    """

    resume: str
    """`direct`, `position_ids`, `carried state` or `token by token`."""
    resume_reason: str
    """What the probe measured, in words."""
    differences: dict[str, float]
    """Largest difference from a cold prefill by way, for the ways that the probe tried."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.tolerance = Tolerance.of(model.dtype)
        layers = self.start().cache.layers
        for number, layer in enumerate(layers):
            if type(layer) not in _KINDS:
                raise ValueError(f"layer {number} must keep full states, got a {type(layer).__name__}")
        self._attention = [i for i, layer in enumerate(layers) if isinstance(layer, DynamicLayer)]
        self._slots: list[_Slot] = []
        self._kv_shapes: list[tuple[int, int, torch.dtype]] = []
        self._probe()

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    @property
    def scan(self) -> str:
        """What scans, and why; a class that has no scan of mamba-ssm's has its own."""
        module = sys.modules[type(self.model).__module__]
        if not any(name.endswith(_MAMBA_SSM) for name in vars(module)):
            return f"transformers: {type(self.model).__name__} has no scan of mamba-ssm's"
        chosen = implementation(self.device, self.model.dtype)
        return f"{chosen.name}: {chosen.reason}"

    # running ---------------------------------------------------------------------------------------------------
    def start(self) -> Running:
        """A sequence without tokens."""
        return Running(DynamicCache(config=self.config))

    @torch.no_grad()
    def run(
        self,
        running: Running,
        tokens_L: Tensor | np.ndarray | Sequence[int],
        *,
        all_logits: bool = False,
        way: str | None = None,
    ) -> Tensor:
        """Advance a sequence by tokens, in the way that is right for the model, or in another of WAYS.

        Returns: [V], logits after the last token; [L, V] with `all_logits`
        Raises:  ValueError without a token
        """
        way = way or self.resume
        if isinstance(tokens_L, np.ndarray):
            tokens_L = tokens_L.astype(np.int64)  # a copy: torch warns of arrays that are read-only
        tokens = torch.as_tensor(tokens_L, dtype=torch.long, device=self.device)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError(f"tokens must be a sequence of at least one, got shape {tuple(tokens.shape)}")
        stepwise = way == TOKEN_BY_TOKEN and running.length > 0
        pieces = tokens.split(1 if stepwise else len(tokens))
        kept = [self._forward(running, piece, way, all_logits, piece is pieces[-1]) for piece in pieces]
        running.logits = kept[-1][-1].clone() if all_logits else kept[-1][-1]
        return torch.cat(kept) if all_logits else running.logits

    def _forward(self, running: Running, tokens_L: Tensor, way: str, all_logits: bool, last: bool) -> Tensor:
        options: dict[str, Any] = {"input_ids": tokens_L[None], "past_key_values": running.cache, "use_cache": True}
        if way != DIRECT:
            positions = torch.arange(running.length, running.length + len(tokens_L), device=self.device)
            options["position_ids"] = positions[None]
        scan: AbstractContextManager[None] = nullcontext()
        if way == CARRIED and running.length > 0 and len(tokens_L) > 1:
            states = [slot.read(running.cache) for slot in self._slots if slot.kind == "recurrent"]
            scan = carried(self.model, states)
        with scan:
            if all_logits or last:
                logits_1LV = self.model(**options, logits_to_keep=0 if all_logits else 1).logits
            else:  # no logits of tokens in between
                logits_1LV = self.model.base_model(**options).last_hidden_state
        running.length += len(tokens_L)
        return logits_1LV[0].to(self.model.dtype)  # some classes hand out the head's result as float32

    # states in and out -----------------------------------------------------------------------------------------
    def kv(self, running: Running, start: int, stop: int, *, copy: bool = True) -> list[Tensor]:
        """KV of tokens [start, stop): for each attention layer keys, then values, [H, stop - start, D].

        Copies, or views with `copy` off: those are for reading before the sequence advances.
        """
        if not 0 <= start <= stop <= running.length:
            raise ValueError(f"tokens must lie within [0, {running.length}], got [{start}, {stop})")
        if running.length == 0:
            return [
                torch.empty((heads, 0, width), dtype=dtype, device=self.device)
                for heads, width, dtype in self._kv_shapes
                for _ in range(2)
            ]
        views = [
            states_1HLD[0, :, start:stop]
            for layer in self._attention
            for states_1HLD in (running.cache.layers[layer].keys, running.cache.layers[layer].values)
        ]
        return [view.clone(memory_format=torch.contiguous_format) for view in views] if copy else views

    def checkpoint(self, running: Running) -> list[Tensor]:
        """Copies of the convolution and recurrent states of every recurrent layer, then of the logits.

        Raises: ValueError before the first token
        """
        if running.logits is None:
            raise ValueError("a checkpoint must follow a token, got a sequence without one")
        return [slot.read(running.cache)[0].clone() for slot in self._slots] + [running.logits.clone()]

    @torch.no_grad()
    def restore(self, segments: list[list[Tensor]], checkpoint: list[Tensor], length: int) -> Running:
        """A sequence of `length` tokens from the KV of its segments, in order, and the checkpoint at its end.

        Every tensor is copied once, to the model's device: what is passed in never changes afterwards, and may
        change or go.

        Raises: ValueError if the tensors are not those of `length` tokens of this model
        """
        if len(checkpoint) != len(self._slots) + 1:
            raise ValueError(f"a checkpoint must have {len(self._slots) + 1} tensors, got {len(checkpoint)}")
        running = self.start()
        for position, layer_number in enumerate(self._attention):
            layer: Any = running.cache.layers[layer_number]
            layer.keys = self._joined([segment[2 * position] for segment in segments], length)
            layer.values = self._joined([segment[2 * position + 1] for segment in segments], length)
            layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
            layer.is_initialized = True
        for slot, state in zip(self._slots, checkpoint[:-1], strict=True):
            slot.write(running.cache, self._copied(state)[None])
        running.length, running.logits = length, self._copied(checkpoint[-1])
        return running

    def _joined(self, parts_HLD: list[Tensor], length: int) -> Tensor:
        held = sum(part.shape[1] for part in parts_HLD)
        if held != length or length == 0:
            raise ValueError(f"segments must hold the KV of {length} tokens, at least one, got {held}")
        heads, _, width = parts_HLD[0].shape
        joined_1HLD = torch.empty((1, heads, length, width), dtype=parts_HLD[0].dtype, device=self.device)
        end = 0
        for part in parts_HLD:
            start, end = end, end + part.shape[1]
            joined_1HLD[0, :, start:end].copy_(part)
        return joined_1HLD

    def _copied(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self.device, memory_format=torch.contiguous_format).copy_(tensor)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the KV of one token, of the real tensors."""
        return sum(2 * heads * width * dtype.itemsize for heads, width, dtype in self._kv_shapes)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint, of the real tensors."""
        return self._checkpoint_bytes

    # the probe -------------------------------------------------------------------------------------------------
    def _probe(self) -> None:
        """Learn the states' shapes, and the first right way to resume."""
        generator = torch.Generator().manual_seed(0)
        length = _PROBE_PREFIX + sum(_PROBE_PIECES)
        tokens_L = torch.randint(self.config.vocab_size, (length,), generator=generator)
        expected = self.run(self.start(), tokens_L, all_logits=True, way=DIRECT)[_PROBE_PREFIX:]
        running = self.start()
        self.run(running, tokens_L[:_PROBE_PREFIX], way=DIRECT)
        self._learn_shapes(running)
        kv, checkpoint = self.kv(running, 0, _PROBE_PREFIX), self.checkpoint(running)
        self._checkpoint_bytes = sum(tensor.nbytes for tensor in checkpoint)
        self.differences = {}
        for way in WAYS:
            if way == CARRIED and not has_selective_scan(self.model):
                continue
            running = self.restore([kv], checkpoint, _PROBE_PREFIX)
            pieces = tokens_L[_PROBE_PREFIX:].split(list(_PROBE_PIECES))
            found = torch.cat([self.run(running, piece, all_logits=True, way=way) for piece in pieces])
            self.differences[way] = self.tolerance.difference(found, expected)
            if self.differences[way] <= self.tolerance.limit:
                self.resume, self.resume_reason = way, self._measured()
                return
        raise DoesNotResume(f"{type(self.model).__name__} does not resume from its states: {self._measured()}")

    def _measured(self) -> str:
        measured = ", ".join(f"{difference:.1e} {WAYS[way]}" for way, difference in self.differences.items())
        return f"several tokens differ from a cold prefill by {measured} (tolerance {self.tolerance.limit:g})"

    def _learn_shapes(self, running: Running) -> None:
        for number in self._attention:
            _, heads, _, width = running.cache.layers[number].keys.shape
            self._kv_shapes.append((heads, width, running.cache.layers[number].keys.dtype))
        for number, layer in enumerate(running.cache.layers):
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                self._slots += [_Slot(number, "conv", i) for i, on in layer.is_conv_states_initialized.items() if on]
                on_recurrent = layer.is_recurrent_states_initialized.items()
                self._slots += [_Slot(number, "recurrent", i) for i, on in on_recurrent if on]
        if not self._slots:
            raise ValueError(f"a model must keep recurrent states in its cache, {type(self.model).__name__} keeps none")
