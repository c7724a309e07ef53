"""Figures of Marconi's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact import claims
from artifact.figures import BLUE, COLUMN_WIDTH_IN, CYCLE, GREY, RED, SYSTEM_COLORS, paper_mark, subplots

LAYER_COLORS = {"attention": RED, "SSM": BLUE, "MLP": GREY}


def _rate_lines(ax: Axes, table: pd.DataFrame, x: str) -> None:
    for system, rows in table.groupby("system", sort=False):
        rows = rows.sort_values(x)
        ax.plot(rows[x], rows["token_hit_rate_pct"], marker="o", label=system, color=SYSTEM_COLORS[str(system)])
    ax.set_ylim(bottom=0)
    ax.set_ylabel("Token hit rate (%)")


def _spread(ax: Axes, groups: dict[str, np.ndarray], colors: list[str]) -> None:
    """Box of 25 to 75 %, whiskers at 5 and 95 %, mean as a dot, as in the paper."""
    boxes = ax.boxplot(
        list(groups.values()),
        tick_labels=list(groups),
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        widths=0.5,
        meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 3},
        medianprops={"color": "black"},
    )
    for box, color in zip(boxes["boxes"], colors, strict=True):
        box.set_facecolor(color)
        box.set_alpha(0.6)


def plot_tree(table: pd.DataFrame) -> Figure:
    """The tree after each operation: a node per checkpoint, its edge's tokens and its age."""
    steps = sorted(table["step"].unique())
    columns = min(3, len(steps))
    rows = -(-len(steps) // columns)
    figure, axes = subplots(rows, columns, height_in=1.9 * rows, squeeze=False)
    for ax in axes.flat[len(steps) :]:
        ax.axis("off")
    for ax, step in zip(axes.flat, steps, strict=False):
        nodes = table[table["step"] == step].set_index("node")
        children = {n: list(nodes.index[nodes["parent"] == n]) for n in nodes.index}
        places: dict[int, tuple[float, int]] = {}
        leaves = 0

        def place(node: int, level: int) -> float:
            nonlocal leaves
            below = [place(child, level + 1) for child in children[node]]  # noqa: B023
            if not below:
                leaves += 1
            x = float(np.mean(below)) if below else float(leaves)
            places[node] = (x, -level)  # noqa: B023
            return x

        place(0, 0)
        for node, (x, y) in places.items():
            row = nodes.loc[node]
            if node:
                px, py = places[int(row["parent"])]
                ax.plot([px, x], [py, y], color="#999999", linewidth=1, zorder=1)
                ax.annotate(
                    row["edge"], ((px + x) / 2, (py + y) / 2), ha="center", va="center", fontsize=6, zorder=3,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )  # fmt: skip
                ax.annotate(f"age {row['age']}", (x, y - 0.22), ha="center", va="top", fontsize=5.5)
            ax.scatter([x], [y], s=45, color=BLUE if node else GREY, zorder=2)
        first = nodes.iloc[0]
        reused = f", reuses {first['reused_tokens']}" if first["operation"].startswith("lookup") else ""
        ax.set_title(f"{step + 1}. {first['operation']}{reused}", fontsize=6.5, loc="left")
        ax.set_xlim(0.3, max(leaves, 1) + 0.7)
        ax.set_ylim(-max(-y for _, y in places.values()) - 0.7, 0.4)
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
    axes.flat[0].legend()
    figure.supxlabel("Sequence length (tokens)", fontsize=8)
    return figure


def plot_block_reuse(table: pd.DataFrame) -> Figure:
    """Share of admitted blocks whose KV and whose state is ever reused (figure 3a)."""
    traces = list(table["trace"].unique())
    figure, axes = subplots(1, len(traces), height_in=2.2, sharey=True, squeeze=False)
    for ax, trace in zip(axes.flat, traces, strict=True):
        rows = table[table["trace"] == trace].sort_values("block_size")
        place = np.arange(len(rows))
        for shift, column, label, color in (
            (-0.2, "kv_reused_pct", "KV", RED),
            (0.2, "state_reused_pct", "SSM state", BLUE),
        ):
            bars = ax.bar(place + shift, rows[column], 0.4, label=label, color=color)
            ax.bar_label(bars, fmt="%.2g", fontsize=6)
        ax.set_xticks(place, rows["block_size"].astype(str))
        ax.set(title=trace, xlabel="Block size (tokens)")
    axes.flat[0].set_ylabel("Blocks reused (%)")
    axes.flat[0].legend()
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
    for ax, fidelity in zip(axes, ("artifact", "corrected"), strict=True):
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
    for fidelity in ("artifact", "corrected"):
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
    for ax, fidelity in zip(axes, ("artifact", "corrected"), strict=True):
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
    axes[0].legend()
    return figure


def plot_hit_rate_by_length(table: pd.DataFrame) -> Figure:
    """Hit rate by input length, and the distribution of the time to first token (figure 10)."""
    figure, axes = subplots(1, 2, height_in=2.4)
    width = 1000
    bins = (table["input_tokens"] // width) * width + width // 2
    sums = table.groupby(["system", bins])[["hit_tokens", "input_tokens"]].sum()
    rate = 100 * sums["hit_tokens"] / sums["input_tokens"]
    for system in ("SGLang+", "Marconi"):
        axes[0].plot(rate[system].index, rate[system], label=system, color=SYSTEM_COLORS[system])
        times = np.sort(table.loc[table["system"] == system, "ttft_ms"].to_numpy())
        axes[1].plot(times, np.arange(1, len(times) + 1) / len(times), label=system, color=SYSTEM_COLORS[system])
    axes[0].set(xlabel="Input length (tokens, bins of 1,000)", ylabel="Token hit rate (%)", ylim=(0, 101))
    axes[1].set(xlabel="Time to first token (ms)", ylabel="Share of requests", ylim=(0, 1.02))
    axes[0].legend()
    return figure


def plot_contention(table: pd.DataFrame) -> Figure:
    """Token hit rate against the cache's capacity (figure 11)."""
    traces = list(table["trace"].unique())
    figure, axes = subplots(1, len(traces), height_in=2.4, squeeze=False)
    for ax, trace in zip(axes.flat, traces, strict=True):
        _rate_lines(ax, table[table["trace"] == trace], "capacity_gb")
        ax.set(title=trace, xlabel="Capacity (GB)")
    axes.flat[0].legend()
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
    axes.flat[0].legend()
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
    axes.flat[0].legend()
    return figure


def plot_composition(table: pd.DataFrame) -> Figure:
    """Token hit rate by composition of layers (figure 12a)."""
    return _bars_by(table[table["varied"] == "layers"], "layers", "(SSM, attention) layers")


def plot_state_dim(table: pd.DataFrame) -> Figure:
    """Token hit rate by state dimension (figure 12b)."""
    return _bars_by(table[table["varied"] == "d_state"], "d_state", "State dimension N")


def plot_corrections(table: pd.DataFrame) -> Figure:
    """Token hit rate and excess over capacity, with each correction alone and all but each."""
    labels = list(dict.fromkeys(table["correction"]))
    figure, axes = subplots(1, 2, height_in=3.4, sharey=True)
    place = np.arange(len(labels))[::-1]
    systems = list(table["system"].unique())
    for system in systems:
        rows = table[table["system"] == system].set_index("correction").reindex(labels)
        axes[0].plot(rows["token_hit_rate_pct"], place, "o", label=system, color=SYSTEM_COLORS[system])
        over = (rows["peak_gb"] - rows["capacity_gb"]).clip(lower=0)
        axes[1].plot(over, place, "o", label=system, color=SYSTEM_COLORS[system])
    axes[0].set_yticks(place, labels)
    axes[0].set_xlabel("Token hit rate (%)")
    axes[1].set_xlabel("Peak bytes over capacity (GB)")
    axes[0].legend()
    return figure


def plot_presets(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity for realistic models."""
    specs = list(table["spec"].unique())
    columns = 3
    figure, axes = subplots(
        -(-len(specs) // columns),
        columns,
        height_in=1.9 * -(-len(specs) // columns),
        sharey=True,
        squeeze=False,
    )
    for ax in axes.flat[len(specs) :]:
        ax.axis("off")
    for ax, spec in zip(axes.flat, specs, strict=False):
        _rate_lines(ax, table[table["spec"] == spec], "capacity_gb")
        ax.set(title=spec, xlabel="Capacity (GB)", xscale="log")
        ax.set_ylabel("")
    axes.flat[0].set_ylabel("Token hit rate (%)")
    axes.flat[0].legend()
    return figure


def plot_bounds(table: pd.DataFrame) -> Figure:
    """Token hit rate of every policy and bound against capacity, a panel per trace."""
    traces = list(table["trace"].unique())
    columns = min(3, len(traces))
    rows = -(-len(traces) // columns)
    figure, axes = subplots(rows, columns, height_in=2.2 * rows, squeeze=False)
    for ax in axes.flat[len(traces) :]:
        ax.axis("off")
    for ax, trace in zip(axes.flat, traces, strict=False):
        _rate_lines(ax, table[table["trace"] == trace], "capacity_gb")
        ax.set(title=trace, xlabel="Capacity (GB)")
    axes.flat[0].legend()
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
