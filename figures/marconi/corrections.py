"""What each correction of the published simulator is worth (notebook 17)."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache import Fidelity, preset, replay
from artifact.prefix_cache.index.fidelity import CORRECTIONS, fidelity_label
from artifact.prefix_cache.simulation import GB, MARCONI
from figures.marconi.replays import COMPARED, Options, compare_all, measures, trace_of
from figures.style import SYSTEM_COLORS, Picture, subplots

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


def labels() -> dict[str, str]:
    """The fidelities of the ablation with what each stands for: none, each alone, all but each, all."""
    alone = {f"published+{name}": f"{name} alone" for name in CORRECTIONS}
    without = {f"corrected-{name}": f"all but {name}" for name in CORRECTIONS}
    return {"published": "none (as published)", **alone, **without, "corrected": "all"}


def corrections(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """The systems with each correction alone and all but each. One row per (correction, configuration, system)."""
    common: Options = {"source": [source], "sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb}
    table = compare_all(sweep.grid(**common, fidelity=list(labels()), systems=[list(COMPARED)]))
    table.insert(0, "correction", table["fidelity"].map(labels()))
    return table


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
    """Each correction alone and all but each: change of the hit rate, and excess over capacity; means and ranges."""
    index = ["system", "sessions_per_s", "capacity_gb"]
    published = table[table["fidelity"] == "published"].set_index(index)["token_hit_rate_pct"]
    values = table.join(published.rename("published_pct"), on=index)
    values["change"] = values["token_hit_rate_pct"] - values["published_pct"]
    values["over_gb"] = (values["peak_gb"] - values["capacity_gb"]).clip(lower=0)
    meanings = {f"{name} alone": f"{name} alone: {meaning}" for name, meaning in MEANINGS.items()}
    values["correction"] = values["correction"].replace(meanings)
    figure, axes = subplots(1, 2, height_in=4.2, sharey=True)
    options: Options = {"hue": "system", "palette": SYSTEM_COLORS, "dodge": 0.45, "linestyle": "none"}
    look: Options = {"markersize": 3.5, "errorbar": ("pi", 100), "err_kws": {"linewidth": 0.9}}
    panels = {"change": "Token hit rate against none (points)", "over_gb": "Peak bytes over capacity (GB)"}
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        sns.pointplot(values, x=column, y="correction", **options, **look, legend=ax is axes[0], ax=ax)
        ax.set(xlabel=label, ylabel="", title=table["trace"].iloc[0])
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


FIGURES = {
    "marconi-corrections": Picture(
        "17_corrections",
        plot_corrections,
        "What each correction of the published simulator changes, alone and by its absence. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items())
        + ".",
        interval="dots are means over the configurations, lines their full range",
    )
}
