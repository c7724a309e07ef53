"""Figures of Lazarus's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from figures.lazarus.plots import simulation, theory, tradeoffs, training
from figures.lazarus.plots.simulation import (
    plot_a10g,
    plot_breakdown,
    plot_controlled,
    plot_deepseek_v3,
    plot_idle,
    plot_load_ratio,
    plot_spot,
    plot_timeline,
)
from figures.lazarus.plots.theory import (
    plot_balance,
    plot_hot_expert,
    plot_load_skew,
    plot_model_recovery,
    plot_node_orders,
    plot_placements,
    plot_small_cases,
    plot_transferred,
)
from figures.lazarus.plots.tradeoffs import (
    plot_choosing_f,
    plot_drift,
    plot_drift_over_time,
    plot_losses_at_once,
    plot_racks,
    plot_rebalances,
    plot_time_to_loss,
)
from figures.lazarus.plots.training import plot_equal_losses, plot_recoveries, plot_systems

__all__ = [
    "FIGURES",
    "plot_a10g",
    "plot_balance",
    "plot_breakdown",
    "plot_choosing_f",
    "plot_controlled",
    "plot_deepseek_v3",
    "plot_drift",
    "plot_drift_over_time",
    "plot_equal_losses",
    "plot_hot_expert",
    "plot_idle",
    "plot_load_ratio",
    "plot_load_skew",
    "plot_losses_at_once",
    "plot_model_recovery",
    "plot_node_orders",
    "plot_placements",
    "plot_racks",
    "plot_rebalances",
    "plot_recoveries",
    "plot_small_cases",
    "plot_spot",
    "plot_systems",
    "plot_time_to_loss",
    "plot_timeline",
    "plot_transferred",
]

FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    **theory.FIGURES,
    **simulation.FIGURES,
    **tradeoffs.FIGURES,
    **training.FIGURES,
}
