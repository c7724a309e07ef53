"""How much a better eviction could still gain, on more workloads (notebook 19)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from artifact.prefix_cache.workloads.importers import TRACE_NAMES
from figures.marconi.replays import Options, compare_all, grid, limit, rate_lines
from figures.style import Picture


def bounds(
    *, workloads: dict[str, list[float]], systems: list[str], limit_sessions: int, seed: int = 42
) -> pd.DataFrame:
    """Policies and bounds by workload and capacity. One row per (trace, capacity_gb, system).

    workloads: capacities in GB of each trace; ShareGPT, synthetic traces and files are taken whole
    systems:   as of `replays.compare`: policies and bounds
    seed:      of the response times of the SWE-agent traces, which alone are drawn
    """
    configurations = []
    for source, capacities in workloads.items():
        whole = source.startswith(("sharegpt", "synthetic")) or source not in TRACE_NAMES
        options: Options = {} if whole else limit(source, limit_sessions)
        options |= {"seed": seed} if source.startswith("swe-agent") else {}
        configurations += grid(source=source, capacity_gb=capacities, systems=tuple(systems), **options)
    return compare_all(configurations)


def plot_bounds(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity. The best static alpha is chosen in hindsight; the clairvoyant heuristic knows
    when each prefix is looked up next; the infinite cache evicts nothing.
    """
    options: Options = {"col": "trace", "col_wrap": 3, "facet_kws": {"sharex": False, "sharey": False}}
    height_in = 0.3 + 2.0 * -(-table["trace"].nunique() // 3)
    return rate_lines(table, "{col_name}", height_in=height_in, **options).figure


FIGURES = {"marconi-bounds": Picture("19_bounds", plot_bounds)}
