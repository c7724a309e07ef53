"""Recovery of whole models (notebook 22): figure 8, the order of nodes of each layer, and what table 2 sends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import elastic_moe as moe
from figures.claims import paper
from figures.lazarus.alignment import align, ordered
from figures.lazarus.drawing import data_of, is_the_papers, legend, mark, named, recovery_curves, stated
from figures.lazarus.planners import LABELS, NODES, loads_of, placed, text
from figures.reducers import selected
from figures.style import BLUE, PURPLE, RED, YELLOW, Picture, facets, paper_mark

ASSIGNMENTS: tuple[Literal["greedy", "optimal"], ...] = ("greedy", "optimal")
NUMBERINGS = ("as recorded", "rising load", "falling load")
ORDER_COLORS = {"same": BLUE, "aligned": PURPLE, "independent": RED}


def model_recovery(*, models: Sequence[str], iterations: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """All layers of a model together after failures on the testbed, their nodes in the same order (Lazarus, figure 8).

    seed: of the search for aligned orders
    One row per (model, iteration, system, failures). Experts are placed in the order of their loads, which makes a
    difference to spread and compact; "best" is the best placement of each layer, aligned.
    """
    rows = []
    for model, iteration in product(models, iterations):
        name, loads_LE = loads_of(model, iteration)
        for system, method in (("Lazarus", "mro"), ("best", "best"), ("spread", "spread"), ("compact", "compact")):
            layers = _layers(method, loads_LE, NODES)
            found = moe.recovery(align(layers, seed=seed) if method == "best" else layers)
            case = {"loads": name, "model": model, "iteration": iteration, "system": system}
            rows += [{**case, "failures": k, "probability": each} for k, each in enumerate(found.probability)]
    return pd.DataFrame(rows)


def node_orders(*, models: Sequence[str], iterations: Sequence[int], seeds: int, seed: int = 0) -> pd.DataFrame:
    """The same layers with nodes in the same order, in a different order in each layer, and aligned from there.

    seeds: orders that are drawn, from `seed` on
    One row per (model, iteration, system, orders, seed, failures). "worst layer" is the least that any
    layer survives alone at each number of failures: no orders are above it.
    """
    rows: list[dict[str, Any]] = []
    for model, iteration, method in product(models, iterations, ("mro", "best", "spread")):
        name, loads_LE = loads_of(model, iteration)
        layers = _layers(method, loads_LE, NODES)
        alone = [moe.recovery(layer).probability for layer in layers]
        found = {("same", 0): moe.recovery(layers).probability}
        found["worst layer", 0] = [min(each) for each in zip(*alone, strict=True)]
        for drawn in range(seed, seed + seeds):
            rng = np.random.default_rng(drawn)
            mixed = ordered(layers, [rng.permutation(NODES) for _ in layers])
            found["independent", drawn] = moe.recovery(mixed).probability
            found["aligned", drawn] = moe.recovery(align(mixed, seed=drawn)).probability
        case = {"loads": name, "model": model, "iteration": iteration, "system": LABELS[method]}
        for (orders, drawn), probability in found.items():
            where = {**case, "orders": orders, "seed": drawn}
            rows += [{**where, "failures": k, "probability": each} for k, each in enumerate(probability)]
    return pd.DataFrame(rows)


def transferred(*, cases: Sequence[tuple[str, int, int]], most: int, seed: int = 0) -> pd.DataFrame:
    """Experts sent when nodes fail together and the others take up a new plan (Lazarus, table 2).

    cases: model, iteration and nodes lost
    most:  failure sets that are recovered from: all of them, or at most this many, drawn by `seed`
    One row per (model, iteration, lost, numbering, failed, method); loads stay as they were before the failure. The
    numbering decides which of several experts with equally many replicas comes first in MRO, of which the paper says
    nothing.
    """
    rows = []
    for (model, iteration, lost), numbering in product(cases, NUMBERINGS):
        name, loads_LE = loads_of(model, iteration)
        state_bytes = int(moe.WORKLOADS[model].expert_state_bytes)
        before, after = (_layers("mro", loads_LE, nodes, numbering) for nodes in (NODES, NODES - lost))
        for failed in _recoverable(before, lost, most, seed):
            holdings = moe.holdings_of(before, [node for node in range(NODES) if node not in failed])
            case = {"loads": name, "model": model, "iteration": iteration, "lost": lost, "numbering": numbering}
            case["failed"] = text([node + 1 for node in failed])
            for method in ASSIGNMENTS:
                sent = moe.transfers(holdings, after, moe.assign_nodes(holdings, after, method), state_bytes)
                num_bytes = sum(each.num_bytes for each in sent)
                rows.append({**case, "method": method, "experts": len(sent), "bytes": num_bytes})
    return pd.DataFrame(rows)


def _layers(method: str, loads_LE: np.ndarray, nodes: int, numbering: str = "rising load") -> list[moe.Placement]:
    """A placement of each layer."""
    if numbering != "as recorded":
        loads_LE = np.sort(loads_LE, axis=1)[:, :: 1 if numbering == "rising load" else -1]
    return [placed(method, loads, nodes) for loads in loads_LE.tolist()]


def _recoverable(layers: Sequence[moe.Placement], lost: int, most: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Sets of `lost` failed nodes that every layer survives: all, or `most` drawn from them."""
    every = combinations(range(layers[0].num_nodes), lost)
    survived = [failed for failed in every if all(layer.survives(failed) for layer in layers)]
    if len(survived) <= most:
        return survived
    drawn = np.random.default_rng(seed).choice(len(survived), size=most, replace=False)
    return [survived[number] for number in sorted(drawn)]


def plot_model_recovery(table: pd.DataFrame) -> Figure:
    """Recovery of all 12 layers of a model together, exact, on 10 nodes of 6 slots with f = 2 (Lazarus, figure 8). The
    paper states its two values at four failures of GPT-L, and not the step."""
    rows = table[table["system"] != "best"].assign(step=table["iteration"] - 1)
    rows["case"] = named(rows, "{model}, step {step:,}\n({loads})")
    grid = recovery_curves(rows, "case")
    for case, ax in grid.axes_dict.items():
        if case.startswith("GPT-L") and is_the_papers(table):
            mark(ax, 4, paper("lazarus-fig8-l-lazarus") / 100, "Lazarus")
            mark(ax, 4, paper("lazarus-fig8-l-spread") / 100, "spread")
    legend(grid.figure)
    return grid.figure


def plot_node_orders(table: pd.DataFrame) -> Figure:
    """Recovery of all layers placed by MRO, the nodes in the same order in all layers, in a different order in each,
    and aligned from there."""
    rows = table[(table["system"] == "MRO") & (table["iteration"] == table["iteration"].min())]
    colors = {"hue": "orders", "style": "orders", "palette": ORDER_COLORS, "hue_order": [*ORDER_COLORS]}
    style = {"style_order": [*ORDER_COLORS], "markers": ["o", "s", "^"], "dashes": ["", (2, 2), ""]}
    grid = recovery_curves(rows, "model", **colors, **style, errorbar=("pi", 100))
    return grid.set_titles(f"{{col_name}}, step {rows['iteration'].iloc[0] - 1:,} ({data_of(rows)})").figure


def plot_transferred(table: pd.DataFrame) -> Figure:
    """Experts sent after nodes are lost at once (Lazarus, table 2), by how the experts are numbered and the nodes of
    the new plan are assigned."""
    rows = table.assign(numbered=table["numbering"].str.replace(" ", "\n"), step=table["iteration"] - 1)
    rows["case"] = named(rows, "{model}, step {step:,},\n{lost} nodes lost")
    axes: dict[str, Any] = {"x": "numbered", "y": "experts", "col": "case", "hue": "method", "sharey": False}
    style: dict[str, Any] = {"palette": [YELLOW, BLUE], "saturation": 1, "whis": (0, 100), "linewidth": 0.7}
    grid = facets(sns.catplot, rows, kind="box", **axes, **style)
    for where, _, value in stated("22_transferred") if is_the_papers(table) else []:
        for case in selected(rows, where)["case"].unique() if "numbering" in where else []:
            paper_mark(grid.axes_dict[case], y=value)
    grid.set(ylim=(0, None)).set_titles("{col_name}").set_axis_labels("", "Experts sent")
    legend(grid.figure, *grid.axes.flat[0].get_lines()[-1:])
    return grid.figure


def recovery_order_pct(table: pd.DataFrame) -> float:
    """Cases in which Lazarus recovers at least as often as spread and spread as compact, in %."""
    if not is_the_papers(table):
        return float("nan")
    cases = table.pivot(index=["model", "iteration", "failures"], columns="system", values="probability")
    in_order = (cases["Lazarus"] >= cases["spread"]) & (cases["spread"] >= cases["compact"])
    return float(100 * in_order.mean())


FIGURES = {
    "lazarus-fig8": Picture("22_recovery", plot_model_recovery),
    "lazarus-layer-orders": Picture("22_node_orders", plot_node_orders, interval="bands hold all drawn orders"),
    "lazarus-table2": Picture(
        "22_transferred", plot_transferred, interval="boxes hold half of the failure sets, whiskers all"
    ),
}
