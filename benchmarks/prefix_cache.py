"""Speed and memory of the prefix cache, as ratios within one run. `make bench`, or this file with --quick.

1. Replay of the ShareGPT trace at 3 GB, against the plain transcription of the published simulator.
2. The 36 configurations with tuning.
3. Cost of a request against the number of nodes, with an eviction for nearly every request.
4. Memory of the index for each cached token.
5. The chunked scan of a Mamba-2 layer against its recurrence, one token at a time.
6. A prefill resumed from cached states against a cold one, by length of the prefix.
7. Simulating a second tier, which follows every change of the index, against one tier.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "prefix_cache"))

from reference import Tree
from reference_ssd import ssd, ssd_step

from artifact import sweep
from artifact.prefix_cache import RequestTrace
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru
from artifact.prefix_cache.index.fidelity import CORRECTED, PUBLISHED
from artifact.prefix_cache.serving.model_states import implementation
from artifact.prefix_cache.simulation import GB, MARCONI, SGLANG, VLLM, operations, replay
from artifact.prefix_cache.spec import MARCONI_7B
from artifact.prefix_cache.workloads.generators import VOCABULARY
from figures.marconi import real_states, replays

REPEATS = 5


def scaling(num_requests: int, *, shared_tokens: int = 16, own_tokens: int = 16, seed: int = 0) -> RequestTrace:
    """Many short requests over a growing number of shared prefixes, for measuring the cost of a request.

    Request i takes the prefix of a random group of about sqrt(num_requests) and then new tokens, so that the
    tree grows in proportion to the requests while each walks a path of constant length.
    """
    rng = np.random.default_rng(seed)
    groups = max(1, int(num_requests**0.5))
    prefixes = rng.integers(VOCABULARY, size=(groups, shared_tokens), dtype=np.int32)
    width = shared_tokens + own_tokens
    rows = np.empty((num_requests, width), np.int32)
    rows[:, :shared_tokens] = prefixes[rng.integers(groups, size=num_requests)]
    rows[:, shared_tokens:] = rng.integers(VOCABULARY, size=(num_requests, own_tokens), dtype=np.int32)
    numbers, ones = np.arange(num_requests, dtype=np.int64), np.ones(num_requests, np.int64)
    lengths, arrival_s = (ones * (width - 4), ones * 4), numbers.astype(np.float64)
    return RequestTrace("synthetic-scaling", rows.ravel(), numbers * width, *lengths, numbers, 0 * ones, arrival_s)


def seconds_to_run(trace, eviction, capacity_bytes, fidelity) -> tuple[float, PrefixCache]:
    """Least wall time of a few replays, and the last cache."""
    work, times = operations(trace), []
    for _ in range(REPEATS):
        cache = PrefixCache(MARCONI_7B, capacity_bytes=capacity_bytes, eviction=eviction, fidelity=fidelity)
        began = time.perf_counter()
        cache.run(work)
        times.append(time.perf_counter() - began)
    return min(times), cache


def replay_speed() -> pd.DataFrame:
    """Requests per second on ShareGPT at 3 GB, and over the plain transcription."""
    trace = replays.trace_of("sharegpt")
    requests = [(trace.input(i).tolist(), trace.output(i).tolist()) for i in range(len(trace))]
    rows = []
    for eviction, alpha in ((Lru(), None), (FlopAware(0.1), 0.1), (FlopAware(1.0), 1.0)):
        oracle = Tree(3 * GB, alpha=alpha)
        began = time.perf_counter()
        for inp, out in requests:
            oracle.request(inp, out)
        plain = time.perf_counter() - began
        for name, fidelity in (("published", PUBLISHED), ("corrected", CORRECTED)):
            best, _ = seconds_to_run(trace, eviction, 3 * GB, fidelity)
            rows.append((str(eviction), name, len(trace) / best, plain / best))
    return pd.DataFrame(rows, columns=["eviction", "fidelity", "requests_per_s", "times_plain_python"])


def sweep_time() -> float:
    """Seconds for the 36 configurations, three systems, with tuning."""
    grid = sweep.grid(
        source=["sharegpt"],
        sessions_per_s=[0.25, 0.5, 1, 2, 5, 10],
        capacity_gb=[1, 2, 3, 4, 5, 10],
        systems=[[VLLM, SGLANG, MARCONI]],
    )
    began = time.perf_counter()
    replays.compare_all(grid)
    return time.perf_counter() - began


def growth(sizes: list[int]) -> pd.DataFrame:
    """Microseconds a request while the cache holds about `nodes` nodes and evicts for nearly every request."""
    rows = []
    for size in sizes:
        trace = scaling(size)
        for eviction in (Lru(), FlopAware(0.5)):
            capacity = (size // 2) * (MARCONI_7B.checkpoint_bytes + 16 * MARCONI_7B.kv_bytes_per_token)
            best, cache = seconds_to_run(trace, eviction, capacity, CORRECTED)
            rows.append((str(eviction), size, cache.num_checkpoints, 1e6 * best / size))
    table = pd.DataFrame(rows, columns=["eviction", "requests", "nodes", "us_per_request"])
    first = table.groupby("eviction")[["us_per_request", "nodes"]].transform("first")
    table["times_first"] = table["us_per_request"] / first["us_per_request"]
    table["log_of_nodes_times_first"] = np.log2(table["nodes"]) / np.log2(first["nodes"])
    return table


def memory() -> pd.DataFrame:
    """Bytes of the index for each token whose KV is cached."""
    rows = []
    for source, capacity_gb in (("sharegpt", 3), ("sharegpt", 10), ("swe-agent", 60)):
        trace = replays.trace_of(source)
        _, cache = seconds_to_run(trace, FlopAware(0.1), capacity_gb * GB, CORRECTED)
        rows.append((trace.name, capacity_gb, cache.cached_tokens, cache.index_bytes / cache.cached_tokens))
    return pd.DataFrame(rows, columns=["trace", "capacity_gb", "cached_tokens", "index_bytes_per_token"])


def scan_speed(length: int = 2048) -> pd.DataFrame:
    """A layer's scan (24 heads of 64, state of 128) by size of chunk, over `length` steps of its recurrence."""
    device = "cuda" if implementation().name == "mamba-ssm" else "cpu"
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, length, 24, 64), (1, length, 1, 128), (1, length, 1, 128))
    x, B, C = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    dt = 0.1 * torch.rand(1, length, 24, generator=generator).to(device)
    A = -1 - 15 * torch.rand(24, generator=generator).to(device)

    def steps() -> None:
        state = torch.zeros(1, 24, 64, 128, device=device)
        for t in range(length):
            _, state = ssd_step(state, x[:, t], dt[:, t], A, B[:, t], C[:, t])

    def seconds(function) -> float:
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    recurrence = seconds(steps)
    rows = []
    for chunk_size in (32, 64, 128, 256):
        scan = seconds(lambda chunk_size=chunk_size: ssd(x, dt, A, B, C, chunk_size=chunk_size))
        rows.append((implementation(device).name, length, chunk_size, length / scan, recurrence / scan))
    columns = ["implementation", "tokens", "chunk_size", "tokens_per_s", "times_recurrence"]
    return pd.DataFrame(rows, columns=columns)


def resumed_prefill(quick: bool) -> pd.DataFrame:
    """Cold over resumed prefill with 128 new tokens, and the share of lookup and restore; medians."""
    rows = []
    for prefix_tokens in (128, 512, 2048):
        table = real_states.resume(
            models=["granite-small"], prefix_tokens=prefix_tokens, suffix_tokens=128, repeats=2 if quick else REPEATS
        )
        times, restore = table["cold_ms"] / table["resumed_ms"], table["restore_ms"] / table["resumed_ms"]
        rows.append((prefix_tokens, table["cold_ms"].median(), times.median(), 100 * restore.median()))
    return pd.DataFrame(rows, columns=["prefix_tokens", "cold_ms", "times_cold", "restore_pct"])


def second_tier() -> pd.DataFrame:
    """Requests per second simulated on ShareGPT at 3 GB, with a second tier of 10 GB and without one."""
    trace = replays.trace_of("sharegpt")
    rows = []
    for system in (SGLANG, MARCONI):
        options = {"system": system, "capacity_bytes": 3 * GB, "alpha": 0.1 if system == MARCONI else None}
        one = min(replay(trace, MARCONI_7B, **options).seconds for _ in range(REPEATS))
        two = min(replay(trace, MARCONI_7B, host_capacity_bytes=10 * GB, **options).seconds for _ in range(REPEATS))
        rows.append((system, len(trace) / one, len(trace) / two, one / two))
    return pd.DataFrame(rows, columns=["system", "one_tier_per_s", "two_tiers_per_s", "times_one_tier"])


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    for eviction in (Lru(), FlopAware(1.0)):  # compile, or load what was compiled before
        seconds_to_run(scaling(100), eviction, GB, PUBLISHED)
        seconds_to_run(scaling(100), eviction, GB, CORRECTED)
    for title, table in (
        ("Replay of ShareGPT at 3 GB", replay_speed()),
        ("Cost of a request against the size of the tree", growth([10**3, 10**4, 10**5] + [10**6] * (not quick))),
        ("Memory of the index", memory()),
        ("Chunked scan against the recurrence", scan_speed()),
        ("Resumed prefill against a cold one", resumed_prefill(quick)),
        ("Two tiers against one, simulated", second_tier()),
    ):
        print(f"\n{title}\n{table.round(2).to_string(index=False)}")
    print(f"\n36 configurations with tuning, three systems: {sweep_time():.1f} s")
