"""How much a better eviction could still gain, on more workloads (notebook 19)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache.workloads.importers import TRACE_NAMES
from figures.marconi.replays import compare_all, limit, rate_lines
from figures.style import Picture


def bounds(
    *, workloads: dict[str, list[float]], systems: list[str], limit_sessions: int, seed: int = 42
) -> pd.DataFrame:
    """Policies and bounds by workload and capacity. One row per (trace, capacity_gb, system).

    workloads: capacities in GB of each trace; ShareGPT, synthetic traces and files are taken whole
    systems:   as of `replays.compare`: policies and bounds
    seed:      of the response times of the SWE-agent traces, which alone are drawn
    """
    grid = []
    for source, capacities in workloads.items():
        whole = source.startswith(("sharegpt", "synthetic")) or source not in TRACE_NAMES
        options = {} if whole else limit(source, limit_sessions)
        options |= {"seed": seed} if source.startswith("swe-agent") else {}
        varied = {name: [value] for name, value in options.items()}
        grid += sweep.grid(source=[source], capacity_gb=capacities, systems=[systems], **varied)
    return compare_all(grid)


def plot_bounds(table: pd.DataFrame) -> Figure:
    """Token hit rate of every policy and bound against capacity, a panel per trace."""
    panels = {"col": "trace", "col_wrap": 3, "facet_kws": {"sharex": False, "sharey": False}}
    rows = -(-table["trace"].nunique() // 3)
    grid = rate_lines(table, "capacity_gb", height_in=0.3 + 2.0 * rows, **panels)
    grid.set_titles("{col_name}")
    return grid.figure


FIGURES = {
    "marconi-bounds": Picture(
        "19_bounds",
        plot_bounds,
        "Token hit rate against capacity. The best static alpha is chosen in hindsight; the clairvoyant heuristic "
        "knows when each prefix is looked up next; the infinite cache evicts nothing.",
    )
}
