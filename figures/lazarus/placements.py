"""Placements: loads and the paper's examples (notebook 20), and where MRO is optimal (notebook 21).

Experts and nodes are numbered from 1 in tables, as in the paper's figures. Numbers of survived failure sets are exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
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
from figures.lazarus.drawing import SYSTEM_STYLE, is_the_papers, named, recovery_curves
from figures.lazarus.planners import LABELS, MIN_REPLICAS, NODES, SLOTS, allocate_balanced, placed, text
from figures.style import BLUE, RED, SYSTEM_COLORS, Picture, facets, paper_mark, subplots

PLAN_A = ((0, 2, 2, 3), (0, 1, 1, 3), (1, 1, 3, 3), (1, 2, 3, 3), (2, 2, 3, 3))
"""Figure 4's first plan by what is known of it: which pairs of its five nodes recover. These fix the holders of three
experts, nodes 1-2, 2-3-4 and 1-4-5; the fourth is everywhere, and second copies on a node fill the slots."""

SURVIVORS_A = {"1,2", "1,3", "1,4", "2,4", "2,5"}
EXPERT_COLORS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#DDDDDD")
"""Paul Tol's light scheme: black numbers are read on them."""


COUNTEREXAMPLES: Mapping[str, tuple[int, int, tuple[int, ...], int]] = {
    "the smallest": (4, 2, (2, 3, 3), 2),
    "one failure is fatal": (4, 6, (3,) * 8, 1),
    "half as often": (8, 4, (6, 6, 6, 7, 7), 6),
    "seven nodes": (7, 3, (4, 4, 4, 4, 5), 4),
}
"""Nodes, slots, replicas and failures for which MRO is not the best placement."""

CASE = ["nodes", "slots", "replicas"]
PROMISES = {"MRO": "keeps_mro", "spread": "keeps_spread", "best": "keeps_best_on_average"}


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


def counterexamples(*, seed: int = 0) -> pd.DataFrame:
    """MRO and the best placement where they differ, as `idea.drawn`; seed: of the search."""
    tables = []
    for case, (nodes, slots, replicas, failures) in COUNTEREXAMPLES.items():
        for method in ("mro", "best"):
            placement = moe.place(method, replicas, [slots] * nodes, failures=failures, seed=seed)
            tables.append(drawn(case, LABELS[method], placement, failures))
    return pd.concat(tables, ignore_index=True)


def small_cases(*, sizes: Sequence[tuple[int, int]], max_experts: int, most: int, seed: int = 0) -> pd.DataFrame:
    """MRO against the best placement and the upper bound, for full slots and at least one replica of each expert.

    sizes: nodes and slots; most: cases per size, taken evenly from all in lexicographic order of their replicas
    seed:  of the search
    One row per (nodes, slots, replicas, failures): survived sets by method, of `sets`; `whole` where no group of nodes
    is cut short. The columns `keeps_` say for the case whether fewer than f failures are always survived, f being the
    fewest replicas; of `best`, with the objective at these failures and with its default.
    """
    rows = []
    for nodes, slots in sizes:
        cases = [each for experts in range(2, max_experts + 1) for each in _partitions(nodes * slots, experts)]
        for replicas in sorted(cases)[:: max(1, -(-len(cases) // most))]:
            rows += _compared(nodes, slots, replicas, seed)
    return pd.DataFrame(rows)


def hot_expert(*, ratios: Sequence[float], seeds: int, seed: int = 0) -> pd.DataFrame:
    """One layer of eight experts, one hotter than the others, on the testbed (Lazarus, figure 10b).

    ratios: load of the hot expert over the mean (`of` "mean") and over another's (`of` "another"): the paper does not
            say which it means
    seeds:  placements at random that are averaged, from `seed` on
    One row per (ratio, of, system, failures). "best" is the best at each number of failures.
    """
    rows = []
    for ratio in ratios:
        for of, hot in (("mean", 7 * ratio / (8 - ratio)), ("another", ratio)):
            loads = [1.0] * 7 + [hot]
            methods = _methods(loads, range(seed, seed + seeds))
            methods["best"] = [placed("best", loads, failures=failures) for failures in range(NODES + 1)]
            case = {"ratio": ratio, "of": of, "replicas": text(moe.allocate(loads, NODES * SLOTS, MIN_REPLICAS))}
            rows += _by_failures(case, methods, loads)
    return pd.DataFrame(rows)


def balance_and_survival(*, seeds: int, seed: int = 0) -> pd.DataFrame:
    """Balanced loads against survived failures, one layer on the testbed. One row per (loads, system, failures).

    EPLB chooses replicas too, for balance alone; the others have those of equation (1). "best" is for its default
    objective. max_load_ratio: of the most loaded node over the mean
    Loads are by Zipf's law, and 87 % on two of sixteen experts (Lazarus, figure 2).
    """
    skewed = {f"Zipf, {experts} experts": [1 / rank for rank in range(1, experts + 1)] for experts in (8, 12, 16)}
    skewed["87 % on two of 16"] = [43.5, 43.5] + [13 / 14] * 14
    rows = []
    for name, loads in skewed.items():
        methods = _methods(loads, range(seed, seed + seeds))
        methods["EPLB"] = [moe.place("eplb", allocate_balanced(loads, NODES * SLOTS), [SLOTS] * NODES, loads=loads)]
        rows += _by_failures({"loads": name}, methods, loads)
    return pd.DataFrame(rows)


def placement_time(*, sizes: Sequence[tuple[int, int, int]], repeats: int) -> pd.DataFrame:
    """Wall time of allocation and placement of one layer. One row per (nodes, slots, experts, loads, system, repeat).

    sizes: nodes, slots and experts. Even loads leave groups of MRO cut short, so that "best" has to search.
    """
    for nodes in (4, 9):  # what is compiled at first use is compiled now
        moe.place("best", [3] * (2 * nodes // 3), [2] * nodes)
    rows = []
    for nodes, slots, experts in sizes:
        for name, power in (("Zipf", 1), ("even", 0)):
            loads = [rank**-power for rank in range(1, experts + 1)]
            case = {"nodes": nodes, "slots": slots, "experts": experts, "loads": name}
            for method in ("mro", "best"):
                for repeat in range(repeats):
                    start = time.perf_counter()
                    moe.place(method, moe.allocate(loads, nodes * slots, MIN_REPLICAS), [slots] * nodes)
                    ms = 1e3 * (time.perf_counter() - start)
                    rows.append(case | {"system": LABELS[method], "repeat": repeat, "ms": ms})
    return pd.DataFrame(rows)


def _partitions(total: int, parts: int, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Ascending sequences of `parts` numbers with this sum."""
    if parts == 1:
        yield (total,)
        return
    for first in range(least, total // parts + 1):
        for rest in _partitions(total - first, parts - 1, first):
            yield (first, *rest)


def _compared(nodes: int, slots: int, replicas: tuple[int, ...], seed: int) -> list[dict[str, Any]]:
    """The rows of one case, for 1 to N - 1 failures."""
    room = [slots] * nodes
    groups = moe.mro_group_sizes(replicas, room)
    whole = len(groups) == 1 or sum(replicas[::slots]) <= nodes
    bound = moe.upper_bound(replicas, slots, nodes)
    good = {"mro": moe.mro_closed_form(groups, nodes), "spread": survived(moe.place("spread", replicas, room))}
    good["best_on_average"] = survived(moe.place("best", replicas, room, seed=seed))
    case = {"nodes": nodes, "slots": slots, "experts": len(replicas), "replicas": text(replicas)}
    case |= {"groups": text(groups), "whole": whole}
    sure = min(replicas[0], nodes) - 1  # failures that shall be survived whichever they are
    rows = []
    for failures in range(1, nodes):
        best = good["mro"] if whole else survived(moe.place("best", replicas, room, failures=failures, seed=seed))
        methods = good | {"best": best}
        row = {"failures": failures, "sets": math.comb(nodes, failures), "bound": bound[failures]}
        row |= {method: counts[failures] for method, counts in methods.items()}
        row |= {f"keeps_{method}": counts[sure] == math.comb(nodes, sure) for method, counts in methods.items()}
        rows.append(case | row)
    return rows


def _methods(loads: Sequence[float], seeds: Sequence[int]) -> dict[str, list[moe.Placement]]:
    """Placements by system: one, or as many as are averaged."""
    methods = {label: [placed(method, loads)] for method, label in LABELS.items()}
    return methods | {"random": [placed("random", loads, seed=seed) for seed in seeds]}


def _by_failures(
    case: Mapping[str, Any], methods: Mapping[str, Sequence[moe.Placement]], loads: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows by system and number of failures: the mean of its placements, or of one for each number, that number's."""
    rows = []
    for system, placements in methods.items():
        found = np.array([moe.recovery(placement).probability for placement in placements])
        ratio = np.array([placement.max_load_ratio(loads) for placement in placements])
        one_each = len(placements) == NODES + 1
        for failures in range(NODES + 1):
            which = slice(failures, failures + 1) if one_each else slice(None)
            means = {"probability": float(found[which, failures].mean()), "max_load_ratio": float(ratio[which].mean())}
            rows.append({**case, "system": system, "failures": failures, **means})
    return rows


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


def plot_small_cases(table: pd.DataFrame) -> Figure:
    """MRO against the best placement, exact, in small cases (Lazarus, theorem 1): where it is optimal for every number
    of failures, what it loses elsewhere, and how often fewer than f failures are fatal."""
    figure, axes = subplots(1, 4, height_in=2.3, width_ratios=[1, 1, 1.3, 1.1])
    cases = table.assign(optimal=100 * (table["mro"] == table["best"])).groupby(["whole", *CASE], as_index=False)
    optimal = cases["optimal"].min().pivot_table("optimal", ["whole", "nodes"], "slots")
    for ax, whole, title in zip(axes, (True, False), ("whole", "cut short"), strict=False):
        sns.heatmap(optimal.loc[whole], vmin=50, vmax=100, cmap="Blues", annot=True, fmt=".0f", cbar=False, ax=ax)
        ax.set(title=f"MRO optimal (%),\nlast group {title}", xlabel="Slots", ylabel="Nodes" if whole else "")
    behind = table[table["mro"] < table["best"]]
    lost = 100 * (behind["best"] - behind["mro"]) / behind["sets"]
    sns.histplot(x=lost, bins=list(range(0, 61, 5)), color=RED, alpha=1, ax=axes[2])
    axes[2].set(title="Cases where MRO is not", yscale="log", ylabel="Cases and failures")
    axes[2].set_xlabel("Failure sets that the best\nsurvives and MRO does not (%)")
    kept = table.drop_duplicates(CASE)[list(PROMISES.values())].set_axis(list(PROMISES), axis=1)
    broken = (100 * (1 - kept.mean())).rename("broken").rename_axis("system").reset_index()
    sns.barplot(broken, x="system", y="broken", hue="system", palette=SYSTEM_COLORS, ax=axes[3])
    for bars in axes[3].containers:
        axes[3].bar_label(bars, fmt="%.2f %%", fontsize=7)
    axes[3].set(title="Fewer than f\nfailures can be fatal", xlabel="", ylabel="Cases (%)")
    return figure


def plot_hot_expert(table: pd.DataFrame) -> Figure:
    """Recovery of one layer of 8 generated loads on 10 nodes, one expert hotter than the others (Lazarus, figure 10b).
    best is the best placement at each number of failures, random the mean of its placements."""
    rows = table[(table["ratio"] > 1) | (table["of"] == "mean")].sort_values(["of", "ratio"], ascending=[False, True])
    rows = rows.assign(case=named(rows, "{ratio:g}:1 of {of}"))
    rows["case"] = rows["case"].replace({"1:1 of mean": "even load"}).str.replace("of mean", "of the mean")
    return recovery_curves(rows, "case").figure


def plot_balance(table: pd.DataFrame) -> Figure:
    """What balance costs, one layer on 10 nodes, generated loads: recovery after three failures against the load of the
    most loaded node. EPLB also chooses its replica counts, for balance alone."""
    rows = table[table["failures"] == 3]
    sizes = dict.fromkeys(LABELS.values(), 35) | {"MRO": 100}  # best lies on it
    by: dict[str, Any] = dict.fromkeys(("hue", "style", "size"), "system")
    by |= {"x": "max_load_ratio", "y": "probability", "col": "loads"}
    grid = facets(sns.relplot, rows, sizes=sizes, markers=SYSTEM_STYLE["markers"], facet_kws={"sharex": False}, **by)
    grid.set_titles("{col_name}").set_axis_labels(
        "Most loaded node\nover the mean", "Recovery probability\nafter 3 failures"
    )
    return grid.figure


FIGURES = {
    "lazarus-fig2": Picture(
        "20_load_skew", plot_load_skew, interval="band and whiskers hold all layers, boxes half of them"
    ),
    "lazarus-fig4-5": Picture("20_worked_examples", plot_placements),
    "lazarus-counterexamples": Picture("21_counterexamples", plot_placements),
    "lazarus-theorem": Picture("21_small_cases", plot_small_cases),
    "lazarus-fig10b": Picture("21_hot_expert", plot_hot_expert),
    "lazarus-balance": Picture("21_balance", plot_balance),
}
