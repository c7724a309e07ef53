"""How evenly, how fast and how compactly indices are shared out (Zen, sections 3.2 to 3.4 and 5.4)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.formats import Bitmap, Blocks, Coo, Dense
from artifact.sparse_sync.tensors.grouping import group_indices
from artifact.sparse_sync.tensors.partitions import Hashed
from figures.zen import closed_forms


def serial_region(
    *, num_indices: int, hashes: Sequence[int], slots_per_index: Sequence[float], seed: int = 0
) -> pd.DataFrame:
    """Share of the indices that Algorithm 1 puts in its serial region, measured and expected (Zen, section 3.3).

    `overflow` counts the indices that a serial region of r1/10, as published, has no room for; here it grows instead.
    One row per (hashes, slots_per_index).
    """
    index_N = _random_indices(num_indices, 100 * num_indices, seed)
    rows = []
    for k in hashes:
        for slots in slots_per_index:
            start = time.perf_counter()
            found = hashing.hierarchical(index_N, 16, seed, num_hashes=k, slots_per_index=slots)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "hashes": k,
                    "slots_per_index": slots,
                    "serial_pct": 100 * found.serial / len(index_N),
                    "expected_pct": 100 * closed_forms.expected_serial_share(k, slots),
                    "overflow": max(0, round(found.serial - 0.1 * slots * len(index_N))),
                    "lost": len(index_N) - len(found.order_N),
                    "million_elements_per_s": len(index_N) / 1e6 / seconds,
                }
            )
    return pd.DataFrame(rows)


def hashing_methods(
    *, num_indices: int, num_partitions: int, repeats: int, methods: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """The same partition by every method on one core: speed, imbalance, and what is lost. One row per method."""
    size = 20 * num_indices
    index_N = _random_indices(num_indices, size, seed)
    rows = []
    for method in methods:
        group_indices(index_N[:1000], method, num_partitions, size, seed=seed)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            found = group_indices(index_N, method, num_partitions, size, seed=seed)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "method": method,
                "indices": len(index_N),
                "million_elements_per_s": len(index_N) / 1e6 / float(np.median(seconds)),
                "imbalance": hashing.imbalance(found.count_P),
                "lost_pct": 100 * found.lost / len(index_N),
                "table_bytes_per_element": 4.0 if method in ("hierarchical", "counting", "strawman") else 0.0,
            }
        )
    return pd.DataFrame(rows)


def strawman_loss(*, num_indices: int, slots_per_index: Sequence[float], seed: int = 0) -> pd.DataFrame:
    """What Algorithm 3 loses against its memory, and the expectation (Zen, section 3.2). One row a memory size."""
    index_N = _random_indices(num_indices, 100 * num_indices, seed)
    rows = []
    for slots in slots_per_index:
        found = hashing.strawman(index_N, 16, seed, slots_per_index=slots)
        expected = 100 * closed_forms.expected_strawman_loss(slots)
        rows.append({"slots_per_index": slots, "lost_pct": 100 * found.lost / len(index_N), "expected_pct": expected})
    return pd.DataFrame(rows)


def imbalance(
    *, num_indices: Sequence[int], partitions: Sequence[int], strides: Sequence[int], seeds: Sequence[int]
) -> pd.DataFrame:
    """Push imbalance of each partition against theorem 2's bound, on random and strided supports.

    stride 0 is a random support. One row per (method, indices, partitions, stride): the worst over the seeds.
    """
    rows = []
    for count in num_indices:
        for stride in strides:
            for n in partitions:
                for method in ("counting", "bijection", "modulo", "contiguous"):
                    worst = 0.0
                    for seed in seeds:
                        size = 50 * count if stride == 0 else count * stride
                        index_N = (
                            _random_indices(count, size, seed)
                            if stride == 0
                            else np.arange(count, dtype=np.int64) * stride
                        )
                        found = group_indices(index_N, method, n, size, seed=seed)
                        worst = max(worst, hashing.imbalance(found.count_P))
                    bound = 1 + 1.5 * (closed_forms.imbalance_bound(count, n) - 1)
                    rows.append(
                        {
                            "method": method,
                            "indices": count,
                            "stride": stride,
                            "partitions": n,
                            "imbalance": worst,
                            "bound": bound,
                        }
                    )
    return pd.DataFrame(rows)


def format_sizes(*, size: int, densities: Sequence[float], num_servers: int, seed: int = 0) -> pd.DataFrame:
    """Bytes that a worker receives in Pull over the dense tensor's, by format (Zen, figure 17a).

    bitmap is a plain one over the whole tensor from every server, hash bitmap one over each server's own indices.
    One row per (density, system).
    """
    hashed = Hashed(size, num_servers, seed)
    rng = np.random.default_rng(seed)
    dense = Dense(size, 1, torch.float32).num_bytes(0)
    rows = []
    for density in densities:
        index_N = torch.from_numpy(np.sort(rng.choice(size, max(1, round(density * size)), replace=False)))
        counts = hashed.count(index_N)
        blocks = torch.unique_consecutive(index_N // 256).numel()
        sizes = {
            "COO": Coo(size, 1, torch.float32).num_bytes(len(index_N)),
            "Bitmap": sum(Bitmap(size, 1, torch.float32).num_bytes(int(count)) for count in counts),
            "Tensor block": Blocks(size, 1, torch.float32).num_bytes(blocks),
            "Hash bitmap": sum(
                Bitmap(hashed.part_size(part), 1, torch.float32).num_bytes(int(count))
                for part, count in enumerate(counts)
            ),
        }
        rows += [
            {"density": density, "system": name, "bytes": value, "over_dense": value / dense}
            for name, value in sizes.items()
        ]
    return pd.DataFrame(rows)


def bitmap_index_bytes(*, sizes: Sequence[int], servers: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """All servers' hash bitmaps together against |G| / 8. One row per (size, servers)."""
    rows = []
    for size in sizes:
        for n in servers:
            parts = Hashed(size, n, seed)
            total = sum(-(-parts.part_size(part) // 8) for part in range(n))
            rows.append({"elements": size, "servers": n, "bytes": total, "excess_bytes": total - size / 8})
    return pd.DataFrame(rows)


def _random_indices(count: int, size: int, seed: int) -> np.ndarray:
    """`count` or a few fewer distinct indices in [0, size), sorted."""
    return np.unique(np.random.default_rng(seed).integers(0, size, count))
