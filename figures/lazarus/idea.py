"""Lazarus's idea (notebook 20): how skewed loads are, and the placements of figures 4 and 5.

Experts and nodes are numbered from 1 in tables, as in the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from artifact import elastic_moe as moe
from figures.claims import paper
from figures.lazarus.drawing import is_the_papers, named
from figures.lazarus.planners import text
from figures.style import BLUE, Picture, paper_mark, subplots

PLAN_A = ((0, 2, 2, 3), (0, 1, 1, 3), (1, 1, 3, 3), (1, 2, 3, 3), (2, 2, 3, 3))
"""Figure 4's first plan by what is known of it: which pairs of its five nodes recover. These fix the holders of three
experts, nodes 1-2, 2-3-4 and 1-4-5; the fourth is everywhere, and second copies on a node fill the slots."""

SURVIVORS_A = {"1,2", "1,3", "1,4", "2,4", "2,5"}
EXPERT_COLORS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#DDDDDD")
"""Paul Tol's light scheme: black numbers are read on them."""


def load_skew(*, traces: Sequence[str]) -> pd.DataFrame:
    """How much of a layer's tokens its hottest experts have. One row per (trace, iteration, layer).

    traces: names of recorded loads, of `LOAD_TRACES`
    """
    tables = []
    for name in traces:
        trace = moe.LOAD_TRACES[name]()
        falling_ILE = -np.sort(-trace.counts_ILE, axis=2)
        total_IL = falling_ILE.sum(axis=2)
        _, layers, experts = falling_ILE.shape
        rows = pd.MultiIndex.from_product([trace.iterations, range(layers)], names=["iteration", "layer"])
        shares = {
            "hottest_pct": (100 * falling_ILE[..., 0] / total_IL).ravel(),
            "hottest_two_pct": (100 * falling_ILE[..., :2].sum(axis=2) / total_IL).ravel(),
        }
        tables.append(rows.to_frame(index=False).assign(trace=trace.name, experts=experts, **shares))
    return pd.concat(tables, ignore_index=True)


def worked_examples() -> pd.DataFrame:
    """The plans of figures 4 and 5, as `drawn`.

    Figure 5's other plan is not published: this is one that fails as often as the paper says.
    """
    plan_a = moe.Placement(PLAN_A, 4)
    line = moe.Placement(((0, 1), (0, 2), (1, 3), (2, 3), (2, 3)), 4)
    plans = {
        ("figure 4", "A"): plan_a,
        ("figure 4", "B"): moe.place("mro", plan_a.replicas, [4] * 5),
        ("figure 5", "apart"): line,
        ("figure 5", "MRO"): moe.place("mro", [2, 2, 3, 3], [2] * 5),
    }
    return pd.concat([drawn(*names, plan, 3) for names, plan in plans.items()], ignore_index=True)


def drawn(case: str, plan: str, placement: moe.Placement, failures: int) -> pd.DataFrame:
    """One row per (case, plan, node, slot), to draw it.

    `good` of the `sets` sets of `failures` failed nodes are survived, by the live nodes in `survivors`.
    """
    every = set(range(placement.num_nodes))
    alive = [every - set(failed) for failed in combinations(every, failures) if placement.survives(failed)]
    whole = {"case": case, "plan": plan, "replicas": text(placement.replicas), "failures": failures}
    whole |= {"good": survived(placement)[failures], "sets": math.comb(placement.num_nodes, failures)}
    whole["survivors"] = " ".join(sorted(text([node + 1 for node in sorted(nodes)]) for nodes in alive))
    return pd.DataFrame(
        {**whole, "node": number + 1, "slot": slot + 1, "expert": expert + 1}
        for number, node in enumerate(placement.nodes)
        for slot, expert in enumerate(node)
    )


def survived(placement: moe.Placement) -> list[int]:
    """Survived failure sets by the number of failures, exact."""
    good = moe.recovery(placement).good
    assert good is not None
    return good


def plot_load_skew(table: pd.DataFrame) -> Figure:
    """Share of a layer's tokens on its two hottest experts (Lazarus, figure 2), while a GPT-MoE is trained and over all
    iterations of the traces; the paper's value is from step 200 on."""
    figure, (over_time, trained) = subplots(1, 2, height_in=2.3, width_ratios=[2, 1])
    training = table[table["trace"].str.contains("smartmoe")]
    band: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 0}}
    sns.lineplot(training, x="iteration", y="hottest_two_pct", color=BLUE, ax=over_time, label="median layer", **band)
    if is_the_papers(training):
        paper_mark(over_time, y=paper("lazarus-fig2-top2"), label='paper ("up to")')
    over_time.set(title=f"{training['trace'].iloc[0]}, {training['experts'].iloc[0]} experts", ylim=(0, 100))
    over_time.set(xlabel="Training step", ylabel="Tokens of the hottest\ntwo experts (%)")
    over_time.legend(loc="lower right")
    rows = table.assign(of=named(table, "{trace}\n{experts}"))
    sns.boxplot(rows, x="of", y="hottest_two_pct", whis=(0, 100), color=BLUE, fill=False, linewidth=0.8, ax=trained)
    trained.set(title="All layers and iterations", xlabel="Trace, and its experts", ylabel="", ylim=(0, 100))
    return figure


def plot_placements(table: pd.DataFrame) -> Figure:
    """Columns of boxes are nodes, boxes slots, numbers experts: two placements of the same replicas in each case,
    and how many sets of failures they survive."""
    cases = list(table.groupby("case", sort=False))
    widths, slots = [int(rows["node"].max()) for _, rows in cases], int(table["slot"].max())
    figure, axes = subplots(2, len(cases), height_in=1.1 + 0.36 * slots, width_ratios=widths, squeeze=False)
    for column, (case, rows) in enumerate(cases):
        for ax, (plan, held) in zip(axes[:, column], rows.groupby("plan", sort=False), strict=True):
            _draw_nodes(ax, held)
            failures, good, sets = held.iloc[0][["failures", "good", "sets"]]
            lost = "failure" if failures == 1 else "failures"
            ax.set_title(f"{plan}: {failures} {lost},\n{good} of {sets} survived")
            ax.set_ylim(slots + 0.6, 0.4)
        axes[0, column].set_title(f"{case}\n{axes[0, column].get_title()}")
    return figure


def _draw_nodes(ax: Axes, held: pd.DataFrame) -> None:
    for node, slot, expert in held[["node", "slot", "expert"]].to_numpy():
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
    sns.despine(ax=ax, left=True, bottom=True)


def fig4_survivors(table: pd.DataFrame) -> float:
    """How many of plan A's published survivors survive here, less those that do but are not published."""
    found = set(table.query("case == 'figure 4' and plan == 'A'")["survivors"].iloc[0].split())
    return float(len(found & SURVIVORS_A) - len(found - SURVIVORS_A))


FIGURES = {
    "lazarus-fig2": Picture(
        "20_load_skew", plot_load_skew, interval="band and whiskers hold all layers, boxes half of them"
    ),
    "lazarus-fig4-5": Picture("20_worked_examples", plot_placements),
}
