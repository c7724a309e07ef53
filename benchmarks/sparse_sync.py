"""Sparse synchronisation: ratios within one run against what people use today."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from artifact.sparse_sync import workloads
from artifact.sparse_sync.schemes import cost_model
from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.formats import Bitmap
from artifact.sparse_sync.tensors.grouping import group_indices
from artifact.sparse_sync.tensors.partitions import Hashed
from artifact.sparse_sync.tensors.sparse_tensor import sum_in_rank_order, union

REPEATS = 5


def seconds(function: Callable[[], object]) -> float:
    """Median wall time of one call, after a warm one."""
    function()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def partitioning() -> pd.DataFrame:
    """Ten million indices to 16 servers on one core; the baseline is numpy's hash and stable sort of the same parts."""
    size = 200_000_000
    index_N = np.unique(np.random.default_rng(0).integers(0, size, 10_000_000))
    parts_N = hashing.partition_of(torch.from_numpy(index_N), 16).numpy().astype(np.uint16)
    rows = [("numpy stable argsort (without its hash)", seconds(lambda: np.argsort(parts_N, kind="stable")))]
    rows += [
        (method, seconds(lambda method=method: group_indices(index_N, method, 16, size)))
        for method in ("counting", "bijection", "modulo", "contiguous", "hierarchical")
    ]
    table = pd.DataFrame(rows, columns=["method", "seconds"])
    return table.assign(
        million_elements_per_s=len(index_N) / 1e6 / table["seconds"],
        times_numpy=table["seconds"].iloc[0] / table["seconds"],
    ).drop(columns="seconds")


def summing() -> pd.DataFrame:
    """A server's rank-ordered sum of 8 workers' rows against concatenating them and torch's coalesce."""
    tensors = workloads.zipf_embedding(rows=100_000, width=64, tokens_per_worker=3000, num_workers=8, seed=0)
    units = [(each.index_N, each.value_ND) for each in tensors]

    def coalesce() -> torch.Tensor:
        index = torch.cat([index_N for index_N, _ in units])[None]
        value = torch.cat([value_ND for _, value_ND in units])
        return torch.sparse_coo_tensor(index, value, (100_000, 64), check_invariants=False).coalesce()

    ours, theirs = seconds(lambda: sum_in_rank_order(units, 100_000)), seconds(coalesce)
    return pd.DataFrame([{"sum of 8 workers": "times torch coalesce", "ratio": theirs / ours}])


def own_time() -> pd.DataFrame:
    """What a rank computes for Zen, over the communication it saves at 200 Mb/s with 8 workers."""
    rows = []
    for name, tensors in {
        "zipf rows": workloads.zipf_embedding(rows=100_000, width=64, tokens_per_worker=3000, num_workers=8, seed=0),
        "uniform elements": workloads.uniform(size=4_000_000, density=0.05, overlap=0.5, num_workers=8, seed=0),
    }.items():
        costs = cost_model.predict_bytes(cost_model.measure_statistics(tensors))
        saved = (costs["ring"] - costs["zen-row"]) * 8 / 200e6
        own = _zen_compute(tensors)
        rows.append({"gradient": name, "own_ms": 1e3 * own, "saved_ms": 1e3 * saved, "share_pct": 100 * own / saved})
    return pd.DataFrame(rows)


def _zen_compute(tensors: list) -> float:
    """One rank's share of the work: its own push, its server's sum, and decoding all servers' answers."""
    n, first = len(tensors), tensors[0]
    parts = Hashed(first.num_units, n, 0)
    contributions = []
    for tensor in tensors:
        here = parts.split(tensor.index_N)[0]
        contributions.append((parts.position(0, tensor.index_N[here]), tensor.value_ND[here]))
    bitmap = Bitmap(parts.part_size(0), first.width, torch.float32)
    union_N = union(tensors)
    share = union_N[parts.split(union_N)[0]]
    answer = bitmap.encode(parts.position(0, share), torch.ones(len(share), first.width))

    def push() -> None:
        for part, here in enumerate(parts.split(first.index_N)):
            parts.position(part, first.index_N[here])

    def serve() -> torch.Tensor:
        return bitmap.encode(*sum_in_rank_order(contributions, parts.part_size(0)))

    def pull() -> torch.Tensor:
        return parts.index(0, bitmap.decode(answer)[0])

    return seconds(push) + seconds(serve) + n * seconds(pull)


def main() -> None:
    torch.set_num_threads(1)
    for title, measured in {
        "Partition of ten million indices": partitioning,
        "Rank-ordered sum": summing,
        "Zen's own time": own_time,
    }.items():
        print(f"\n{title}\n{measured().round(2).to_string(index=False)}")


if __name__ == "__main__":
    main()
