"""What several figures of Lazarus share: gains over other systems, stacked bars, the paper's marks, legends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import claims
from figures.lazarus.planners import NODES
from figures.reducers import DATA_COLUMNS, STAND_IN, Value, Where, selected
from figures.style import PAPER_COLOR, SYSTEM_COLORS, facets, paper_mark

SYSTEM_STYLE: dict[str, Any] = {
    "markers": dict.fromkeys(SYSTEM_COLORS, "o")
    | {"best": "s", "spread": "^", "compact": "v", "random": "d", "EPLB": "P", "EPLB + best": "X"},
    "dashes": dict.fromkeys(SYSTEM_COLORS, "") | {"best": (2, 2), "EPLB + best": (1, 1)},
    "markersize": 4.5,
    "markeredgewidth": 0.3,
}
"""Markers and dashes by system, so that lines that lie over one another are seen."""

RUN = ("interval_min", "minutes", "stride", "gpus", "p", "trial", "seed")
"""Columns that name a run of the simulator, with the model's."""


def named(table: pd.DataFrame, form: str) -> list[str]:
    """A name for each row, of its columns."""
    return [form.format(**{str(column): value for column, value in row.items()}) for row in table.to_dict("records")]


def data_of(table: pd.DataFrame) -> str:
    """Names of the recorded loads or failures behind a table, for a title."""
    names = [str(name) for column in DATA_COLUMNS if column in table for name in table[column].unique()]
    return ", ".join(dict.fromkeys(names))


def is_the_papers(table: pd.DataFrame) -> bool:
    """Whether no data set of the table is a stand-in: only then is the paper's value marked."""
    return STAND_IN not in data_of(table)


def stated(table: str) -> Iterator[tuple[Where, dict[str, Any], float]]:
    """What the paper states of a table: rows of each claim that a reducer reads, rows that it divides by, value."""
    for claim in claims.read():
        if claim.table == table and claim.paper is not None and isinstance(claim.value, Value):
            yield claim.value.where, claim.value.over if isinstance(claim.value.over, dict) else {}, claim.paper


def curves(table: pd.DataFrame, x: str, y: str, col: str, *labels: str, **options: Any) -> sns.FacetGrid:
    """A line for each system, told apart by markers and dashes where they lie over one another; labels of x and y."""
    axes = {"x": x, "y": y, "col": col, "hue": "system", "style": "system", "kind": "line"}
    grid = facets(sns.relplot, table, **{**SYSTEM_STYLE, **axes, **options})
    return grid.set_titles("{col_name}").set_axis_labels(*labels)


def recovery_curves(table: pd.DataFrame, col: str, **options: Any) -> sns.FacetGrid:
    """Recovery probability by the number of failed nodes on the testbed, a panel for each value of `col`."""
    labels = (f"Failed nodes of {NODES}", "Recovery probability")
    return curves(table, "failures", "probability", col, *labels, **options).set(xticks=range(0, NODES + 1, 2))


def mark(ax: Axes, x: float, y: float, system: str) -> None:
    """The paper's value of a system: a grey diamond with an edge in the system's colour."""
    paper_mark(ax, x=x, y=y, label=None)
    ax.lines[-1].set(markersize=5.5, markeredgecolor=SYSTEM_COLORS[system], markeredgewidth=1.3)


def legend(figure: Figure, *more: Artist) -> None:
    """One legend above the panels: the figure's, these handles, and the paper's diamond if none are given."""
    paper = Line2D([], [], marker="D", markersize=5, color=PAPER_COLOR, linestyle="none", label="paper (edge: system)")
    handles: list[Any] = [*(more or [paper])]
    labels = [str(each.get_label()) for each in handles]
    for old in figure.legends[:]:
        handles = [*old.legend_handles, *handles]
        labels = [*(each.get_text() for each in old.get_texts()), *labels]
        old.remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 7))


def plot_gains(
    table: pd.DataFrame,
    name: str,
    *,
    panel: str,
    x: str = "model",
    kind: str = "bar",
    value: str = "samples",
    **options: Any,
) -> Figure:
    """Lazarus's `value` over each other system's in the same run, by `x`, a panel for each value of `panel`.

    name: of the table, of which the claims state the paper's gains
    Whiskers reach from the least to the largest gain of all runs.
    """
    runs = [each for each in dict.fromkeys((panel, x, *RUN)) if each in table]
    by_run = table.pivot(index=runs, columns="system", values=value)
    others = [system for system in table["system"].unique() if system != "Lazarus"]
    gains = by_run[others].rdiv(by_run["Lazarus"], axis=0).melt(ignore_index=False, value_name="gain").reset_index()
    order = list(dict.fromkeys(table[x]))
    axes: dict[str, Any] = {"x": x, "y": "gain", "hue": "system", "hue_order": others, "col": panel, "kind": kind}
    axes |= {"errorbar": ("pi", 100), "capsize": 0.1, "err_kws": {"linewidth": 0.8}}
    if kind == "bar":
        axes |= {"order": order, "saturation": 1, "err_kws": {"linewidth": 0.8, "color": "black"}}
    grid = facets(sns.catplot, gains, **axes, **options)
    grid.set_axis_labels("", f"{'Samples' if value == 'samples' else 'Throughput'} of Lazarus\nover the other's")
    for ax in grid.axes.flat:
        ax.axhline(1, color="black", linewidth=0.6)
    for where, over, gain in stated(name) if is_the_papers(table) else []:
        rows = selected(gains, {**where, **over}) if over else gains.head(0)
        for case, at in rows[[panel, x]].drop_duplicates().itertuples(index=False):
            values = [each for each in order if each in set(gains[x][gains[panel] == case])]
            turn = others.index(str(over["system"]))
            shift = 0.8 * ((turn + 0.5) / len(others) - 0.5) if kind == "bar" else 0
            mark(grid.axes_dict[case], values.index(at) + shift, gain, others[turn])
    legend(grid.figure)
    return grid.figure


def stacked_bars(table: pd.DataFrame, *, y: str, length: str, hue: str, palette: Mapping[str, str]) -> Figure:
    """A bar for each value of `y`, of parts of `length` in the order of the palette."""
    style: dict[str, Any] = {"multiple": "stack", "discrete": True, "shrink": 0.7, "alpha": 1, "linewidth": 0}
    height_in = 0.7 + 0.2 * table[y].nunique()
    options: dict[str, Any] = {"y": y, "weights": length, "hue": hue, "hue_order": [*palette][::-1], "palette": palette}
    grid = facets(sns.displot, table, kind="hist", height_in=height_in, **options, **style)
    sns.move_legend(grid, "outside upper center", ncols=6, title=None, frameon=False, reverse=True)
    return grid.figure
