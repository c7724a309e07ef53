"""Figures of the simulations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import claims
from figures.style import BLUE, COLUMN_WIDTH_IN, CYCLE, GREY, RED, SYSTEM_COLORS, paper_mark, subplots

LAYER_COLORS = {"attention": RED, "SSM": BLUE, "MLP": GREY}


def _rate_lines(ax: Axes, table: pd.DataFrame, x: str) -> None:
    for system, rows in table.groupby("system", sort=False):
        rows = rows.sort_values(x)
        ax.plot(rows[x], rows["token_hit_rate_pct"], marker="o", label=system, color=SYSTEM_COLORS[str(system)])
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Token hit rate (%)")


def _legend(figure: Figure, ax: Axes) -> None:
    """One legend above all panels, so that it covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6))


def _panels(count: int, columns: int, height_in: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A grid of `count` panels; places left over are blank."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = subplots(rows, columns, height_in=height_in * rows, squeeze=False, **options)
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, list(axes.flat[:count])


def _spread(ax: Axes, groups: dict[str, np.ndarray], colors: list[str]) -> None:
    """Box of 25 to 75 %, whiskers at 5 and 95 %, mean as a dot, as in the paper (percentiles interpolated)."""
    stats = []
    for label, values in groups.items():
        low, first, median, third, high = np.percentile(values, [5, 25, 50, 75, 95])
        box = {"label": label, "whislo": low, "q1": first, "med": median, "q3": third, "whishi": high}
        stats.append({**box, "mean": values.mean(), "fliers": []})
    boxes = ax.bxp(
        stats,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        widths=0.5,
        meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 3},
        medianprops={"color": "black"},
    )
    for patch, color in zip(boxes["boxes"], colors, strict=True):
        patch.set_facecolor(color)
        patch.set_alpha(0.6)


def _tree_places(nodes: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """Where each node is drawn: leaves side by side, a parent above the middle of its children."""
    children: dict[Any, list[Any]] = {node: [] for node in nodes.index}
    for node, parent in nodes["parent"].items():
        if node:
            children[int(parent)].append(node)
    places: dict[int, tuple[float, float]] = {}
    leaves = 0

    def place(node: int, level: int) -> float:
        nonlocal leaves
        below = [place(child, level + 1) for child in children[node]]
        leaves += not below
        x = float(np.mean(below)) if below else float(leaves)
        places[node] = (x, -float(level))
        return x

    place(0, 0)
    return places


def plot_tree(table: pd.DataFrame) -> Figure:
    """The tree after each operation: a dot for each checkpoint, its edge's tokens above, its age beside."""
    steps = sorted(table["step"].unique())
    figure, axes = _panels(len(steps), 2, 1.75)
    for ax, step in zip(axes, steps, strict=True):
        nodes = table[table["step"] == step].set_index("node")
        places = _tree_places(nodes)
        for node, (x, y) in places.items():
            ax.scatter([x], [y], s=40, color=BLUE if node else GREY, zorder=2)
            if node:
                px, py = places[int(nodes.loc[node, "parent"])]
                ax.plot([px, x], [py, y], color="#999999", linewidth=1, zorder=1)
                white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                edge, age = nodes.loc[node, "edge"], f"  age {nodes.loc[node, 'age']}"
                ax.annotate(edge, (x, y + 0.33), ha="center", va="center", fontsize=6, bbox=white, zorder=3)
                ax.annotate(age, (x, y), ha="left", va="center", fontsize=5.5)
        first = nodes.iloc[0]
        reused = f", reuses {first['reused_tokens']} tokens" if first["operation"].startswith("lookup") else ""
        ax.set_title(f"{step + 1}. {first['operation']}{reused}", loc="left")
        ax.set_xlim(0.4, max(x for x, _ in places.values()) + 0.8)
        ax.set_ylim(min(y for _, y in places.values()) - 0.4, 0.4)
        ax.axis("off")
    return figure


def plot_state_sizes(table: pd.DataFrame) -> Figure:
    """Bytes of one cached sequence by checkpoint spacing, against a Transformer (figures 1c and 3b)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    hybrid = table[table["spec"] == "marconi-7b"]
    for color, (block, rows) in zip(CYCLE, hybrid.groupby("block_size"), strict=False):
        label = "Hybrid, one checkpoint" if block == 0 else f"Hybrid, every {block} tokens"
        ax.plot(rows["length_tokens"], rows["total_gb"], label=label, color=color)
    rows = table[table["spec"] == "transformer-7b"]
    ax.plot(rows["length_tokens"], rows["total_gb"], label="Transformer", color="black", linestyle="--")
    paper_mark(ax, x=10_000, y=claims.get("marconi-fig3b-gb").paper, label="paper")
    ax.set(xlabel="Sequence length (tokens)", ylabel="States of one sequence (GB)", ylim=(0, None))
    ax.legend()
    return figure


def plot_flop_efficiency(table: pd.DataFrame) -> Figure:
    """FLOPs saved for each cached byte against length (figure 5)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.3)
    labels = {"mamba-7b": "Mamba", "marconi-7b": "Hybrid", "transformer-7b": "Transformer"}
    chosen = table[(table["block_size"] == 0) & (table["length_tokens"] <= 2048)]
    for color, (spec, label) in zip(CYCLE, labels.items(), strict=False):
        rows = chosen[chosen["spec"] == spec]
        ax.plot(rows["length_tokens"], rows["flops_per_byte"], label=label, color=color)
    ax.set(xlabel="Sequence length (tokens)", ylabel="FLOPs saved per byte", ylim=(0, None))
    ax.legend()
    return figure


def plot_layer_flops(table: pd.DataFrame) -> Figure:
    """Share of the prefill's FLOPs by kind of layer (figure 14), for each model."""
    specs = list(table["spec"].unique())
    figure, axes = subplots(1, len(specs), height_in=2.2, sharey=True, squeeze=False)
    for ax, spec in zip(axes.flat, specs, strict=True):
        shares = table[table["spec"] == spec].pivot(index="length_tokens", columns="layer", values="flops")
        shares = 100 * shares.div(shares.sum(axis=1), axis=0)
        bottom = np.zeros(len(shares))
        for layer, color in LAYER_COLORS.items():
            ax.bar(shares.index.astype(str), shares[layer], bottom=bottom, label=layer, color=color)
            bottom += shares[layer].to_numpy()
        ax.set_title(spec)
        ax.tick_params(axis="x", rotation=60)
    axes.flat[0].set_ylabel("Share of FLOPs (%)")
    _legend(figure, axes.flat[0])
    figure.supxlabel("Sequence length (tokens)", fontsize=8)
    return figure


def plot_block_reuse(table: pd.DataFrame) -> Figure:
    """Share of admitted blocks whose KV and whose state is ever reused (figure 3a)."""
    traces = list(table["trace"].unique())
    figure, axes = _panels(len(traces), 2, 2.0)
    for ax, trace in zip(axes, traces, strict=True):
        rows = table[table["trace"] == trace].sort_values("block_size")
        place = np.arange(len(rows))
        for shift, part, label, color in ((-0.2, "kv", "KV", RED), (0.2, "state", "SSM state", BLUE)):
            bars = ax.bar(place + shift, rows[f"{part}_reused_pct"], 0.4, label=label, color=color)
            ax.bar_label(bars, fmt="%.2g", fontsize=6)
        ax.set_xticks(place, rows["block_size"].astype(str))
        ax.set(title=trace, xlabel="Block size (tokens)", ylabel="Blocks reused (%)")
    _legend(figure, axes[0])
    return figure


def plot_request_lengths(table: pd.DataFrame) -> Figure:
    """Histograms of input and output lengths (figure 6)."""
    traces = list(table["trace"].unique())
    figure, axes = subplots(2, len(traces), height_in=3.2, squeeze=False)
    for column, trace in enumerate(traces):
        rows = table[table["trace"] == trace]
        for row, (name, color) in enumerate((("input_tokens", BLUE), ("output_tokens", RED))):
            ax = axes[row, column]
            ax.hist(rows[name], bins=30, color=color)
            ax.set_xlabel(f"{name.split('_')[0].capitalize()} length (tokens)")
        axes[0, column].set_title(trace)
    for ax in axes[:, 0]:
        ax.set_ylabel("Requests")
    return figure


def _paper_sweep(table: pd.DataFrame, value: str, fidelity: str) -> pd.DataFrame:
    rows = table[table["fidelity"] == fidelity]
    return rows.pivot(index=["sessions_per_s", "capacity_gb"], columns="system", values=value)


def plot_token_hit_rate(table: pd.DataFrame) -> Figure:
    """Token hit rate over all configurations, vLLM+ and Marconi, as published and corrected (figure 7)."""
    figure, axes = subplots(1, 2, height_in=2.4, sharey=True)
    for ax, fidelity in zip(axes, ("published", "corrected"), strict=True):
        rates = _paper_sweep(table, "token_hit_rate_pct", fidelity)
        systems = ["vLLM+", "SGLang+", "Marconi"]
        _spread(ax, {s: rates[s].to_numpy() for s in systems}, [SYSTEM_COLORS[s] for s in systems])
        ax.set_title(f"fidelity {fidelity}")
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("Token hit rate (%)\nbox 25-75 %, whiskers 5-95 %")
    return figure


def plot_win_over_sglang(table: pd.DataFrame) -> Figure:
    """Marconi's token hit rate over SGLang+'s, all configurations (figure 8)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.4)
    wins = {}
    for fidelity in ("published", "corrected"):
        rates = _paper_sweep(table, "token_hit_rate_pct", fidelity)
        wins[fidelity] = (100 * (rates["Marconi"] / rates["SGLang+"] - 1)).to_numpy()
    _spread(ax, wins, [CYCLE[0], CYCLE[4]])
    paper_mark(ax, y=claims.get("marconi-fig8-sharegpt").paper, label="paper's P95")
    ax.set_ylabel("Win over SGLang+ (%)\nbox 25-75 %, whiskers 5-95 %")
    ax.legend()
    return figure


def plot_ttft(table: pd.DataFrame) -> Figure:
    """Distribution over configurations of the P95 time to first token, relative to no cache (figure 9)."""
    figure, axes = subplots(1, 2, height_in=2.4, sharey=True)
    for ax, fidelity in zip(axes, ("published", "corrected"), strict=True):
        times = _paper_sweep(table, "ttft_p95_ms", fidelity)
        for system in ("vLLM+", "SGLang+", "Marconi"):
            relative = np.sort((times[system] / times["Vanilla"]).to_numpy())
            ax.step(
                relative,
                np.arange(1, len(relative) + 1) / len(relative),
                where="post",
                label=system,
                color=SYSTEM_COLORS[system],
            )
        ax.set(
            title=f"fidelity {fidelity}",
            xlabel="P95 time to first token, relative to no cache",
            ylim=(0, 1.02),
        )
    axes[0].set_ylabel("Share of configurations")
    _legend(figure, axes[0])
    return figure


def plot_hit_rate_by_length(table: pd.DataFrame) -> Figure:
    """Hit rate by input length, and the distribution of the time to first token, by capacity (figure 10)."""
    capacities = list(table["capacity_gb"].unique())
    figure, axes = subplots(len(capacities), 2, height_in=2.2 * len(capacities), squeeze=False)
    for (by_length, by_time), capacity in zip(axes, capacities, strict=True):
        rows = table[table["capacity_gb"] == capacity]
        middle = (rows["input_tokens"] // 1000) * 1000 + 500
        sums = rows.groupby(["system", middle])[["hit_tokens", "input_tokens"]].sum()
        rate = 100 * sums["hit_tokens"] / sums["input_tokens"]
        for system in ("SGLang+", "Marconi"):
            by_length.plot(rate[system].index, rate[system], label=system, color=SYSTEM_COLORS[system])
            times = np.sort(rows.loc[rows["system"] == system, "ttft_ms"].to_numpy())
            by_time.plot(times, np.arange(1, len(times) + 1) / len(times), color=SYSTEM_COLORS[system])
        title = f"{rows['trace'].iloc[0]}, {capacity:g} GB"
        by_length.set(xlabel="Input length (tokens, bins of 1,000)", ylabel="Token hit rate (%)", ylim=(0, 101))
        by_length.set_title(title)
        by_time.set(xlabel="Time to first token (ms)", ylabel="Share of requests", ylim=(0, 1.02), title=title)
    _legend(figure, axes[0, 0])
    return figure


def plot_contention(table: pd.DataFrame) -> Figure:
    """Token hit rate against the cache's capacity (figure 11)."""
    traces = list(table["trace"].unique())
    figure, axes = subplots(1, len(traces), height_in=2.4, squeeze=False)
    for ax, trace in zip(axes.flat, traces, strict=True):
        _rate_lines(ax, table[table["trace"] == trace], "capacity_gb")
        ax.set(title=trace, xlabel="Capacity (GB)")
    _legend(figure, axes.flat[0])
    return figure


def plot_arrival(table: pd.DataFrame) -> Figure:
    """Token hit rate against the rate of sessions and the response time (figure 13)."""
    traces = list(table["trace"].unique())
    figure, axes = subplots(len(traces), 2, height_in=2.2 * len(traces), squeeze=False)
    labels = {"sessions_per_s": "Sessions per second", "response_time_s": "Mean response time (s)"}
    for line, trace in zip(axes, traces, strict=True):
        for ax, varied in zip(line, labels, strict=True):
            _rate_lines(ax, table[(table["trace"] == trace) & (table["varied"] == varied)], varied)
            ax.set(title=trace, xlabel=labels[varied])
    _legend(figure, axes.flat[0])
    return figure


def _bars_by(table: pd.DataFrame, column: str, xlabel: str) -> Figure:
    fidelities = list(table["fidelity"].unique())
    figure, axes = subplots(1, len(fidelities), height_in=2.4, sharey=True, squeeze=False)
    for ax, fidelity in zip(axes.flat, fidelities, strict=True):
        rates = table[table["fidelity"] == fidelity].pivot_table(
            index=column, columns="system", values="token_hit_rate_pct", sort=False
        )
        width = 0.8 / len(rates.columns)
        for position, (system, heights) in enumerate(rates.items()):
            shift = (position - (len(rates.columns) - 1) / 2) * width
            ax.bar(np.arange(len(rates)) + shift, heights, width, label=system, color=SYSTEM_COLORS[str(system)])
        ax.set_xticks(np.arange(len(rates)), [str(value) for value in rates.index])
        ax.set(title=f"{table['trace'].iloc[0]}, fidelity {fidelity}", xlabel=xlabel)
    axes.flat[0].set_ylabel("Token hit rate (%)")
    _legend(figure, axes.flat[0])
    return figure


def plot_composition(table: pd.DataFrame) -> Figure:
    """Token hit rate by composition of layers (figure 12a)."""
    return _bars_by(table[table["varied"] == "layers"], "layers", "(SSM, attention) layers")


def plot_state_dim(table: pd.DataFrame) -> Figure:
    """Token hit rate by state dimension (figure 12b)."""
    return _bars_by(table[table["varied"] == "d_state"], "d_state", "State dimension N")


def plot_corrections(table: pd.DataFrame) -> Figure:
    """Each correction alone and all but each: change of the hit rate, and excess over capacity; means and ranges."""
    labels = list(dict.fromkeys(table["correction"]))
    figure, axes = subplots(1, 2, height_in=3.6, sharey=True)
    place = np.arange(len(labels))[::-1].astype(float)
    index = ["system", "sessions_per_s", "capacity_gb"]
    published = table[table["fidelity"] == "published"].set_index(index)["token_hit_rate_pct"]
    values = table.join(published.rename("published_pct"), on=index)
    values["change"] = values["token_hit_rate_pct"] - values["published_pct"]
    values["over_gb"] = (values["peak_gb"] - values["capacity_gb"]).clip(lower=0)
    panels = (("change", "Token hit rate against none (points)"), ("over_gb", "Peak bytes over capacity (GB)"))
    for ax, (column, label) in zip(axes, panels, strict=True):
        for shift, system in zip((0.2, 0.0, -0.2), table["system"].unique(), strict=True):
            groups = values[values["system"] == system].groupby("correction")[column]
            low, mean, high = (groups.agg(how).reindex(labels).to_numpy() for how in ("min", "mean", "max"))
            color = SYSTEM_COLORS[system]
            ax.hlines(place + shift, low, high, color=color, linewidth=0.8)
            ax.plot(mean, place + shift, "o", label=system, color=color)
        ax.set_xlabel(f"{label}\nmean and range over configurations")
    axes[0].set_yticks(place, labels)
    _legend(figure, axes[0])
    return figure


def plot_presets(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity for realistic models."""
    specs = list(table["spec"].unique())
    figure, axes = _panels(len(specs), 3, 1.9, sharey=True)
    for ax, spec in zip(axes, specs, strict=True):
        _rate_lines(ax, table[table["spec"] == spec], "capacity_gb")
        ax.set(title=spec, xlabel="Capacity (GB)", xscale="log")
        ax.label_outer()
        ax.set_xlabel("Capacity (GB)")
    _legend(figure, axes[0])
    return figure


def plot_bounds(table: pd.DataFrame) -> Figure:
    """Token hit rate of every policy and bound against capacity, a panel per trace."""
    traces = list(table["trace"].unique())
    figure, axes = _panels(len(traces), 3, 2.0)
    for ax, trace in zip(axes, traces, strict=True):
        _rate_lines(ax, table[table["trace"] == trace], "capacity_gb")
        ax.set(title=trace, xlabel="Capacity (GB)")
    _legend(figure, axes[0])
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "marconi-idea": ("10_prefix_cache_idea", plot_tree),
    "marconi-fig1c-3b": ("11_state_sizes", plot_state_sizes),
    "marconi-fig5": ("11_state_sizes", plot_flop_efficiency),
    "marconi-fig14": ("11_layer_costs", plot_layer_flops),
    "marconi-fig3a": ("12_block_reuse", plot_block_reuse),
    "marconi-fig6": ("12_request_lengths", plot_request_lengths),
    "marconi-fig7": ("13_policies", plot_token_hit_rate),
    "marconi-fig8": ("13_policies", plot_win_over_sglang),
    "marconi-fig9": ("13_policies", plot_ttft),
    "marconi-fig10": ("14_fine_grained", plot_hit_rate_by_length),
    "marconi-fig11": ("15_contention", plot_contention),
    "marconi-fig13": ("15_arrival", plot_arrival),
    "marconi-fig12a": ("16_layers", plot_composition),
    "marconi-fig12b": ("16_layers", plot_state_dim),
    "marconi-corrections": ("17_corrections", plot_corrections),
    "marconi-presets": ("18_presets", plot_presets),
    "marconi-bounds": ("19_bounds", plot_bounds),
}
