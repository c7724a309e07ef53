"""How evenly, fast and compactly indices are shared out (Zen, sections 3.2 to 3.4; figures 16 and 17a)."""

from __future__ import annotations

import time
import timeit
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync
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

    index_N, rows = _random_indices(num_indices, 100 * num_indices, seed), []
    for k, slots in product(hashes, slots_per_index):
        start = time.perf_counter()
        found = hierarchical(index_N, 16, seed, num_hashes=k, slots_per_index=slots)
        speed = len(index_N) / 1e6 / (time.perf_counter() - start)
        serial_pct, expected = 100 * found.serial / len(index_N), 100 * closed_forms.expected_serial_share(k, slots)
        overflow = max(0, round(found.serial - 0.1 * slots * len(index_N)))
        rows.append((k, slots, serial_pct, expected, overflow, len(index_N) - len(found.order_N), speed))
    measured = ["serial_pct", "expected_pct", "overflow", "lost", "million_elements_per_s"]
    return pd.DataFrame(rows, columns=["hashes", "slots_per_index", *measured])


def strawman_loss(*, num_indices: int, slots_per_index: list[float], seed: int = 0) -> pd.DataFrame:
    """What Algorithm 3 loses against its memory, and the expectation (Zen, section 3.2). One row a memory size."""
    from artifact.sparse_sync.tensors.hashing import strawman

    index_N = _random_indices(num_indices, 100 * num_indices, seed)
    lost = [strawman(index_N, 16, seed, slots_per_index=slots).lost for slots in slots_per_index]
    expected = [100 * closed_forms.expected_strawman_loss(slots) for slots in slots_per_index]
    lost_pct = 100 * np.array(lost) / len(index_N)
    return pd.DataFrame({"slots_per_index": slots_per_index, "lost_pct": lost_pct, "expected_pct": expected})


def hashing_methods(
    *, num_indices: int, num_partitions: int, repeats: int, methods: list[str], seed: int = 0
) -> pd.DataFrame:
    """The same partition by every method on one core: speed, imbalance, and what is lost. One row per method."""
    size = 20 * num_indices
    index_N, rows = _random_indices(num_indices, size, seed), []
    for method in methods:
        group = partial(sparse_sync.group_indices, index_N, method, num_partitions, size, seed=seed)
        found = group()  # compiled here, not in the measurement
        speed = len(index_N) / 1e6 / float(np.median(timeit.repeat(group, number=1, repeat=repeats)))
        table_bytes = 4.0 if method in ("hierarchical", "counting", "strawman") else 0.0
        lost_pct = 100 * found.lost / len(index_N)
        rows.append((method, len(index_N), speed, sparse_sync.imbalance(found.count_P), lost_pct, table_bytes))
    measured = ["million_elements_per_s", "imbalance", "lost_pct", "table_bytes_per_element"]
    return pd.DataFrame(rows, columns=["method", "indices", *measured])


def partition_imbalance(
    *, num_indices: list[int], partitions: list[int], strides: list[int], methods: list[str], seeds: list[int]
) -> pd.DataFrame:
    """Push imbalance of each partition against theorem 2's bound, on random and strided supports.

    stride 0 is a random support. One row per (method, indices, partitions, stride): the worst over the seeds.
    """
    rows = []
    for n, stride, parts, method in product(num_indices, strides, partitions, methods):
        size, found = n * (stride or 50), []
        for seed in seeds:
            index_N = np.arange(n, dtype=np.int64) * stride if stride else _random_indices(n, size, seed)
            count_P = sparse_sync.group_indices(index_N, method, parts, size, seed=seed).count_P
            found.append(sparse_sync.imbalance(count_P))
        bound = 1 + 1.5 * (closed_forms.imbalance_bound(n, parts) - 1)
        rows.append((n, stride, parts, method, max(found), bound))
    return pd.DataFrame(rows, columns=["indices", "stride", "partitions", "method", "imbalance", "bound"])


def format_sizes(*, size: int, densities: list[float], num_servers: int, seed: int = 0) -> pd.DataFrame:
    """Bytes that a worker receives in Pull over the dense tensor's, by format (Zen, figure 17a).

    Bitmap: a plain one over the whole tensor from every server. Hash bitmap: one over the indices of its server.
    One row per (density, system).
    """
    import torch

    def num_bytes(form: type[sparse_sync.Format], units: int, listed: int) -> int:
        return form(units, 1, torch.float32).num_bytes(listed)

    hashed, rng, rows = sparse_sync.partition("hashed", size, num_servers, seed), np.random.default_rng(seed), []
    for density in densities:
        index_N = torch.from_numpy(np.sort(rng.choice(size, max(1, round(density * size)), replace=False)))
        parts = [(hashed.part_size(part), int(count)) for part, count in enumerate(hashed.count(index_N))]
        num_blocks = torch.unique_consecutive(index_N // 256).numel()
        sizes = {
            "COO": num_bytes(sparse_sync.Coo, size, len(index_N)),
            "Bitmap": sum(num_bytes(sparse_sync.Bitmap, size, count) for _, count in parts),
            "Tensor block": num_bytes(sparse_sync.Blocks, size, num_blocks),
            "Hash bitmap": sum(num_bytes(sparse_sync.Bitmap, part, count) for part, count in parts),
        }
        rows += [(density, *each) for each in sizes.items()]
    table = pd.DataFrame(rows, columns=["density", "system", "bytes"])
    return table.assign(over_dense=table["bytes"] / num_bytes(sparse_sync.Dense, size, 0))


def bitmap_index_bytes(*, sizes: list[int], servers: list[int], seed: int = 0) -> pd.DataFrame:
    """All servers' hash bitmaps together against |G| / 8. One row per (elements, servers)."""
    table = pd.DataFrame(product(sizes, servers), columns=["elements", "servers"])
    parts = [sparse_sync.partition("hashed", *case, seed) for case in product(sizes, servers)]
    table["bytes"] = [sum(-(-each.part_size(part) // 8) for part in range(each.num_parts)) for each in parts]
    return table.assign(excess_bytes=table["bytes"] - table["elements"] / 8)


def _random_indices(count: int, size: int, seed: int) -> np.ndarray:
    """`count` or a few fewer distinct indices in [0, size), sorted."""
    return np.unique(np.random.default_rng(seed).integers(0, size, count))


def plot_serial(table: pd.DataFrame) -> Figure:
    """Indices in Algorithm 1's serial region (Zen, figure 16): dots measured, lines expected, dashed the room that the
    paper gives it, a tenth of the parallel slots. Random indices."""
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
    """Gradients that the strawman loses (Zen, section 3.2). Random indices."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.3)
    shared = {"x": "slots_per_index", "color": RED, "ax": ax}
    sns.scatterplot(table, y="lost_pct", **shared, s=16, label="measured")
    sns.lineplot(table, y="expected_pct", **shared, linewidth=0.8, label="1 - (1 - exp(-a)) / a")
    style.paper_mark(ax, x=10, y=claims.paper("zen-strawman"), label="paper")
    ax.set(title="Random indices", xlabel="Slots per index", ylabel="Gradients lost (%)", xscale="log")
    ax.legend()
    return figure


def plot_methods(table: pd.DataFrame) -> Figure:
    """Speed of every partition of random indices, one core."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.0)
    sns.barplot(table, x="million_elements_per_s", y="method", color=BLUE, saturation=1, ax=ax)
    ax.set(title="Random indices", xlabel="Million elements a second, one core", ylabel="")
    return figure


def plot_imbalance(table: pd.DataFrame) -> Figure:
    """Push imbalance over 1, the worst of the seeds, and theorem 2's bound (constant 1.5 √2), on the most indices."""
    most = table[table["indices"] == table["indices"].max()]
    bound = most.drop_duplicates(["stride", "partitions"]).assign(method="theorem 2's bound", imbalance=most["bound"])
    rows = pd.concat([most, bound], ignore_index=True).eval("excess = imbalance - 1")
    grid = lines(rows, "partitions", "excess", hue="method", dashes=True, col="stride", height_in=2.5)
    titles = {0: "random indices", 1: "consecutive indices"}
    for stride, ax in grid.axes_dict.items():
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_ylim(-1e-4, 2 * rows["excess"].max())
        ax.set(title=titles.get(stride, f"every {stride}th index"), xlabel="Partitions")
    grid.set_ylabels("Push imbalance - 1")
    return grid.figure


def plot_formats(table: pd.DataFrame) -> Figure:
    """Bytes received in Pull over the dense tensor's (Zen, figure 17a). Random supports."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    rows = table.assign(density_pct=100 * table["density"])
    colors = CYCLE[: rows["system"].nunique()]
    sns.lineplot(rows, x="density_pct", y="over_dense", hue="system", palette=colors, marker="o", mew=0, ax=ax)
    ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1, label="dense")
    ax.set(title="Random supports", xlabel="Density (%)", ylabel="Bytes over dense", xscale="log", ylim=(0, 2))
    ax.legend()
    return figure


FIGURES = {
    "zen-fig16": Picture("33_serial", plot_serial),
    "zen-strawman": Picture("33_strawman", plot_strawman),
    "zen-partition-speed": Picture("33_methods", plot_methods),
    "zen-imbalance": Picture("33_imbalance", plot_imbalance),
    "zen-fig17": Picture("34_formats", plot_formats),
}
