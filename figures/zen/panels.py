"""What Zen's figures share: lines by system, heat maps side by side, axes in powers of two, colours of workloads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from figures.style import BLACK, CYCLE, GREY, facets, subplots

Options = dict[str, Any]


def lines(table: pd.DataFrame, x: str, y: str, *, hue: str = "system", **options: Any) -> sns.FacetGrid:
    """`y` against `x` in powers of two, a line per `hue`; what is sent by rows, and a bound, is dashed."""
    dashed = {name: (3, 1.5) if name.endswith(("(rows)", "bound")) else "" for name in table[hue].unique()}
    options = {"dashes": dashed, "marker": "o", "markeredgewidth": 0, "errorbar": None, **options}
    grid = facets(sns.relplot, table, kind="line", x=x, y=y, hue=hue, style=hue, **options)
    for ax in grid.axes.flat:
        powers_of_two(ax, table[x])
    return grid


def heatmaps(panels: Mapping[str, pd.DataFrame], title: str, *, height_in: float, **options: Any) -> Figure:
    """A heat map of each table, numbered and on one scale, side by side under their names."""
    figure, axes = subplots(1, len(panels), height_in=height_in, sharey=True)
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        sns.heatmap(table, annot=True, cmap="Blues", cbar=False, ax=ax, **options)
        ax.set(title=name, ylabel="")
        ax.grid(False)
    figure.suptitle(title, fontsize=8)
    return figure


def powers_of_two(ax: Axes, values: Iterable[int]) -> None:
    """Put the values on a logarithmic axis, each with its own number."""
    ticks = sorted({int(value) for value in values})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)


def numbered_log(ax: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers: 1, 2, 5, 10, ..., 20k."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.yaxis.set_minor_formatter(NullFormatter())


def slanted(ax: Axes, names: Iterable[str]) -> None:
    """Long names under the ticks of a categorical x axis, which end where the tick is."""
    ax.set_xticks(ax.get_xticks(), list(names), rotation=25, ha="right", rotation_mode="anchor")


def workload_colors(table: pd.DataFrame) -> dict[str, str]:
    """Workloads have no colour of their own: the cycle's, in the order of the table."""
    return dict(zip(table["workload"].unique(), (*CYCLE, GREY, BLACK), strict=False))
