"""The idea in small: a tree of sequences with one checkpoint a node, drawn operation by operation (notebook 10)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from artifact.prefix_cache import FlopAware, Lru, PrefixCache
from artifact.prefix_cache.index.eviction import NOW
from artifact.prefix_cache.index.radix_tree import ALLOCATED, DEAD, ROOT
from artifact.prefix_cache.simulation import GB
from artifact.prefix_cache.spec import MARCONI_7B
from figures.style import BLUE, GREY, Picture, subplots


def nodes(*, operations: list[tuple[str, list[int]]], capacity_gb: float, alpha: float | None) -> pd.DataFrame:
    """The tree after each of a few operations, node by node: what a drawing of it needs.

    operations: ("lookup" | "insert", tokens), in order
    alpha:      of FLOP-aware eviction; None is LRU
    Columns:    step, operation, reused_tokens, node, parent, edge (tokens), depth, age, size_bytes, used_bytes
    """
    eviction = Lru() if alpha is None else FlopAware(alpha)
    cache = PrefixCache(MARCONI_7B, capacity_bytes=round(capacity_gb * GB), eviction=eviction)
    rows = []
    for step, (operation, tokens) in enumerate(operations):
        shown = {"step": step, "operation": f"{operation} {' '.join(map(str, tokens))}", "reused_tokens": 0}
        if operation == "lookup":
            shown["reused_tokens"] = cache.lookup(tokens)
        else:
            cache.insert(tokens)
        (tree, order), shown["used_bytes"] = cache.contents, cache.used_bytes
        parents = tree.nodes["parent"][: tree.counts[ALLOCATED]]
        for node, row in ((node, tree.nodes[node]) for node in np.flatnonzero(parents != DEAD).tolist()):
            length, age = int(row["length"]), int(order.clock[NOW] - order.last_access[node])
            edge = " ".join(map(str, tree.tokens[row["start"] : row["start"] + length]))
            size_bytes = 0 if node == ROOT else MARCONI_7B.checkpoint_bytes + MARCONI_7B.kv_bytes(length)
            rows.append(
                {**shown, "node": node, "parent": int(row["parent"]), "edge": edge, "depth": int(row["depth"])}
                | {"age": age, "size_bytes": size_bytes}
            )
    return pd.DataFrame(rows)


def _positions(
    nodes: pd.DataFrame, leaves: Iterator[int], node: int = ROOT, level: int = 0
) -> dict[int, tuple[float, float]]:
    """Where each node is drawn: leaves side by side, a parent above the middle of its children."""
    children = nodes.index[nodes["parent"] == node].tolist()
    placed: dict[int, tuple[float, float]] = {}
    for child in children:
        placed |= _positions(nodes, leaves, child, level + 1)
    x = np.mean([placed[child][0] for child in children]) if children else next(leaves)
    return placed | {node: (float(x), -float(level))}


def plot_tree(table: pd.DataFrame) -> Figure:
    """The tree after each operation: a dot is a checkpoint, its edge's tokens above it, beside it the logical time
    since its last use (Marconi, figure 4).
    """
    steps = sorted(table["step"].unique())
    figure, axes = subplots(-(-len(steps) // 2), 2, height_in=1.0 * len(steps), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for ax, step in zip(axes.flat, steps, strict=False):
        nodes = table[table["step"] == step].set_index("node")
        positions = _positions(nodes, count(1))
        for node, (x, y) in positions.items():
            ax.scatter([x], [y], s=40, color=BLUE if node else GREY, zorder=2)
            if node:
                parent_x, parent_y = positions[int(nodes.loc[node, "parent"])]
                ax.plot([parent_x, x], [parent_y, y], color="#999999", linewidth=1, zorder=1)
                edge, age = nodes.loc[node, "edge"], f"  age {nodes.loc[node, 'age']}"
                ax.annotate(edge, (x, y + 0.36), ha="center", va="center", fontsize=8, bbox=white, zorder=3)
                ax.annotate(age, (x, y), ha="left", va="center", fontsize=7)
        first = nodes.iloc[0]
        reused = f", reuses {first['reused_tokens']} tokens" if first["operation"].startswith("lookup") else ""
        ax.set_title(f"{step + 1}. {first['operation']}{reused}", loc="left")
        ax.set_xlim(0.4, max(x for x, _ in positions.values()) + 0.8)
        ax.set_ylim(min(y for _, y in positions.values()) - 0.4, 0.4)
    return figure


FIGURES = {"marconi-idea": Picture("10_prefix_cache_idea", plot_tree)}
