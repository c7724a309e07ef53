"""What each correction of the published simulator is worth (notebook 17)."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.prefix_cache import Fidelity, preset, replay
from artifact.prefix_cache.index.fidelity import CORRECTIONS, fidelity_label
from artifact.prefix_cache.simulation import GB, MARCONI
from figures.marconi.replays import COMPARED, Options, compare_all, grid, measures, panels, trace_of
from figures.style import Picture

MEANINGS = {
    "B1": "eviction counts the victim's bytes",
    "B2": "an MLP's saving is the MLP's",
    "B3": "efficiency is per byte freed",
    "B4": "the matched path is pinned",
    "B5": "oversized sequences are not cached",
    "B6": "a hit is a prefix",
    "B7": "the tuner is guarded",
    "B8": "merged nodes are dropped",
}
"""What is right after each correction."""
PANELS = {"change": "Token hit rate against none (points)", "over_gb": "Peak bytes over capacity (GB)"}


def labels() -> dict[str, str]:
    """The fidelities of the ablation with what each stands for: none, each alone, all but each, all."""
    alone = {f"published+{name}": f"{name} alone" for name in CORRECTIONS}
    without = {f"corrected-{name}": f"all but {name}" for name in CORRECTIONS}
    return {"published": "none (as published)", **alone, **without, "corrected": "all"}


def corrections(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """The systems with each correction alone and all but each. One row per (correction, configuration, system)."""
    varied: Options = {"sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb, "fidelity": list(labels())}
    table = compare_all(grid(source=source, **varied, systems=COMPARED))
    return table.assign(correction=table["fidelity"].map(labels()))


def static_alphas(*, source: str, capacity_gb: float, alphas: list[float], fidelities: list[str]) -> pd.DataFrame:
    """Marconi with fixed alphas. One row per (fidelity, alpha)."""
    trace, model, rows = trace_of(source), preset("marconi-7b"), []
    options: Options = {"system": MARCONI, "capacity_bytes": round(capacity_gb * GB)}
    for fidelity in fidelities:
        row = {"trace": trace.name, "capacity_gb": float(capacity_gb), "fidelity": fidelity_label(fidelity)}
        for alpha in alphas:
            result = replay(trace, model, alpha=alpha, fidelity=Fidelity.parse(fidelity), **options)
            rows.append({**row, **measures(result)})
    return pd.DataFrame(rows)


def plot_corrections(table: pd.DataFrame) -> Figure:
    """What each correction of the published simulator changes, alone and by its absence."""
    index = ["system", "sessions_per_s", "capacity_gb"]
    published = table[table["fidelity"] == "published"].set_index(index)["token_hit_rate_pct"]
    values = table.join(published.rename("published_pct"), on=index)
    values["change"] = values["token_hit_rate_pct"] - values["published_pct"]
    values["over_gb"] = (values["peak_gb"] - values["capacity_gb"]).clip(lower=0)
    meanings = {f"{name} alone": f"{name} alone: {meaning}" for name, meaning in MEANINGS.items()}
    values["correction"] = values["correction"].replace(meanings)
    rows = values.melt(["system", "correction"], list(PANELS), var_name="panel")
    options: Options = {"x": "value", "y": "correction", "hue": "system", "col": "panel", "sharex": False}
    options |= {"kind": "point", "dodge": 0.45, "linestyle": "none", "markersize": 3.5, "height_in": 4.2}
    options |= {"errorbar": ("pi", 100), "err_kws": {"linewidth": 0.9}}
    drawn = panels(sns.catplot, rows, table["trace"].iloc[0], "", "", **options)
    for panel, ax in drawn.axes_dict.items():
        ax.set_xlabel(PANELS[panel])
    return drawn.figure


INTERVAL = "dots are means over the configurations, lines their full range"
FIGURES = {"marconi-corrections": Picture("17_corrections", plot_corrections, interval=INTERVAL)}
