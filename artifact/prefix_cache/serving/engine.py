"""A real hybrid model that prefills from cached states (Marconi, sections 4.1 and 4.2).

A request looks up the longest stored prefix, restores its states, computes the rest and takes the checkpoints that
the cache's policy names on the way: at each of them the prefill is cut in two passes. States are copied when they are
restored: nothing that is stored changes, and several requests in flight share nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from artifact.prefix_cache.index.base import Index
from artifact.prefix_cache.index.tiers import Hit, TieredCache
from artifact.prefix_cache.serving import persistence
from artifact.prefix_cache.serving.hybrid_models import fingerprint
from artifact.prefix_cache.serving.model_states import ModelStates, Running
from artifact.prefix_cache.serving.tensor_memory import TensorMemory
from artifact.prefix_cache.workloads.traces import Tokens, checked_tokens


@dataclass(eq=False)
class Request:
    """One sequence in flight. As a context manager it is finished at its end, and given up on an error."""

    engine: HybridEngine
    tokens: Tokens
    """[length], input, then what was decoded."""
    running: Running
    hit: Hit
    hit_tokens: int
    """Tokens of the input whose states were restored."""
    from_host_tokens: int
    """Those of them that only the second tier had."""
    computed_tokens: int = 0
    """Tokens run through the model so far, decoded ones too."""
    ttft_s: float = 0.0
    """From the request to the logits of its first token: lookup, restore and prefill, checkpoints on the way."""
    prefill_s: float = 0.0
    """Until all checkpoints of the prefill are there as well."""
    restore_s: float = 0.0
    """Lookup, promotion and restore alone."""
    checkpoints: dict[int, list[Tensor]] = field(default_factory=dict)
    """Checkpoint by depth, of those that the policy may name."""
    open: bool = True

    @property
    def logits(self) -> Tensor:
        """[vocabulary], after the last token."""
        assert self.running.logits is not None
        return self.running.logits

    def kv(self, start: int, stop: int) -> list[Tensor]:
        """KV of tokens [start, stop), views."""
        return self.engine.states.kv(self.running, start, stop, copy=False)

    def checkpoint(self, depth: int) -> list[Tensor]:
        """The checkpoint after `depth` tokens."""
        return self.checkpoints[depth]

    def __enter__(self) -> Request:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.open and kind is None:
            self.engine.finish(self)
        elif self.open:
            self.engine.abort(self)


class HybridEngine:
    """Serves a hybrid model of `transformers` from a cache of its states.

    cache:             a PrefixCache or BlockCache, empty, over the costs of `spec_of(model)`; or a TieredCache, whose
                       first tier is on the model's device and whose second is in host memory
    after_first_token: take the checkpoints of a prefill in a second run after the first token, which its time then
                       does not hold. For a cache of one checkpoint a block: engines get those states from inside their
                       kernels, here each costs a call
    to_model:          maps tokens to the model's vocabulary; without it a token outside of it is an error
    debug:             compare index and tensors after every operation
    Raises:            ValueError if the costs are not the model's, or the model does not resume from its states
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Index | TieredCache,
        *,
        after_first_token: bool = False,
        to_model: Callable[[Tokens], Tokens] | None = None,
        debug: bool = False,
    ) -> None:
        self.model, self.states = model, ModelStates(model)
        self.cache = cache if isinstance(cache, TieredCache) else TieredCache(cache)
        self.cache.debug |= debug
        self.after_first_token, self._to_model = after_first_token, to_model
        for tier in self.cache.tiers:
            spec, real = tier.index.spec, (self.states.kv_bytes_per_token, self.states.checkpoint_bytes)
            if (spec.kv_bytes_per_token, spec.checkpoint_bytes) != real:
                raise ValueError(
                    f"the cache's costs must be the model's, {real[0]} bytes a token and {real[1]} a checkpoint (see "
                    f"spec_of), got {spec.kv_bytes_per_token} and {spec.checkpoint_bytes} of {spec.name}"
                )
        on_gpu = self.states.device.type == "cuda"
        self.cache.use(TensorMemory(self.states.device, watch=debug), TensorMemory("cpu", pinned=on_gpu, watch=debug))

    # requests --------------------------------------------------------------------------------------------------
    def prefill(self, tokens: Sequence[int] | Tokens) -> Request:
        """Compute the states of `tokens`, from the longest prefix that is stored.

        Returns: a request in flight, which holds what it resumed from until `finish` or `abort`
        Raises:  ValueError without a token, for one outside the vocabulary
        """
        checked = self._checked(tokens)
        began = self._now()
        hit = self.cache.lookup(checked)
        try:
            return self._prefilled(checked, hit, began)
        except BaseException:  # no request comes of it that could release the hit
            self.cache.release(hit)
            raise

    def append(self, request: Request, tokens: Sequence[int] | Tokens) -> Tensor:
        """Continue with given tokens. Returns: [vocabulary], logits after the last. Raises: ValueError as `prefill`."""
        self._must_be_open(request)
        self._advance(request, self._checked(tokens))
        return request.logits

    def decode(self, request: Request, max_new_tokens: int, *, stop_token: int | None = None) -> list[int]:
        """Continue with the likeliest tokens, up to `stop_token`, which is the last if it comes.

        Raises: ValueError for a negative number
        """
        self._must_be_open(request)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}")
        decoded: list[int] = []
        while len(decoded) < max_new_tokens and (not decoded or decoded[-1] != stop_token):
            decoded.append(int(request.logits.argmax()))
            self._advance(request, np.array(decoded[-1:], np.int32))
        return decoded

    def finish(self, request: Request) -> None:
        """Keep the states of a served request, the last token's among them."""
        self._must_be_open(request)
        request.checkpoints[len(request.tokens)] = self.states.checkpoint(request.running)
        self.cache.release(request.hit)
        self.cache.insert(request.tokens, request, available=sorted(request.checkpoints))
        self._close(request)

    def abort(self, request: Request) -> None:
        """Give a request up: nothing of it is kept."""
        self._must_be_open(request)
        self.cache.release(request.hit)
        self._close(request)

    def generate(
        self, tokens: Sequence[int] | Tokens, max_new_tokens: int, *, stop_token: int | None = None
    ) -> tuple[list[int], Request]:
        """Prefill, decode the likeliest tokens, keep the states. Returns: the new tokens, and the request, finished."""
        with self.prefill(tokens) as request:
            decoded = self.decode(request, max_new_tokens, stop_token=stop_token)
        return decoded, request

    def cold(self, tokens: Sequence[int] | Tokens) -> tuple[float, Tensor]:
        """A prefill without the cache. Returns: seconds, and logits [vocabulary] after the last token."""
        checked = self._checked(tokens)
        began = self._now()
        logits = self.states.run(self.states.start(), self._to_model(checked) if self._to_model else checked)
        return self._now() - began, logits

    # the whole cache ---------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write the cache to one file of safetensors; a file that is there is replaced once the new one is whole."""
        persistence.save(self.cache, path, fingerprint(self.model))

    def load(self, path: str | Path) -> None:
        """Take over a saved cache: what it would have hit is hit.

        Raises: ValueError if the cache is not empty, or the file is truncated, altered, or of another model or
                capacity; the cache is empty then
        """
        persistence.load(self.cache, path, fingerprint(self.model))

    # inside ------------------------------------------------------------------------------------------------------
    def _prefilled(self, tokens: Tokens, hit: Hit, began: float) -> Request:
        running = self._restored(hit)
        request = Request(self, tokens[: hit.reused], running, hit, hit.reused, hit.from_host)
        request.restore_s = self._now() - began
        if self.after_first_token:
            self._run(request, tokens[hit.reused :])
        else:
            self._advance(request, tokens[hit.reused :])
        request.ttft_s = self._now() - began
        if self.after_first_token:
            request.running, request.tokens = self._restored(hit), tokens[: hit.reused]
            request.computed_tokens = 0
            self._advance(request, tokens[hit.reused :])
        request.prefill_s = self._now() - began
        return request

    def _advance(self, request: Request, new: Tokens) -> None:
        """Run tokens, stopping where the policy may name a checkpoint."""
        if len(new) == 0:
            return
        sequence = np.concatenate((request.tokens, new))
        # as if one more token followed that is not in the tree: the branch-off point may be right after these
        matched = int(self.cache.index.find(sequence).matched_tokens)
        stops = self.cache.index.checkpoint_depths(request.hit_tokens, matched, len(sequence) + 1)[:-1]
        request.checkpoints = {depth: request.checkpoints[depth] for depth in stops if depth in request.checkpoints}
        for stop in stops:
            self._run(request, sequence[len(request.tokens) : stop])
            if stop == len(request.tokens) and stop not in request.checkpoints:
                request.checkpoints[stop] = self.states.checkpoint(request.running)
        self._run(request, sequence[len(request.tokens) :])

    def _run(self, request: Request, new: Tokens) -> None:
        if len(new):
            self.states.run(request.running, self._to_model(new) if self._to_model else new)
            request.tokens = np.concatenate((request.tokens, new))
            request.computed_tokens += len(new)

    def _restored(self, hit: Hit) -> Running:
        if hit.tier is None:
            return self.states.start()
        entries = hit.path.entries
        checkpoint = entries[-1].checkpoint
        assert checkpoint is not None
        return self.states.restore([entry.kv for entry in entries], checkpoint, hit.reused)

    def _close(self, request: Request) -> None:
        request.checkpoints, request.open = {}, False

    def _must_be_open(self, request: Request) -> None:
        if not request.open:
            raise ValueError(f"a request must be in flight, got one of {len(request.tokens)} tokens that has ended")

    def _checked(self, tokens: Sequence[int] | Tokens) -> Tokens:
        checked = checked_tokens(tokens, "tokens")
        if len(checked) == 0:
            raise ValueError("tokens must hold at least one token, got none")
        vocabulary = self.states.config.vocab_size
        if self._to_model is None and checked.max() >= vocabulary:
            raise ValueError(f"a token must be below the model's vocabulary of {vocabulary}, got {checked.max()}")
        return checked

    def _now(self) -> float:
        if self.states.device.type == "cuda":
            torch.cuda.synchronize(self.states.device)
        return time.perf_counter()
