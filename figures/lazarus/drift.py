"""Allocation under drifting loads (notebook 24): how far a placement falls behind, and what a rebalance moves.

Shape legend: I = recorded iterations, L = layers, N = nodes, E = experts
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from artifact import elastic_moe as moe
from figures.lazarus.drawing import curves, data_of, named
from figures.lazarus.planners import EXPERT_PARAMETERS, MIN_REPLICAS, NODES, SLOTS, placed
from figures.style import BLACK, BLUE, GREEN, RED, SYSTEM_COLORS, YELLOW, Picture, facets

NEVER = math.inf  # interval of a placement that is made once only
TASKS = "DeepSeek-V2-Lite"
CASE = "{name}\n({trace})"
MAPPINGS = ("none", "greedy", "optimal")


def drift(
    *,
    traces: Sequence[str],
    intervals: Sequence[float],
    task_intervals: Sequence[float],
    systems: Sequence[str] = ("Lazarus", "EPLB"),
    failed: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Balance and recovery of a model that is placed anew at intervals, by the loads at that time.

    traces:         SmartMoE, Generated (drawn by `seed`); DeepSeek-V2-Lite on four tasks in turn comes after them
    intervals:      iterations between rebalances of the traces; task_intervals: of the tasks; once only is added
    One row per (trace, system, interval, iteration): `own` values are those of a placement by the iteration's loads,
    ratios are means over the layers, and recovery is that of the model after `failed` failures.
    """
    rows = []
    for name, job, chosen in _jobs(traces, [*intervals, NEVER], [*task_intervals, NEVER], seed):
        counts_ILE = job.loads.counts_ILE
        for system in systems:
            own = [job.planned(system, index) for index in range(len(counts_ILE))]
            own_recovery = [moe.recovery(plan.layers).probability[failed] for plan in own]
            for interval, (index, iteration) in product(chosen, enumerate(job.loads.iterations)):
                at = job.placed_at(index, interval)
                row = {"trace": job.loads.name, "name": name, "system": system, "interval": interval}
                row |= {"iteration": iteration, "max_load_ratio": own[at].ratio(counts_ILE[index])}
                row |= {"own_ratio": own[index].ratio(counts_ILE[index])}
                rows.append(row | {"recovery": own_recovery[at], "own_recovery": own_recovery[index]})
    return pd.DataFrame(rows)


def rebalances(
    *,
    traces: Sequence[str],
    intervals: Sequence[float],
    task_intervals: Sequence[float],
    systems: Sequence[str] = ("Lazarus", "EPLB"),
    seed: int = 0,
) -> pd.DataFrame:
    """What each rebalance of the same jobs sends, by how nodes are mapped to those of the new placement.

    Mapping `none`: node i becomes node i of the plan, as by a planner that knows nothing of the last plan. A state is
    that of one expert of one layer with its optimizer. Parameters as in `drift`.
    One row per (trace, system, interval, iteration, mapping): busiest_gb is the most that one node sends or receives.
    """
    rows = []
    for name, job, chosen in _jobs(traces, intervals, task_intervals, seed):
        for system, interval in product(systems, chosen):
            due = [index for index in range(len(job.loads.iterations)) if job.placed_at(index, interval) == index]
            plans = [job.planned(system, index).layers for index in due]
            order: dict[str, Any] = {mapping: list(range(job.num_nodes)) for mapping in MAPPINGS}
            for (before, after, index), mapping in product(zip(plans, plans[1:], due[1:], strict=False), MAPPINGS):
                holdings = moe.holdings_of(before, order[mapping])
                if mapping != "none":
                    order[mapping] = moe.assign_nodes(holdings, after, mapping)  # type: ignore[arg-type]
                moved = moe.transfers(holdings, after, order[mapping], job.state_bytes)
                ends = [Counter(each.source for each in moved), Counter(each.target for each in moved)]
                busiest = max(max(end.values(), default=0) for end in ends)
                held = sum(len(states) for states in moe.holdings_of(after, order[mapping]))
                row = {"trace": job.loads.name, "name": name, "system": system, "interval": interval}
                row |= {"iteration": job.loads.iterations[index], "mapping": mapping, "held_states": held}
                row |= {"moved_states": len(moved), "moved_gb": len(moved) * job.state_bytes / 1e9}
                rows.append(row | {"busiest_gb": busiest * job.state_bytes / 1e9})
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Plan:
    """A model's placements, one a layer."""

    layers: list[moe.Placement]

    @cached_property
    def _part_LNE(self) -> NDArray[np.float64]:
        """Share of an expert's load on each node, over the average node's share."""
        counts_LNE = np.stack([layer.counts_NE for layer in self.layers])
        return counts_LNE * counts_LNE.shape[1] / counts_LNE.sum(axis=1, keepdims=True)

    def ratio(self, loads_LE: NDArray[np.int64]) -> float:
        """Largest over mean load of the nodes, the mean over the layers."""
        share_LE = loads_LE / loads_LE.sum(axis=1, keepdims=True)
        return float((self._part_LNE @ share_LE[:, :, None]).max(axis=1).mean())


@dataclass(frozen=True)
class Job:
    """Loads over time, and the cluster that trains under them, with f = 2 where f is kept."""

    loads: moe.LoadTrace
    num_nodes: int
    slots: int
    state_bytes: int

    def planned(self, system: str, index: int) -> Plan:
        """The placements by the loads of one recorded iteration."""
        floor = MIN_REPLICAS if system != "EPLB" else 1
        loads_LE = self.loads.counts_ILE[index].tolist()
        options: dict[str, Any] = {"min_replicas": floor, "failure_probability": 0.01}
        return Plan([placed(system, load, self.num_nodes, self.slots, **options) for load in loads_LE])

    def placed_at(self, index: int, interval: float) -> int:
        """The recorded iteration whose loads the placement in force at another one is made by."""
        first, now = self.loads.iterations[0], self.loads.iterations[index]
        start = first if math.isinf(interval) else first + (now - first) // interval * interval
        return int(np.searchsorted(self.loads.iterations, start))


def job_of(name: str, seed: int = 0) -> Job:
    """SmartMoE: GPT-L by its trace; Generated: the same with drifting loads; DeepSeek-V2-Lite: four tasks in turn."""
    if name == TASKS:
        return Job(moe.esft_loads(), 16, 12, 14 * EXPERT_PARAMETERS[name])
    gpt, loads = moe.PRESETS["GPT-L"], moe.smartmoe_loads()
    if name == "SmartMoE":
        loads = moe.top_experts(loads, gpt.num_layers, gpt.num_experts)
    elif name == "Generated":
        times = loads.iterations
        made = moe.drifting_loads(gpt.num_layers, gpt.num_experts, len(times), skew=1, drift=0.1, seed=seed)
        loads = moe.LoadTrace(made.name, made.counts_ILE, times)
    else:
        raise ValueError(f"a trace must be SmartMoE, Generated or {TASKS}, got {name!r}")
    return Job(loads, NODES, SLOTS, int(moe.WORKLOADS["GPT-L"].expert_state_bytes))


def _jobs(
    traces: Sequence[str], intervals: Sequence[float], task_intervals: Sequence[float], seed: int
) -> Iterator[tuple[str, Job, Sequence[float]]]:
    for name in [*traces, TASKS]:
        yield name, job_of(name, seed), task_intervals if name == TASKS else intervals


def plot_drift(table: pd.DataFrame) -> Figure:
    """Largest over mean load of the nodes, mean of the layers, median of the iterations, against the interval between
    rebalances; dotted: a plan for each iteration."""
    rows = table.sort_values("interval", kind="stable")
    rows = rows.assign(interval=_interval_names(rows), case=named(rows, CASE))
    order = list(dict.fromkeys(named(table, CASE)))
    bands: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 80)}
    labels = ("Iterations between rebalances", "Largest over mean load")
    bands |= {"col_order": order, "facet_kws": {"sharex": False}}
    grid = curves(rows, "interval", "max_load_ratio", "case", *labels, **bands).set(ylim=(1, None))
    for case, ax in grid.axes_dict.items():
        for system, own in rows[rows["case"] == case].groupby("system")["own_ratio"]:
            ax.axhline(own.median(), color=SYSTEM_COLORS[str(system)], linestyle=":", linewidth=0.9)
        ax.tick_params(axis="x", rotation=45)
    return grid.figure


def plot_drift_over_time(table: pd.DataFrame) -> Figure:
    """Largest over mean load at each iteration of the first trace, mean of the layers, with Lazarus's plans of some
    intervals."""
    rows = table[(table["name"] == table["name"].iloc[0]) & (table["system"] == "Lazarus") & (table["interval"] >= 200)]
    rows = rows.sort_values("interval", ascending=False, kind="stable")
    own = rows[np.isinf(rows["interval"])]
    own = own.assign(max_load_ratio=own["own_ratio"], interval="at each iteration")
    rows = pd.concat([rows.assign(interval=[f"every {name}" for name in _interval_names(rows)]), own])
    rows["interval"] = rows["interval"].replace("every never", "never again")
    colors = dict(zip(rows["interval"].unique(), (RED, YELLOW, GREEN, BLUE), strict=False))
    axes: dict[str, Any] = {"x": "iteration", "y": "max_load_ratio", "hue": "interval"}
    palette = colors | {"at each iteration": BLACK}
    grid = facets(sns.relplot, rows, kind="line", height_in=2.1, linewidth=0.9, palette=palette, **axes)
    grid.set(ylim=(1, None), title=f"{rows['name'].iloc[0]} ({data_of(rows)}), Lazarus")
    grid.set_axis_labels("Iteration", "Largest over mean load")
    return grid.figure


def plot_rebalances(table: pd.DataFrame) -> Figure:
    """Expert states that rebalances move, of all that nodes hold, by the interval, the system and the mapping of old to
    new nodes; all rebalances together."""
    rows = table.assign(plan=table["system"] + ", " + table["mapping"], case=named(table, CASE))
    keys = ["case", "interval", "plan"]
    rows = rows.groupby(keys, sort=False)[["moved_states", "held_states"]].sum().reset_index()
    rows["moved_pct"] = 100 * rows["moved_states"] / rows["held_states"]
    colors: dict[str, Any] = {
        f"{system}, {mapping}": color
        for system in table["system"].unique()
        for mapping, color in zip(MAPPINGS, sns.light_palette(SYSTEM_COLORS[system], 4)[1:], strict=True)
    }
    rows = rows.sort_values("interval", kind="stable")
    rows["interval"] = _interval_names(rows)
    axes: dict[str, Any] = {"x": "interval", "y": "moved_pct", "col": "case", "hue": "plan", "sharex": False}
    orders: dict[str, Any] = {"col_order": list(dict.fromkeys(named(table, CASE))), "hue_order": list(colors)}
    grid = facets(sns.catplot, rows, kind="bar", saturation=1, palette=colors, **axes, **orders)
    grid.set_titles("{col_name}").set_axis_labels("Iterations between rebalances", "Expert states moved (%)")
    return grid.figure


def _interval_names(table: pd.DataFrame) -> list[str]:
    return [f"{interval:g}" if np.isfinite(interval) else "never" for interval in table["interval"]]


def eplb_reshuffle_pct(table: pd.DataFrame) -> float:
    """Share of all states held that EPLB's plans move when the task changes, in %."""
    rows = table.query("trace == 'esft' and interval == 8 and system == 'EPLB' and mapping == 'none'")
    return float(100 * rows["moved_states"].sum() / rows["held_states"].sum()) if len(rows) else math.nan


FIGURES = {
    "lazarus-drift": Picture("24_drift", plot_drift, interval="bands hold 80 % of the iterations"),
    "lazarus-drift-over-time": Picture("24_drift", plot_drift_over_time),
    "lazarus-rebalances": Picture("24_rebalances", plot_rebalances),
}
