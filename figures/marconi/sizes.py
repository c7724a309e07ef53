"""Bytes and FLOPs of cached states: formulas alone (notebook 11; Marconi, figures 1c, 3b, 5, 14 and table 1)."""

from __future__ import annotations

from itertools import product

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.prefix_cache import PRESETS
from artifact.prefix_cache.simulation import GB
from artifact.prefix_cache.spec import MAMBA_7B, MARCONI_7B, TRANSFORMER_7B
from figures import claims
from figures.marconi.replays import STACKED, Options, panels
from figures.style import BLUE, COLUMN_WIDTH_IN, CYCLE, GREY, RED, Picture, paper_mark, subplots

LAYER_COLORS = {"attention": RED, "SSM": BLUE, "MLP": GREY}
FIGURE_5_TOKENS = 2048
"""Figure 5 ends here."""


def state_sizes(*, length_step: int, block_sizes: list[int]) -> pd.DataFrame:
    """Bytes and FLOPs of one cached sequence (figures 1c, 3b and 5). One row per (spec, length, block_size).

    length_step: of the lengths up to 2,048 tokens; from 1,000 to 12,000 they go by thousands
    block_sizes: tokens between checkpoints; in the table, 0 stands for one checkpoint at the end
    """
    lengths = sorted({*range(length_step, FIGURE_5_TOKENS + 1, length_step), *range(1000, 12_001, 1000)})
    rows = []
    for spec, length in product((MAMBA_7B, MARCONI_7B, TRANSFORMER_7B), lengths):
        kv, flops = spec.kv_bytes(length), spec.prefill_flops(length)
        for block in [0, *block_sizes] if spec is MARCONI_7B else [0]:
            size = spec.sequence_bytes(length, block_size=block or None)
            gb = {"kv_gb": kv / GB, "checkpoint_gb": (size - kv) / GB, "total_gb": size / GB}
            row = {"spec": spec.name, "length_tokens": length, "block_size": block, **gb}
            rows.append({**row, "prefill_flops": float(flops), "flops_per_byte": flops / size})
    return pd.DataFrame(rows)


def layer_costs(*, specs: list[str], lengths: list[int]) -> pd.DataFrame:
    """FLOPs and state bytes by kind of layer (table 1, figure 14). One row per (spec, length, layer)."""
    columns = ["spec", "length_tokens", "layer", "layers", "flops", "state_bytes"]
    rows = []
    for spec, length in product((PRESETS[name] for name in specs), lengths):
        for layer, count, flops, state_bytes in (
            ("attention", spec.num_attention_layers, spec.attention_layer_flops(length), spec.kv_bytes(length)),
            ("SSM", spec.num_ssm_layers, spec.ssm_layer_flops(length), spec.checkpoint_bytes),
            ("MLP", spec.num_mlp_layers, spec.mlp_layer_flops(length), 0),
        ):
            rows.append((spec.name, length, layer, count, float(count * flops), state_bytes))
    return pd.DataFrame(rows, columns=columns)


def plot_state_sizes(table: pd.DataFrame) -> Figure:
    """Bytes of one sequence's states by tokens between checkpoints (Marconi, figures 1c and 3b)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    hybrid = table[table["spec"] == "marconi-7b"]
    spacing = hybrid["block_size"].map(lambda block: f"Hybrid, every {block}" if block else "Hybrid, one checkpoint")
    lines: Options = {"x": "length_tokens", "y": "total_gb", "ax": ax}
    sns.lineplot(hybrid.assign(spacing=spacing), hue="spacing", palette=CYCLE[: spacing.nunique()], **lines)
    transformer = table[table["spec"] == "transformer-7b"]
    sns.lineplot(transformer, color="black", linestyle="--", label="Transformer", **lines)
    paper_mark(ax, x=10_000, y=claims.paper("marconi-fig3b-gb"), label="paper, every 16")
    ax.set(xlabel="Sequence length (tokens)", ylabel="States of one sequence (GB)", ylim=(0, None))
    ax.legend()
    return figure


def plot_flop_efficiency(table: pd.DataFrame) -> Figure:
    """FLOPs that a hit saves for each byte of the states it needs (Marconi, figure 5)."""
    labels = {"mamba-7b": "Mamba", "marconi-7b": "Hybrid", "transformer-7b": "Transformer"}
    rows = table[(table["block_size"] == 0) & (table["length_tokens"] <= FIGURE_5_TOKENS)]
    rows = rows.assign(model=rows["spec"].map(labels))
    options: Options = {"x": "length_tokens", "y": "flops_per_byte", "hue": "model", "palette": CYCLE[:3]}
    options |= {"kind": "line", "width_in": COLUMN_WIDTH_IN, "height_in": 2.3}
    drawn = panels(sns.relplot, rows, "", "Sequence length (tokens)", "FLOPs saved per byte", **options)
    return drawn.set(ylim=(0, None)).figure


def plot_layer_flops(table: pd.DataFrame) -> Figure:
    """Share of a prefill's FLOPs by kind of layer (Marconi, figure 14)."""
    total = table.groupby(["spec", "length_tokens"])["flops"].transform("sum")
    shares = table.assign(share_pct=100 * table["flops"] / total, length=table["length_tokens"].map("{:,}".format))
    options: Options = {"hue": "layer", "palette": LAYER_COLORS, "hue_order": list(LAYER_COLORS)[::-1], "col": "spec"}
    options |= {"x": "length", "weights": "share_pct", "height_in": 2.3, "kind": "hist", **STACKED, "shrink": 0.8}
    drawn = panels(sns.displot, shares, "{col_name}", "Sequence length (tokens)", "Share of FLOPs (%)", **options)
    return drawn.tick_params(axis="x", rotation=45).figure


def share_growing_faster_than_transformer(table: pd.DataFrame) -> float:
    """Share, in %, of steps in length at which both models with SSM layers gain more FLOPs per byte (figure 5)."""
    chosen = table[(table["block_size"] == 0) & (table["length_tokens"] <= FIGURE_5_TOKENS)]
    growth = chosen.pivot(index="length_tokens", columns="spec", values="flops_per_byte").sort_index().diff().dropna()
    faster = growth[["mamba-7b", "marconi-7b"]].gt(growth["transformer-7b"], axis=0).all(axis=1)
    return float(100 * faster.mean())


def table1_deviation(table: pd.DataFrame) -> float:
    """Largest relative deviation, in %, of FLOPs per byte by layer from table 1: L + 2 D and L (6 D/N + 8 + 5/N).

    Table 1 leaves the convolution's state out; so is it here.
    """
    d, n = MARCONI_7B.d_model, MARCONI_7B.d_state
    rows = table[table["spec"] == "marconi-7b"].set_index("layer")
    attention, ssm = rows.loc["attention"], rows.loc["SSM"]
    deviations = (
        attention["flops"] / attention["state_bytes"] / (attention["length_tokens"] + 2 * d) - 1,
        ssm["flops"] / (ssm["layers"] * 2 * d * n) / (ssm["length_tokens"] * (6 * d / n + 8 + 5 / n)) - 1,
    )
    return float(100 * pd.concat(deviations).abs().max())


FIGURES = {
    "marconi-fig1c-3b": Picture("11_state_sizes", plot_state_sizes),
    "marconi-fig5": Picture("11_state_sizes", plot_flop_efficiency),
    "marconi-fig14": Picture("11_layer_costs", plot_layer_flops),
}
