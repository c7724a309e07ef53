"""The ranking with other layers, models and workloads, and its bounds (notebooks 16, 18, 19; Marconi, figure 12)."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.prefix_cache.workloads.importers import TRACE_NAMES
from figures.marconi.policies import FIDELITIES
from figures.marconi.replays import (
    BEST_STATIC,
    COMPARED,
    Options,
    compare_all,
    compare_by,
    grid,
    limit,
    panels,
    rate_lines,
)
from figures.style import Picture


def layers(
    *, source: str, compositions: list[list[int]], composition_gb: float, state_dims: list[int], state_dim_gb: float
) -> pd.DataFrame:
    """The systems by composition of layers and by state dimension (figure 12). One row per configuration and system.

    compositions: [SSM, attention, MLP] layers, in a cache of `composition_gb`
    state_dims:   N of the paper's model, in a cache of `state_dim_gb`
    """
    common: Options = {"source": source, "systems": COMPARED, "fidelity": FIDELITIES}
    by_layers = grid(**common, layers=compositions, capacity_gb=composition_gb)
    return compare_by(layers=by_layers, d_state=grid(**common, d_state=state_dims, capacity_gb=state_dim_gb))


def presets(*, source: str, specs: list[str], capacities_gb: list[float]) -> pd.DataFrame:
    """The systems and the best static alpha on models of today, by capacity. One row per configuration and system."""
    return compare_all(grid(source=source, spec=specs, capacity_gb=capacities_gb, systems=(*COMPARED, BEST_STATIC)))


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


def _bars(table: pd.DataFrame, varied: str, label: str) -> Figure:
    rows = table[table["varied"] == varied]
    titles = f"{rows['trace'].iloc[0]}, {{col_name}}"
    options: Options = {"x": varied, "y": "token_hit_rate_pct", "hue": "system", "col": "fidelity"}
    options |= {"kind": "bar", "saturation": 1, "height_in": 2.5}
    return panels(sns.catplot, rows, titles, label, "Token hit rate (%)", **options).figure


def plot_composition(table: pd.DataFrame) -> Figure:
    """Token hit rate by composition of layers (Marconi, figure 12a; the paper's is of SWE-bench)."""
    return _bars(table, "layers", "(SSM, attention) layers")


def plot_state_dim(table: pd.DataFrame) -> Figure:
    """Token hit rate by state dimension (Marconi, figure 12b; the paper's is of SWE-bench)."""
    return _bars(table, "d_state", "State dimension N")


def plot_presets(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity at the costs of published hybrid models."""
    titles, rows = f"{{col_name}}, {table['trace'].iloc[0]}", -(-table["spec"].nunique() // 3)
    return rate_lines(table, titles, col="spec", col_wrap=3, height_in=0.3 + 1.9 * rows).set(xscale="log").figure


def plot_bounds(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity. The best static alpha is chosen in hindsight; the clairvoyant heuristic knows
    when each prefix is looked up next; the infinite cache evicts nothing.
    """
    options: Options = {"col": "trace", "col_wrap": 3, "facet_kws": {"sharex": False, "sharey": False}}
    height_in = 0.3 + 2.0 * -(-table["trace"].nunique() // 3)
    return rate_lines(table, "{col_name}", height_in=height_in, **options).figure


FIGURES = {
    "marconi-fig12a": Picture("16_layers", plot_composition),
    "marconi-fig12b": Picture("16_layers", plot_state_dim),
    "marconi-bounds": Picture("19_bounds", plot_bounds),
    "marconi-presets": Picture("18_presets", plot_presets),
}
