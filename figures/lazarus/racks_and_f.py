"""Correlated failures, and how large f should be (notebook 23).

Shape legend: L = layers, E = experts, N = nodes, K = numbers of failed nodes
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom, poisson

from artifact import elastic_moe as moe
from artifact.elastic_moe.failures import INFINITEHBD_NODES
from figures.lazarus.alignment import align
from figures.lazarus.drawing import SYSTEM_STYLE, curves, legend, named
from figures.lazarus.planners import LABELS, MIN_REPLICAS, loads_of, placed
from figures.style import BLACK, CYCLE, SYSTEM_COLORS, Picture, facets

P3_HOURS, INFINITEHBD_HOURS = 684 / 60, 348.0 * 24
SCATTERED = "MRO, as many nodes anywhere"
TRACE_MARKERS = {"p3": "s", "infinitehbd": "D"}
CLUSTER = "{model}, {nodes} nodes\n({loads})"


def rack_failures(
    *,
    clusters: Sequence[tuple[str, int, int, int]],
    methods: Sequence[str],
    min_replicas: int = MIN_REPLICAS,
    seeds: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Recovery when whole racks fail, their nodes being adjacent in the placement's order or strided.

    clusters: (model, nodes, slots, nodes of a rack); seeds: of the random placement, from `seed` on
    One row per (model, nodes, layers, system, seed, racks, failed_racks): `scattered` is the recovery when as many
    nodes fail, anywhere.
    """
    rows = []
    for model, nodes, slots, rack_nodes in clusters:
        name, loads_LE = loads_of(model)
        num_racks = nodes // rack_nodes
        racks = {
            "adjacent": [range(start, start + rack_nodes) for start in range(0, nodes, rack_nodes)],
            "strided": [range(start, nodes, num_racks) for start in range(num_racks)],
        }
        for num_layers, method in product((1, len(loads_LE)), methods):
            for drawn in range(seed, seed + (seeds if method == "random" else 1)):
                layers = [
                    placed(method, load, nodes, slots, min_replicas, seed=layer)
                    for layer, load in enumerate(loads_LE[:num_layers].tolist(), start=1000 * drawn)
                ]
                scattered = moe.recovery(layers).probability[::rack_nodes]
                case = {"loads": name, "model": model, "nodes": nodes, "layers": num_layers, "system": LABELS[method]}
                for arrangement, domains in racks.items():
                    for failed, probability in enumerate(moe.domain_recovery(layers, domains)):
                        row = {**case, "seed": drawn, "racks": arrangement, "failed_racks": failed}
                        rows.append({**row, "recovery": probability, "scattered": scattered[failed]})
    return pd.DataFrame(rows)


def losses_at_once(*, caps: Sequence[int | None] = (None, 10)) -> pd.DataFrame:
    """How many nodes the traces lose in one minute, beside what as many losses would give if they came independently.

    caps: of the spot trace p3, all of whose nodes are used without one
    One row per (trace, nodes_lost).
    """
    kept = {"InfiniteHBD, 400 servers": (moe.infinitehbd_failures(), INFINITEHBD_HOURS)}
    for cap in caps:
        kept["p3, all instances" if cap is None else f"p3, {cap} in use"] = (moe.spot_failures(cap=cap), P3_HOURS)
    rows = []
    for label, (trace, hours) in kept.items():
        instants = _instants(trace)
        minutes, losses = 60 * hours, sum(size * count for size, count in instants.items())
        for size in range(1, max(instants) + 1):
            row = {"trace": trace.name, "label": label, "nodes_lost": size, "instants": instants[size]}
            rows.append({**row, "independent": minutes * poisson.pmf(size, losses / minutes)})
    return pd.DataFrame(rows)


def choosing_f(
    *,
    clusters: Sequence[tuple[str, int, int]],
    systems: Sequence[str],
    min_replicas: Sequence[int],
    rates_per_hour: Sequence[float],
    window_s: float = 60.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Balance and survival of whole models, all layers placed and aligned, by f; f above what fits is left out.

    Nodes that fail before the last failure is dealt with fail at once. Processes: `independent`, each node at a rate,
    what fails within `window_s` being at once; `p3`, the spot trace at a cap of as many nodes; `infinitehbd`, the
    cluster being as many of its 400 servers, drawn at random.
    clusters: (model, nodes, slots); seed: of the search for aligned orders
    One row per (model, nodes, slots, system, min_replicas, process, rate_per_hour): loss is the probability that an
    expert is lost at one time at which nodes may fail, and hours the mean time until that.
    """
    rows = []
    for model, nodes, slots in clusters:
        name, loads_LE = loads_of(model)
        losses: dict[tuple[moe.Placement, ...], NDArray[np.float64]] = {}  # systems often place alike
        floors = [floor for floor in min_replicas if floor * len(loads_LE[0]) <= nodes * slots]
        for floor, system in product(floors, systems):
            options: dict[str, Any] = {"min_replicas": floor, "failure_probability": 0.01}
            layers = tuple(placed(system, load, nodes, slots, **options) for load in loads_LE.tolist())
            ratio = np.mean([layer.max_load_ratio(load) for layer, load in zip(layers, loads_LE.tolist(), strict=True)])
            if layers not in losses:
                losses[layers] = _loss_by_failures(align(layers, failure_probability=0.01, seed=seed))
            loss_K = losses[layers]
            case = {"loads": name, "model": model, "nodes": nodes, "slots": slots, "system": system}
            case |= {"min_replicas": floor, "max_load_ratio": ratio, "survives_one": 1 - loss_K[1]}
            for process, rate, per_hour, chance_K in _processes(nodes, rates_per_hour, window_s):
                loss = math.fsum(chance_K * loss_K)
                hours = 1 / (per_hour * loss) if loss else math.inf
                rows.append({**case, "process": process, "rate_per_hour": rate, "loss": loss, "hours": hours})
    return pd.DataFrame(rows)


def _loss_by_failures(layers: Sequence[moe.Placement]) -> NDArray[np.float64]:
    """[N + 1], probability that k failures lose an expert; without the rounding of one less a probability."""
    found = moe.recovery(layers)
    if found.good is None:
        return 1 - np.array(found.probability)
    every = (math.comb(layers[0].num_nodes, failed) for failed in range(layers[0].num_nodes + 1))
    return np.array([(whole - good) / whole for whole, good in zip(every, found.good, strict=True)])


def _processes(
    num_nodes: int, rates_per_hour: Sequence[float], window_s: float
) -> Iterator[tuple[str, float, float, NDArray[np.float64]]]:
    """Name, rate of a node, times an hour at which nodes may fail, and the chances of 0..N failures at such a time."""
    failed_K = np.arange(num_nodes + 1)
    for rate in rates_per_hour:
        chance_K = binom.pmf(failed_K, num_nodes, -math.expm1(-rate * window_s / 3600))
        yield "independent", rate, 3600 / window_s, chance_K
    spot, servers = _instants(moe.spot_failures(cap=num_nodes)), _instants(moe.infinitehbd_failures())
    total, lost = spot.total(), sum(spot.elements())
    chance_K = np.array([spot[failed] / total for failed in range(num_nodes + 1)])
    yield "p3", lost / num_nodes / P3_HOURS, total / P3_HOURS, chance_K
    total, lost = servers.total(), sum(servers.elements())
    shares = {size: count / total for size, count in servers.items()}
    hit_K = sum(share * hypergeom.pmf(failed_K, INFINITEHBD_NODES, size, num_nodes) for size, share in shares.items())
    yield "infinitehbd", lost / INFINITEHBD_NODES / INFINITEHBD_HOURS, total / INFINITEHBD_HOURS, np.asarray(hit_K)


def _instants(trace: moe.FailureTrace) -> Counter[int]:
    """Nodes that fail in one minute -> number of such minutes."""
    return Counter(len(event.nodes) for event in trace.events if event.kind == "fail")


def plot_racks(table: pd.DataFrame) -> Figure:
    """Recovery of all layers when whole racks fail, whose nodes are neighbours in the plan's order or dealt round the
    racks, f = 2; random is the mean of its placements."""
    rows = table[table["layers"] > 1]
    anywhere = rows[rows["system"] == "MRO"].assign(system=SCATTERED, recovery=lambda rows: rows["scattered"])
    rows = pd.concat([rows, anywhere]).sort_values(["nodes", "racks"], kind="stable")
    rows["case"] = named(rows, "{model} ({loads})\n{nodes} nodes, {racks} racks")
    palette = SYSTEM_COLORS | {SCATTERED: BLACK}
    markers, dashes = (SYSTEM_STYLE[name] | {SCATTERED: each} for name, each in (("markers", "."), ("dashes", (1, 1))))
    style = {"palette": palette, "markers": markers, "dashes": dashes, "errorbar": None}
    labels = ("Racks that fail", "Recovery probability")
    grid = curves(rows, "failed_racks", "recovery", "case", *labels, facet_kws={"sharex": False}, **style)
    for ax in grid.axes.flat:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return grid.figure


def plot_losses_at_once(table: pd.DataFrame) -> Figure:
    """Minutes of two failure traces by the number of nodes lost in them (bars), and how many there would be if the same
    losses came independently."""
    bars: dict[str, Any] = {"kind": "bar", "color": CYCLE[0], "saturation": 1, "native_scale": True}
    grid = facets(sns.catplot, table, x="nodes_lost", y="instants", col="label", sharex=False, **bars)
    dash: dict[str, Any] = {"marker": "_", "markersize": 9, "markeredgewidth": 1.5, "color": CYCLE[1]}
    for label, ax in grid.axes_dict.items():
        expected = table[(table["label"] == label) & (table["independent"] > 0.05)]
        ax.plot(expected["nodes_lost"], expected["independent"], linestyle="", label="if independent", **dash)
        ax.set(yscale="log", ylim=(0.05, 1000))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid.set_titles("{col_name}").set_axis_labels("Nodes lost in one minute", "Minutes of the trace")
    grid.axes.flat[0].containers[0].set_label("trace")
    legend(grid.figure, grid.axes.flat[0].containers[0], grid.axes.flat[0].get_lines()[-1])
    return grid.figure


def plot_choosing_f(table: pd.DataFrame) -> Figure:
    """What f gives and what it costs, all layers aligned: hours to a lost expert while nodes fail independently, at the
    middle one of the table's rates, and the load of the most loaded node."""
    rows = table[table["process"] == "independent"]
    rows = rows[rows["rate_per_hour"] == rows["rate_per_hour"].median()]
    rows = rows.assign(case=named(rows, CLUSTER))
    rows = rows.melt(["case", "system", "min_replicas"], ["hours", "max_load_ratio"], var_name="measure")
    options = {"row": "measure", "height_in": 3.8, "facet_kws": {"sharey": "row", "sharex": "col"}}
    grid = curves(rows, "min_replicas", "value", "case", "f, least replicas", **options).set_titles("")
    for ax, title in zip(grid.axes[0], grid.col_names, strict=True):
        ax.set(title=title, yscale="log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid.axes[0, 0].set_ylabel("Hours to a lost expert")
    grid.axes[1, 0].set_ylabel("Largest over mean load")
    return grid.figure


def plot_time_to_loss(table: pd.DataFrame) -> Figure:
    """Hours to a lost expert with the best placement of the table (best, or else Lazarus's), by the rate of independent
    failures and f. Open marks: nodes fail together as in the spot trace p3 and in InfiniteHBD."""
    system = "best" if "best" in set(table["system"]) else "Lazarus"
    rows = table[table["system"] == system].assign(f="f = " + table["min_replicas"].astype(str))
    rows["case"] = named(rows, CLUSTER)
    alone = rows[rows["process"] == "independent"]
    colors = dict(zip(sorted(rows["f"].unique()), CYCLE, strict=False))
    grid = facets(sns.relplot, alone, kind="line", x="rate_per_hour", y="hours", col="case", hue="f", palette=colors)
    for case, ax in grid.axes_dict.items():
        points = rows[(rows["case"] == case) & rows["process"].isin(TRACE_MARKERS) & np.isfinite(rows["hours"])]
        for process, f, rate, hours in points[["process", "f", "rate_per_hour", "hours"]].to_numpy():
            ax.plot(rate, hours, TRACE_MARKERS[process], mfc="none", color=colors[f])
        ax.set(xscale="log", yscale="log", ylim=(0.1, 1e12))
        ax.yaxis.set_minor_formatter(NullFormatter())
    grid.set_titles("{col_name}").set_axis_labels("Failures a node and hour", "Hours to a lost expert")
    style: dict[str, Any] = {"linestyle": "none", "color": BLACK, "markerfacecolor": "none"}
    marks = [Line2D([], [], marker=mark, label=f"as in {name}", **style) for name, mark in TRACE_MARKERS.items()]
    legend(grid.figure, *marks)
    return grid.figure


FIGURES = {
    "lazarus-racks": Picture("23_racks", plot_racks),
    "lazarus-losses-at-once": Picture("23_losses_at_once", plot_losses_at_once),
    "lazarus-choosing-f": Picture("23_choosing_f", plot_choosing_f),
    "lazarus-time-to-loss": Picture("23_choosing_f", plot_time_to_loss),
}
