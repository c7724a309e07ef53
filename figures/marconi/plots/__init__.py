"""Figures of Marconi's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from figures.marconi.plots import serving, simulation
from figures.marconi.plots.serving import (
    plot_exactness,
    plot_placements,
    plot_resume,
    plot_served_ttft,
    plot_tiers,
)
from figures.marconi.plots.simulation import (
    plot_arrival,
    plot_block_reuse,
    plot_bounds,
    plot_composition,
    plot_contention,
    plot_corrections,
    plot_flop_efficiency,
    plot_hit_rate_by_length,
    plot_layer_flops,
    plot_presets,
    plot_request_lengths,
    plot_state_dim,
    plot_state_sizes,
    plot_token_hit_rate,
    plot_tree,
    plot_ttft,
    plot_win_over_sglang,
)

__all__ = [
    "FIGURES",
    "plot_arrival",
    "plot_block_reuse",
    "plot_bounds",
    "plot_composition",
    "plot_contention",
    "plot_corrections",
    "plot_exactness",
    "plot_flop_efficiency",
    "plot_hit_rate_by_length",
    "plot_layer_flops",
    "plot_placements",
    "plot_presets",
    "plot_request_lengths",
    "plot_resume",
    "plot_served_ttft",
    "plot_state_dim",
    "plot_state_sizes",
    "plot_tiers",
    "plot_token_hit_rate",
    "plot_tree",
    "plot_ttft",
    "plot_win_over_sglang",
]

FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {**simulation.FIGURES, **serving.FIGURES}
