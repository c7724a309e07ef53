"""Other layers, other states, other models: what they do to the ranking (notebooks 16 and 18; Marconi, figure 12)."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache.simulation import MARCONI, VLLM
from figures.marconi.policies import FIDELITIES
from figures.marconi.replays import BEST_STATIC, COMPARED, PAPER_TRACE, Options, compare_all, rate_lines
from figures.style import Picture, facets


def layers(
    *,
    source: str,
    compositions: list[list[int]],
    composition_gb: float,
    state_dims: list[int],
    state_dim_gb: float,
) -> pd.DataFrame:
    """The systems by composition of layers and by state dimension (figure 12). One row per configuration and system.

    compositions: [SSM, attention, MLP] layers, in a cache of `composition_gb`
    state_dims:   N of the paper's model, in a cache of `state_dim_gb`
    """
    common: Options = {"source": [source], "systems": [list(COMPARED)], "fidelity": FIDELITIES}
    by_layers = compare_all(sweep.grid(**common, layers=compositions, capacity_gb=[composition_gb]))
    by_state = compare_all(sweep.grid(**common, d_state=state_dims, capacity_gb=[state_dim_gb]))
    return pd.concat([by_layers.assign(varied="layers"), by_state.assign(varied="d_state")], ignore_index=True)


def presets(*, source: str, specs: list[str], capacities_gb: list[float]) -> pd.DataFrame:
    """The systems and the best static alpha on models of today, by capacity. One row per configuration and system."""
    systems = [[*COMPARED, BEST_STATIC]]
    return compare_all(sweep.grid(source=[source], spec=specs, capacity_gb=capacities_gb, systems=systems))


def _bars(table: pd.DataFrame, varied: str, label: str) -> Figure:
    rows = table[table["varied"] == varied]
    options: Options = {"x": varied, "y": "token_hit_rate_pct", "hue": "system", "col": "fidelity"}
    grid = facets(sns.catplot, rows, kind="bar", saturation=1, height_in=2.5, **options)
    grid.set_titles(f"{rows['trace'].iloc[0]}, {{col_name}}")
    grid.set_axis_labels(label, "Token hit rate (%)")
    return grid.figure


def plot_composition(table: pd.DataFrame) -> Figure:
    """Token hit rate by composition of layers (figure 12a)."""
    return _bars(table, "layers", "(SSM, attention) layers")


def plot_state_dim(table: pd.DataFrame) -> Figure:
    """Token hit rate by state dimension (figure 12b)."""
    return _bars(table, "d_state", "State dimension N")


def plot_presets(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity, a panel per model."""
    rows = -(-table["spec"].nunique() // 3)
    grid = rate_lines(table, "capacity_gb", col="spec", col_wrap=3, height_in=0.3 + 1.9 * rows)
    grid.set(xscale="log")
    grid.set_titles(f"{{col_name}}, {table['trace'].iloc[0]}")
    return grid.figure


def _published(table: pd.DataFrame, varied: str, value: object) -> pd.Series:
    """Token hit rates as published on ShareGPT, by system; NaN where there are none."""
    rows = table[(table["trace"] == PAPER_TRACE) & (table["varied"] == varied) & (table["fidelity"] == "published")]
    rates = rows[rows[varied] == value].set_index("system")["token_hit_rate_pct"]
    return rates.reindex(list(COMPARED))


def pure_transformer_spread(table: pd.DataFrame) -> float:
    """Greatest over least token hit rate of the three systems without SSM layers."""
    rates = _published(table, "layers", "(0, 36)")
    return float(rates.max() / rates.min())


def state_dim_growth_of_ratio(table: pd.DataFrame) -> float:
    """Marconi's token hit rate over vLLM+'s at N = 128, relative to that at N = 16."""
    large, small = (_published(table, "d_state", n) for n in (128, 16))
    return float((large[MARCONI] / large[VLLM]) / (small[MARCONI] / small[VLLM]))


FIGURES = {
    "marconi-fig12a": Picture(
        "16_layers",
        plot_composition,
        "Token hit rate by composition of layers (Marconi, figure 12a; the paper's is of SWE-bench).",
    ),
    "marconi-fig12b": Picture(
        "16_layers",
        plot_state_dim,
        "Token hit rate by state dimension (Marconi, figure 12b; the paper's is of SWE-bench).",
    ),
    "marconi-presets": Picture(
        "18_presets", plot_presets, "Token hit rate against capacity at the costs of published hybrid models."
    ),
}
