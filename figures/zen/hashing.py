"""How evenly, fast and compactly indices are shared out (Zen, sections 3.2 to 3.4; figures 16 and 17a)."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import claims, style
from figures.style import BLUE, COLUMN_WIDTH_IN, CYCLE, RED, Picture
from figures.zen import closed_forms
from figures.zen.panels import lines


def serial_region(*, num_indices: int, hashes: list[int], slots_per_index: list[float], seed: int = 0) -> pd.DataFrame:
    """Share of the indices that Algorithm 1 puts in its serial region, measured and expected (Zen, section 3.3).

    `overflow` counts the indices that a serial region of r1/10, as published, has no room for; here it grows instead.
    One row per (hashes, slots_per_index).
    """
    from artifact.sparse_sync.tensors.hashing import hierarchical

    index_N = _random_indices(num_indices, 100 * num_indices, seed)
    rows = []
    for case in sweep.grid(hashes=hashes, slots_per_index=slots_per_index):
        k, slots = case["hashes"], case["slots_per_index"]
        start = time.perf_counter()
        found = hierarchical(index_N, 16, seed, num_hashes=k, slots_per_index=slots)
        seconds = time.perf_counter() - start
        rows.append(
            {
                **case,
                "serial_pct": 100 * found.serial / len(index_N),
                "expected_pct": 100 * closed_forms.expected_serial_share(k, slots),
                "overflow": max(0, round(found.serial - 0.1 * slots * len(index_N))),
                "lost": len(index_N) - len(found.order_N),
                "million_elements_per_s": len(index_N) / 1e6 / seconds,
            }
        )
    return pd.DataFrame(rows)


def strawman_loss(*, num_indices: int, slots_per_index: list[float], seed: int = 0) -> pd.DataFrame:
    """What Algorithm 3 loses against its memory, and the expectation (Zen, section 3.2). One row a memory size."""
    from artifact.sparse_sync.tensors.hashing import strawman

    index_N = _random_indices(num_indices, 100 * num_indices, seed)
    rows = []
    for slots in slots_per_index:
        lost = strawman(index_N, 16, seed, slots_per_index=slots).lost
        expected = 100 * closed_forms.expected_strawman_loss(slots)
        rows.append({"slots_per_index": slots, "lost_pct": 100 * lost / len(index_N), "expected_pct": expected})
    return pd.DataFrame(rows)


def hashing_methods(
    *, num_indices: int, num_partitions: int, repeats: int, methods: list[str], seed: int = 0
) -> pd.DataFrame:
    """The same partition by every method on one core: speed, imbalance, and what is lost. One row per method."""
    size = 20 * num_indices
    index_N = _random_indices(num_indices, size, seed)
    rows = []
    for method in methods:
        sparse_sync.group_indices(index_N[:1000], method, num_partitions, size, seed=seed)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            found = sparse_sync.group_indices(index_N, method, num_partitions, size, seed=seed)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "method": method,
                "indices": len(index_N),
                "million_elements_per_s": len(index_N) / 1e6 / float(np.median(seconds)),
                "imbalance": sparse_sync.imbalance(found.count_P),
                "lost_pct": 100 * found.lost / len(index_N),
                "table_bytes_per_element": 4.0 if method in ("hierarchical", "counting", "strawman") else 0.0,
            }
        )
    return pd.DataFrame(rows)


def partition_imbalance(
    *, num_indices: list[int], partitions: list[int], strides: list[int], methods: list[str], seeds: list[int]
) -> pd.DataFrame:
    """Push imbalance of each partition against theorem 2's bound, on random and strided supports.

    stride 0 is a random support. One row per (method, indices, partitions, stride): the worst over the seeds.
    """

    def found(seed: int, *, method: str, indices: int, stride: int, partitions: int) -> float:
        size = indices * (stride or 50)
        strided_N = np.arange(indices, dtype=np.int64) * stride
        index_N = strided_N if stride else _random_indices(indices, size, seed)
        return sparse_sync.imbalance(sparse_sync.group_indices(index_N, method, partitions, size, seed=seed).count_P)

    rows = []
    for case in sweep.grid(indices=num_indices, stride=strides, partitions=partitions, method=methods):
        bound = 1 + 1.5 * (closed_forms.imbalance_bound(case["indices"], case["partitions"]) - 1)
        rows.append({**case, "imbalance": max(found(seed, **case) for seed in seeds), "bound": bound})
    return pd.DataFrame(rows)


def format_sizes(*, size: int, densities: list[float], num_servers: int, seed: int = 0) -> pd.DataFrame:
    """Bytes that a worker receives in Pull over the dense tensor's, by format (Zen, figure 17a).

    Bitmap: a plain one over the whole tensor from every server. Hash bitmap: one over the indices of its server.
    One row per (density, system).
    """
    import torch

    from artifact.sparse_sync import Bitmap, Blocks, Coo, Dense
    from artifact.sparse_sync.tensors.partitions import Hashed

    hashed, rng = Hashed(size, num_servers, seed), np.random.default_rng(seed)
    parts = [hashed.part_size(part) for part in range(num_servers)]
    plain, dense = Bitmap(size, 1, torch.float32), Dense(size, 1, torch.float32).num_bytes(0)
    rows = []
    for density in densities:
        index_N = torch.from_numpy(np.sort(rng.choice(size, max(1, round(density * size)), replace=False)))
        counts = [int(count) for count in hashed.count(index_N)]
        sizes = {
            "COO": Coo(size, 1, torch.float32).num_bytes(len(index_N)),
            "Bitmap": sum(plain.num_bytes(count) for count in counts),
            "Tensor block": Blocks(size, 1, torch.float32).num_bytes(torch.unique_consecutive(index_N // 256).numel()),
            "Hash bitmap": sum(
                Bitmap(part, 1, torch.float32).num_bytes(count) for part, count in zip(parts, counts, strict=True)
            ),
        }
        rows += [
            {"density": density, "system": name, "bytes": value, "over_dense": value / dense}
            for name, value in sizes.items()
        ]
    return pd.DataFrame(rows)


def bitmap_index_bytes(*, sizes: list[int], servers: list[int], seed: int = 0) -> pd.DataFrame:
    """All servers' hash bitmaps together against |G| / 8. One row per (elements, servers)."""
    from artifact.sparse_sync.tensors.partitions import Hashed

    rows = []
    for case in sweep.grid(elements=sizes, servers=servers):
        parts = Hashed(case["elements"], case["servers"], seed)
        total = sum(-(-parts.part_size(part) // 8) for part in range(case["servers"]))
        rows.append({**case, "bytes": total, "excess_bytes": total - case["elements"] / 8})
    return pd.DataFrame(rows)


def _random_indices(count: int, size: int, seed: int) -> np.ndarray:
    """`count` or a few fewer distinct indices in [0, size), sorted."""
    return np.unique(np.random.default_rng(seed).integers(0, size, count))


def plot_serial(table: pd.DataFrame) -> Figure:
    """Share of Algorithm 1's serial region against hashes and memory, with the expectation (Zen, figure 16)."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.6)
    rows = table.assign(slots=[f"$r_1$ = {slots:g} |I|" for slots in table["slots_per_index"]])
    shared = {"x": "hashes", "hue": "slots", "palette": CYCLE[: rows["slots"].nunique()], "ax": ax}
    sns.lineplot(rows, y="expected_pct", **shared, linewidth=0.8, legend=False)
    sns.scatterplot(rows, y="serial_pct", **shared, s=16)
    for slots, color in zip(table["slots_per_index"].unique(), CYCLE, strict=False):
        ax.axhline(10 * float(slots), color=color, linestyle="--", linewidth=1)
    ax.set(title="Random indices", xlabel="Second-level hashes k", xticks=sorted(table["hashes"].unique()))
    ax.set(ylabel="Serial region (% of indices)\ndashed: the room as published", ylim=(0, 45))
    ax.get_legend().remove()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def plot_strawman(table: pd.DataFrame) -> Figure:
    """What the strawman loses against its memory (Zen, section 3.2)."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.3)
    shared = {"x": "slots_per_index", "color": RED, "ax": ax}
    sns.scatterplot(table, y="lost_pct", **shared, s=16, label="measured")
    sns.lineplot(table, y="expected_pct", **shared, linewidth=0.8, label="1 - (1 - exp(-a)) / a")
    style.paper_mark(ax, x=10, y=claims.paper("zen-strawman"), label="paper")
    ax.set(title="Random indices", xlabel="Slots per index", ylabel="Gradients lost (%)", xscale="log")
    ax.legend()
    return figure


def plot_methods(table: pd.DataFrame) -> Figure:
    """Speed of every way to partition, on one core."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.0)
    sns.barplot(table, x="million_elements_per_s", y="method", color=BLUE, saturation=1, ax=ax)
    ax.set(title="Random indices", xlabel="Million elements a second, one core", ylabel="")
    return figure


def plot_imbalance(table: pd.DataFrame) -> Figure:
    """Worst push imbalance of each partition: random and strided supports, against theorem 2's bound."""
    most = table[table["indices"] == table["indices"].max()]
    bound = most.drop_duplicates(["stride", "partitions"]).assign(
        method="theorem 2's bound", imbalance=lambda rows: rows["bound"]
    )
    rows = pd.concat([most, bound], ignore_index=True)
    rows["excess"] = rows["imbalance"] - 1
    grid = lines(rows, "partitions", "excess", hue="method", dashes=True, col="stride", height_in=2.5)
    titles = {0: "random indices", 1: "consecutive indices"}
    for stride, ax in grid.axes_dict.items():
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_ylim(-1e-4, 2 * rows["excess"].max())
        ax.set(title=titles.get(stride, f"every {stride}th index"), xlabel="Partitions")
    grid.set_ylabels("Push imbalance - 1")
    return grid.figure


def plot_formats(table: pd.DataFrame) -> Figure:
    """Size over the dense tensor's against density (Zen, figure 17a)."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    rows = table.assign(density_pct=100 * table["density"])
    colors = CYCLE[: rows["system"].nunique()]
    sns.lineplot(rows, x="density_pct", y="over_dense", hue="system", palette=colors, marker="o", mew=0, ax=ax)
    ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1, label="dense")
    ax.set(title="Random supports", xlabel="Density (%)", ylabel="Bytes over dense", xscale="log", ylim=(0, 2))
    ax.legend()
    return figure


def within_bound_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which a hash or the bijection keeps theorem 2's bound (with constant 1.5 sqrt 2)."""
    rows = table[table["method"].isin(["counting", "bijection"])]
    return float(100 * (rows["imbalance"] <= rows["bound"]).mean())


FIGURES = {
    "zen-fig16": Picture(
        "33_serial",
        plot_serial,
        "Indices in Algorithm 1's serial region (Zen, figure 16): dots measured, lines expected, dashed the room that "
        "the paper gives it, a tenth of the parallel slots. Random indices.",
    ),
    "zen-strawman": Picture(
        "33_strawman", plot_strawman, "Gradients that the strawman loses (Zen, section 3.2). Random indices."
    ),
    "zen-partition-speed": Picture("33_methods", plot_methods, "Speed of every partition of random indices, one core."),
    "zen-imbalance": Picture(
        "33_imbalance",
        plot_imbalance,
        "Push imbalance over 1, the worst of the seeds, and theorem 2's bound (constant 1.5 √2), on the most indices.",
    ),
    "zen-fig17": Picture(
        "34_formats", plot_formats, "Bytes received in Pull over the dense tensor's (Zen, figure 17a). Random supports."
    ),
}
