"""How many tokens go to each expert: recorded loads of real models, and generated ones.

Shape legend: I = recorded iterations, L = layers, E = experts, T = tokens, K = experts of a token
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from artifact import datasets

ESFT_TASKS = ("intent", "law", "summary", "translation")


@dataclass(frozen=True)
class LoadTrace:
    """Tokens per expert and layer of one model, for iterations of its training or batches of a corpus.

    counts_ILE: [I, L, E], int64
    Raises:     ValueError if counts are not [iterations, layers, experts] or negative
    """

    name: str  # prefixed "synthetic-" if a generator replaced data that were not available
    counts_ILE: NDArray[np.int64]
    iterations: tuple[int, ...]  # number of each recorded iteration, ascending

    def __post_init__(self) -> None:
        if self.counts_ILE.ndim != 3 or len(self.counts_ILE) != len(self.iterations):
            rule = f"[{len(self.iterations)} iterations, layers, experts]"
            raise ValueError(f"counts_ILE must be {rule}, got shape {self.counts_ILE.shape}")
        if self.counts_ILE.size and self.counts_ILE.min() < 0:
            raise ValueError(f"counts_ILE must not be negative, got {self.counts_ILE.min()}")

    def at(self, iteration: int) -> NDArray[np.int64]:
        """[L, E], the latest record at or before an iteration. Raises: ValueError before the first record"""
        index = int(np.searchsorted(self.iterations, iteration, side="right")) - 1
        if index < 0:
            raise ValueError(f"iteration must be at least {self.iterations[0]}, got {iteration}")
        return self.counts_ILE[index]


def smartmoe_loads() -> LoadTrace:
    """Training of a GPT-MoE, top-2 of 32 experts in 24 layers, each tenth of 5,001 iterations; Lazarus names it."""
    file = datasets.path_or_none("smartmoe")
    if file is None:
        made = drifting_loads(24, 32, 501, skew=1.2, drift=0.1, seed=0)
        return LoadTrace("synthetic-smartmoe", made.counts_ILE, tuple(range(1, 5002, 10)))
    with np.load(file) as data:
        return LoadTrace("smartmoe", data["counts"].astype(np.int64), tuple(data["iters"].tolist()))


def esft_loads(task: str | None = None, *, tokens_per_iteration: int = 1024) -> LoadTrace:
    """DeepSeek-V2-Lite, top-6 of 64 experts in 26 layers, on one task or on all four in turn: a real shift of load.

    An iteration is `tokens_per_iteration` consecutive tokens of a task, 8 per task by default; the rest is left out.
    Raises: ValueError if the task is unknown or has fewer tokens than an iteration, or these are < 1
    """
    if task is not None and task not in ESFT_TASKS:
        raise ValueError(f"task must be one of {', '.join(ESFT_TASKS)}, got {task!r}")
    if tokens_per_iteration < 1:
        raise ValueError(f"tokens_per_iteration must be at least 1, got {tokens_per_iteration}")
    tasks, name = (ESFT_TASKS, "esft") if task is None else ((task,), f"esft-{task}")
    file = datasets.path_or_none("esft")
    if file is None:
        made = drifting_loads(
            26, 64, 8 * len(tasks), skew=0.6, drift=0.2, seed=len(tasks), tokens=6 * tokens_per_iteration
        )
        return LoadTrace(f"synthetic-{name}", made.counts_ILE, made.iterations)
    with np.load(file) as data:
        chosen = {name: data[f"{name}_ids"] for name in tasks}
    counts = []
    for part, ids_LTK in chosen.items():
        tokens = ids_LTK.shape[1]
        if tokens < tokens_per_iteration:
            raise ValueError(f"tokens_per_iteration must be at most {tokens} for {part}, got {tokens_per_iteration}")
        for start in range(0, tokens - tokens_per_iteration + 1, tokens_per_iteration):
            counts.append(_counts(ids_LTK[:, start : start + tokens_per_iteration], 64))
    return LoadTrace(name, np.stack(counts), tuple(range(len(counts))))


def olmoe_loads(model: str = "olmoe") -> LoadTrace:
    """Tokens per expert in three layers of a released model, an iteration for each corpus in order of its name.

    model: olmoe (64 experts, top-8), olmoe-sft, olmoe-dpo or mistral (8 experts, top-2)
    Raises: ValueError if the model is unknown
    """
    known = ("olmoe", "olmoe-sft", "olmoe-dpo", "mistral")
    if model not in known:
        raise ValueError(f"model must be one of {', '.join(known)}, got {model!r}")
    file = datasets.path_or_none("olmoe")
    if file is None:
        made = drifting_loads(3, 8 if model == "mistral" else 64, 6, skew=0.6, drift=0.5, seed=0)
        return LoadTrace(f"synthetic-{model}", made.counts_ILE, made.iterations)
    with np.load(file) as data:
        counts = [data[key].astype(np.int64) for key in sorted(data.files) if key.partition("__")[0] == model]
    return LoadTrace(model, np.stack(counts), tuple(range(len(counts))))


def drifting_loads(
    num_layers: int,
    num_experts: int,
    num_iterations: int,
    *,
    skew: float,
    drift: float,
    seed: int,
    tokens: int = 262_144,
) -> LoadTrace:
    """Loads by Zipf's law whose hot experts change: the k-th hottest expert has a share proportional to k**-skew.

    The experts are ranked by a normal popularity, an autoregressive process with coefficient sqrt(1 - drift**2): drift
    0 keeps their order, drift 1 draws another one for each iteration. The `tokens` of a layer and iteration are drawn
    by these shares.

    Raises: ValueError if a count is < 1, skew is negative or drift not in [0, 1]
    """
    sizes = {"num_layers": num_layers, "num_experts": num_experts, "num_iterations": num_iterations, "tokens": tokens}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if skew < 0:
        raise ValueError(f"skew must not be negative, got {skew}")
    if not 0 <= drift <= 1:
        raise ValueError(f"drift must be in [0, 1], got {drift}")
    rng = np.random.default_rng(seed)
    popularity_ILE = rng.standard_normal((num_iterations, num_layers, num_experts))
    for before_LE, now_LE in pairwise(popularity_ILE):
        now_LE *= drift
        now_LE += np.sqrt(1 - drift**2) * before_LE
    rank_ILE = (-popularity_ILE).argsort(axis=2).argsort(axis=2)
    share_E = np.arange(1, num_experts + 1) ** -float(skew)
    counts_ILE = rng.multinomial(tokens, (share_E / share_E.sum())[rank_ILE])
    return LoadTrace("drifting", counts_ILE.astype(np.int64), tuple(range(num_iterations)))


def top_experts(trace: LoadTrace, num_layers: int, num_experts: int, *, iteration: int | None = None) -> LoadTrace:
    """The loads of the hottest experts in each of the first layers: how Lazarus replays 32 experts on 8, 12 or 16.

    The paper says only "the loads of the top experts at each layer". Here the experts are ranked once, by their total
    over the trace or by their loads at `iteration`, so that they are the same in all iterations. They keep their order.

    Raises: ValueError if the trace has fewer layers or experts, either is < 1, or the iteration is before the trace
    """
    _, layers, experts = trace.counts_ILE.shape
    for name, value, most in (("num_layers", num_layers, layers), ("num_experts", num_experts, experts)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be in [1, {most}] for {trace.name}, got {value}")
    counts_ILE = trace.counts_ILE[:, :num_layers]
    heat_LE = counts_ILE.sum(axis=0) if iteration is None else trace.at(iteration)[:num_layers]
    kept_LE = np.sort((-heat_LE).argsort(axis=1, kind="stable")[:, :num_experts], axis=1)
    return LoadTrace(trace.name, np.take_along_axis(counts_ILE, kept_LE[None], axis=2), trace.iterations)


LOAD_TRACES = {"smartmoe": smartmoe_loads, "esft": esft_loads, "olmoe": olmoe_loads}
"""Recorded loads of real models by name."""


def _counts(ids_LTK: NDArray, num_experts: int) -> NDArray[np.int64]:
    """[L, E], how often each expert is chosen in each layer."""
    offset_L11 = num_experts * np.arange(len(ids_LTK))[:, None, None]
    return np.bincount((ids_LTK + offset_L11).ravel(), minlength=num_experts * len(ids_LTK)).reshape(-1, num_experts)
