"""Figures of allocation and placement: skew, node and slot diagrams, where MRO is optimal, whole models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures.style import BLUE, GREY, PURPLE, RED, SYSTEM_COLORS, YELLOW, paper_mark, subplots

EXPERT_COLORS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#DDDDDD")
"""Paul Tol's light scheme: black numbers are read on them."""

ORDER_COLORS = {"same": BLUE, "aligned": PURPLE, "independent": RED}
CASE_COLORS = {"whole": BLUE, "cut short": RED}
HOTTEST_TWO_PCT = 87
RECOVERED_L = {"Lazarus": 0.41, "spread": 0.12}
"""GPT-L after four failures, as the paper says."""

TRANSFERRED = {("GPT-S", 201): 11, ("GPT-S", 4001): 52, ("GPT-L", 201): 160, ("GPT-L", 4001): 55}
"""Experts sent, by model and recorded iteration (Lazarus, table 2)."""


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def plot_load_skew(table: pd.DataFrame) -> Figure:
    """Share of a layer's tokens on its two hottest experts (Lazarus, figure 2): in training, and in trained models."""
    figure, axes = subplots(1, 2, height_in=2.3, width_ratios=[2, 1])
    training = table[table["trace"].str.contains("smartmoe")]
    by_iteration = training.groupby("iteration")["hottest_two_pct"]
    ax = axes[0]
    ax.fill_between(
        list(by_iteration.groups), by_iteration.min(), by_iteration.max(), color=BLUE, alpha=0.2, linewidth=0
    )
    ax.plot(by_iteration.median(), color=BLUE, label="median of the layers; band: all layers")
    paper_mark(ax, y=HOTTEST_TWO_PCT, label='paper ("up to")')
    ax.set(xlabel="Training step", ylabel="Tokens of the hottest two\nof 32 experts (%)", ylim=(0, 100))
    ax.legend(loc="lower right")
    names = list(dict.fromkeys(table["trace"]))
    shares = [table[table["trace"] == name]["hottest_two_pct"] for name in names]
    axes[1].boxplot(shares, whis=(0, 100), medianprops={"color": BLUE})
    experts = [table[table["trace"] == name]["experts"].iloc[0] for name in names]
    axes[1].set_xticks(
        range(1, len(names) + 1), [f"{name}\n{count}" for name, count in zip(names, experts, strict=True)]
    )
    axes[1].set(xlabel="Trace, and its experts", ylabel="The same, all layers\nand iterations (%)", ylim=(0, 100))
    return figure


def plot_placements(table: pd.DataFrame) -> Figure:
    """Nodes side by side, their slots with the experts in them; a column a case, a row a plan."""
    cases = list(dict.fromkeys(table["case"]))
    nodes = [int(table[table["case"] == case]["node"].max()) for case in cases]
    slots = int(table["slot"].max())
    figure, axes = subplots(2, len(cases), height_in=1.1 + 0.36 * slots, width_ratios=nodes, squeeze=False)
    for column, case in enumerate(cases):
        rows = table[table["case"] == case]
        for ax, (plan, held) in zip(axes[:, column], rows.groupby("plan", sort=False), strict=True):
            _draw_nodes(ax, held)
            first = held.iloc[0]
            lost = "failure" if first["failures"] == 1 else "failures"
            ax.set_title(f"{plan}: {first['failures']} {lost},\n{first['good']} of {first['sets']} survived")
            ax.set_ylim(slots + 0.6, 0.4)
        axes[0, column].set_title(f"{case}\n{axes[0, column].get_title()}")
    return figure


def _draw_nodes(ax: Axes, held: pd.DataFrame) -> None:
    for row in held.itertuples():
        node, slot, expert = int(str(row.node)), int(str(row.slot)), int(str(row.expert))
        color = EXPERT_COLORS[(expert - 1) % len(EXPERT_COLORS)]
        ax.add_patch(
            Rectangle((node - 0.42, slot - 0.45), 0.84, 0.9, facecolor=color, edgecolor="black", linewidth=0.4)
        )
        ax.text(node, slot, str(expert), ha="center", va="center", fontsize=6.5)
    last = int(held["node"].max())
    ax.set_xlim(0.4, last + 0.6)
    ax.set_xticks(range(1, last + 1), [f"n{node}" for node in range(1, last + 1)])
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def plot_small_cases(table: pd.DataFrame) -> Figure:
    """Where MRO is optimal, what it loses where it is not, and who keeps the promise about fewer than f failures."""
    figure, axes = subplots(1, 3, height_in=2.4)
    cases = ["nodes", "slots", "replicas"]
    best: Any = (
        table.assign(optimal=table["mro"] == table["best"]).groupby([*cases, "whole"], as_index=False)["optimal"].all()
    )
    shares = best.groupby(["nodes", "slots", "whole"])["optimal"].mean().unstack("whole")
    places = np.arange(len(shares))
    for turn, (label, color) in enumerate(CASE_COLORS.items()):
        axes[0].bar(places + 0.4 * turn - 0.2, 100 * shares[label == "whole"], 0.4, color=color, label=label)
    axes[0].set_xticks(places, [f"{nodes}x{slots}" for nodes, slots in shares.index], rotation=90)
    axes[0].set(xlabel="Nodes x slots", ylabel="Cases where MRO is optimal (%)")
    axes[0].legend(title="MRO's last group is", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    behind = table[table["mro"] < table["best"]]
    axes[1].hist(100 * (behind["best"] - behind["mro"]) / behind["sets"], bins=list(range(0, 61, 5)), color=RED)
    axes[1].set_yscale("log")
    axes[1].set(
        xlabel="Failure sets that the best placement\nsurvives and MRO does not (%)", ylabel="Cases and failures"
    )
    promise = table.drop_duplicates(cases)
    columns = {"MRO": "keeps_mro", "spread": "keeps_spread", "best": "keeps_best_on_average"}
    broken = [100 * float((~promise[column]).mean()) for column in columns.values()]
    bars = axes[2].bar(list(columns), broken, color=[SYSTEM_COLORS.get(name, GREY) for name in columns])
    axes[2].bar_label(bars, fmt="%.2f %%", fontsize=7)
    axes[2].set_ylabel("Cases where fewer than f\nfailures can be fatal (%)")
    return figure


def plot_hot_expert(table: pd.DataFrame) -> Figure:
    """Recovery of one layer against failures, an expert hotter than the others (Lazarus, figure 10b)."""
    cases: Any = list(table[(table["ratio"] > 1) | (table["of"] == "mean")].groupby(["of", "ratio"], sort=True))
    cases.sort(key=lambda case: (case[0][0] == "another", case[0][1]))
    figure, axes = subplots(1, len(cases), height_in=2.3, sharey=True, squeeze=False)
    for ax, ((of, ratio), rows) in zip(axes[0], cases, strict=True):
        _curves(ax, rows, ("MRO", "best", "spread", "EPLB", "random", "compact"))
        ax.set_title("even load" if ratio == 1 else f"{ratio:g}:1 of {'the mean' if of == 'mean' else 'another'}")
        ax.set_xlabel("Failed nodes of 10")
    axes[0, 0].set_ylabel("Recovery probability")
    _legend(figure, axes[0, 0])
    return figure


def _curves(ax: Axes, rows: pd.DataFrame, systems: Sequence[str]) -> None:
    for system in systems:
        one = rows[rows["system"] == system]
        style: Any = {"marker": "o"}
        if system == "best":
            style = {"linestyle": "--", "marker": "s", "markerfacecolor": "none"}
        color = SYSTEM_COLORS.get(system, GREY)
        ax.plot(one["failures"], one["probability"], label=system, color=color, markersize=2.5, **style)
    ax.set_xticks(range(0, int(rows["failures"].max()) + 1, 2))


def plot_balance(table: pd.DataFrame) -> Figure:
    """Recovery after three failures against the load of the most loaded node; a panel a load."""
    cases = list(table[table["failures"] == 3].groupby("loads", sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.2, sharey=True, squeeze=False)
    for ax, (name, rows) in zip(axes[0], cases, strict=True):
        for row in rows.itertuples():
            label = str(row.system)
            marker = "s" if label == "best" else "o"
            size = 45 if label == "best" else 22
            face = "none" if label == "best" else SYSTEM_COLORS.get(label, GREY)
            ax.scatter(
                row.max_load_ratio,
                row.probability,
                s=size,
                marker=marker,
                facecolor=face,
                edgecolor=SYSTEM_COLORS.get(label, GREY),
                label=label,
                zorder=3,
            )
        ax.set_title(str(name))
        ax.set_xlim(left=0.98)
        ax.set_xlabel("Most loaded node\nover the mean")
    axes[0, 0].set_ylabel("Recovery probability\nafter 3 failures")
    _legend(figure, axes[0, 0])
    return figure


def plot_model_recovery(table: pd.DataFrame) -> Figure:
    """Recovery of all layers against failed nodes (Lazarus, figure 8); a panel for each model and step."""
    cases: Any = list(table.groupby(["model", "iteration"], sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.3, sharey=True, squeeze=False)
    for ax, ((model, iteration), rows) in zip(axes[0], cases, strict=True):
        _curves(ax, rows, ("Lazarus", "spread", "compact"))
        if model == "GPT-L":
            for probability in RECOVERED_L.values():
                paper_mark(ax, x=4, y=probability, label=None)
        ax.set_title(f"{model}, step {iteration - 1:,}")
        ax.set_xlabel("Failed nodes of 10")
    paper_mark(axes[0, 0], x=-1, y=-1, label="paper, at four")
    axes[0, 0].set(xlim=(-0.4, 10.4), ylim=(-0.04, 1.04), ylabel="Recovery probability")
    _legend(figure, axes[0, 0])
    return figure


def plot_node_orders(table: pd.DataFrame) -> Figure:
    """Recovery of all layers under MRO by the orders of their nodes; bands: all seeds."""
    rows = table[(table["system"] == "MRO") & (table["iteration"] == table["iteration"].min())]
    models = list(dict.fromkeys(rows["model"]))
    figure, axes = subplots(1, len(models), height_in=2.3, sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        for orders, color in ORDER_COLORS.items():
            found = rows[(rows["model"] == model) & (rows["orders"] == orders)].groupby("failures")["probability"]
            style: Any = {"linestyle": "--", "marker": "s"} if orders == "aligned" else {"marker": "o"}
            ax.plot(found.mean(), color=color, label=orders, **style)
            ax.fill_between(list(found.groups), found.min(), found.max(), color=color, alpha=0.2, linewidth=0)
        ax.set_title(str(model))
        ax.set_xlabel("Failed nodes of 10")
    axes[0, 0].set_ylabel("Recovery probability\nof all layers")
    _legend(figure, axes[0, 0])
    return figure


def plot_transferred(table: pd.DataFrame) -> Figure:
    """Experts sent after a failure, over all failure sets, by the numbering of experts (Lazarus, table 2)."""
    cases: Any = list(table.groupby(["model", "iteration", "lost"], sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.4, squeeze=False)
    colors = {"greedy": YELLOW, "optimal": BLUE}
    for ax, ((model, iteration, lost), rows) in zip(axes[0], cases, strict=True):
        numberings = list(dict.fromkeys(rows["numbering"]))
        for turn, (method, color) in enumerate(colors.items()):
            one = rows[rows["method"] == method]
            ax.boxplot(
                [one[one["numbering"] == numbering]["experts"] for numbering in numberings],
                positions=np.arange(len(numberings)) + 0.4 * turn - 0.2,
                widths=0.32,
                whis=(0, 100),
                patch_artist=True,
                boxprops={"facecolor": color, "linewidth": 0.5},
                medianprops={"color": "black"},
                manage_ticks=False,
            )
            ax.bar([0], [0], color=color, label=method)
        paper_mark(ax, y=TRANSFERRED[model, iteration])
        ax.set_xticks(range(len(numberings)), [name.replace(" ", "\n") for name in numberings])
        ax.set_title(f"{model}, step {iteration - 1:,},\n{lost} nodes lost")
        ax.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("Experts sent")
    _legend(figure, axes[0, 0])
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "lazarus-fig2": ("20_load_skew", plot_load_skew),
    "lazarus-fig4-5": ("20_worked_examples", plot_placements),
    "lazarus-counterexamples": ("21_counterexamples", plot_placements),
    "lazarus-theorem": ("21_small_cases", plot_small_cases),
    "lazarus-fig10b": ("21_hot_expert", plot_hot_expert),
    "lazarus-balance": ("21_balance", plot_balance),
    "lazarus-fig8": ("22_recovery", plot_model_recovery),
    "lazarus-layer-orders": ("22_node_orders", plot_node_orders),
    "lazarus-table2": ("22_transferred", plot_transferred),
}
