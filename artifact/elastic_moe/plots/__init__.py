"""Figures of Lazarus's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from artifact.elastic_moe.plots import simulation, theory
from artifact.elastic_moe.plots.simulation import (
    plot_a10g,
    plot_breakdown,
    plot_controlled,
    plot_deepseek_v3,
    plot_idle,
    plot_load_ratio,
    plot_spot,
    plot_timeline,
)
from artifact.elastic_moe.plots.theory import (
    plot_balance,
    plot_hot_expert,
    plot_load_skew,
    plot_model_recovery,
    plot_node_orders,
    plot_placements,
    plot_small_cases,
    plot_transferred,
)

__all__ = [
    "FIGURES",
    "plot_a10g",
    "plot_balance",
    "plot_breakdown",
    "plot_controlled",
    "plot_deepseek_v3",
    "plot_hot_expert",
    "plot_idle",
    "plot_load_ratio",
    "plot_load_skew",
    "plot_model_recovery",
    "plot_node_orders",
    "plot_placements",
    "plot_small_cases",
    "plot_spot",
    "plot_timeline",
    "plot_transferred",
]

FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {**theory.FIGURES, **simulation.FIGURES}
