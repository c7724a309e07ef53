"""One look for all figures, the caption under each, and the same bytes each time one is drawn."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact.paths import replacing
from figures import paths, results
from figures.reducers import DATA_COLUMNS

if TYPE_CHECKING:
    import seaborn as sns

PARTS = ("marconi", "lazarus", "zen")
FULL_WIDTH_IN = 7.0
COLUMN_WIDTH_IN = 3.35

# Paul Tol's bright scheme: told apart by colour-blind readers and in print.
BLUE, CYAN, GREEN, YELLOW = "#4477AA", "#66CCEE", "#228833", "#CCBB44"
RED, PURPLE, GREY, BLACK = "#EE6677", "#AA3377", "#BBBBBB", "#222222"
CYCLE = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE)
PAPER_COLOR = "#888888"

COLORS = {"blue": BLUE, "cyan": CYAN, "green": GREEN, "yellow": YELLOW}
COLORS |= {"red": RED, "purple": PURPLE, "grey": GREY, "black": BLACK}
SYSTEM_COLORS: dict[str, str] = {
    label: COLORS.get(color, color)
    for part in tomllib.loads(Path(__file__).with_name("colors.toml").read_text(encoding="utf-8")).values()
    for label, color in part.items()
}
"""One colour per system, by its label, in every notebook."""
STYLE: Any = matplotlib.rc_params_from_file(Path(__file__).with_name("style.mplstyle"), use_default_template=False)


def apply_style() -> None:
    """Set the style for every figure made from here on. `subplots` does so by itself."""
    matplotlib.style.use(["default", STYLE])  # whatever a matplotlibrc or an earlier cell has set


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    width_in: float = FULL_WIDTH_IN,
    height_in: float = 2.4,
    **options: Any,
) -> tuple[Figure, Any]:
    """A styled figure and its axes, as `pyplot.subplots`. A notebook shows it as a cell's last value."""
    import matplotlib.pyplot as plt

    apply_style()
    options.setdefault("layout", "constrained")
    figure, axes = plt.subplots(rows, columns, figsize=(width_in, height_in), **options)
    plt.close(figure)
    return figure, axes


def facets(
    plot: Callable[..., sns.FacetGrid],
    table: pd.DataFrame,
    *,
    width_in: float = FULL_WIDTH_IN,
    height_in: float = 2.4,
    **options: Any,
) -> sns.FacetGrid:
    """`plot` (seaborn's relplot, catplot or displot) in this style, its legend above the panels.

    width_in, height_in: of the whole figure; a `hue` of systems takes the systems' colours. `grid.figure` is the figure
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    apply_style()
    hue = options.get("hue")
    if hue is not None and set(table[hue].unique()) <= set(SYSTEM_COLORS):
        options.setdefault("palette", SYSTEM_COLORS)
        options.setdefault("hue_order", list(dict.fromkeys(table[hue])))
    grid = plot(data=table, **options)
    plt.close(grid.figure)
    grid.figure.set_layout_engine("constrained")
    grid.figure.set_size_inches(width_in, height_in)
    if grid.legend is not None:
        labels = len(grid.legend.get_texts())
        sns.move_legend(grid, "outside upper center", ncols=min(labels, 6), title=None, frameon=False)
    return grid


def paper_mark(axes: Axes, *, x: float | None = None, y: float | None = None, label: str | None = "paper") -> None:
    """The paper's value in grey: a line across at `y` or up at `x`, a diamond where both are given.

    Raises: ValueError if neither is given
    """
    if x is not None and y is not None:
        axes.plot([x], [y], marker="D", markersize=4, color=PAPER_COLOR, linestyle="none", label=label, zorder=4)
    elif y is not None:
        axes.axhline(y, color=PAPER_COLOR, linestyle="--", linewidth=1, label=label)
    elif x is not None:
        axes.axvline(x, color=PAPER_COLOR, linestyle="--", linewidth=1, label=label)
    else:
        raise ValueError("paper_mark needs x, y or both, got neither")


@dataclass(frozen=True)
class Picture:
    """A figure of the evaluation: the table it is drawn from, how, and what its caption says.

    what:     one or two sentences on what is drawn, with the paper's figure; the plot's docstring if empty
    interval: what whiskers or bands are; empty if there are none
    """

    table: str
    plot: Callable[[pd.DataFrame], Figure]
    what: str = ""
    interval: str = ""

    def caption(self, table: pd.DataFrame) -> str:
        """What is drawn, on which data, from how many rows, and what the interval is."""
        names = [str(name) for column in DATA_COLUMNS if column in table for name in table[column].unique()]
        data = f" Data: {', '.join(dict.fromkeys(names))}." if names else ""
        interval = f" Interval: {self.interval}." if self.interval else ""
        return f"{self.sentence}{data} n = {len(table):,} rows.{interval}"

    @property
    def sentence(self) -> str:
        """What is drawn."""
        return self.what or " ".join((self.plot.__doc__ or "").partition("\n\n")[0].split())


def show(picture: Picture, table: pd.DataFrame) -> None:
    """Draw the figure in a notebook, with its caption under it."""
    from IPython.display import Markdown, display

    display(picture.plot(table))
    display(Markdown(f"*{picture.caption(table)}*"))


def save(figure: Figure, file: Path) -> list[Path]:
    """Write `file`.svg and `file`.png. The same figure gives the same bytes."""
    written = []
    for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
        path = file.with_name(f"{file.name}{suffix}")
        with matplotlib.style.context(["default", STYLE]), replacing(path) as temporary:
            figure.savefig(temporary, metadata=metadata)
        written.append(path)
    return written


def registered() -> dict[str, tuple[str, Picture]]:
    """Figure name -> (part, picture), from the `FIGURES` of every module of figures/marconi, lazarus and zen.

    Raises: ValueError if two modules use one name
    """
    found: dict[str, tuple[str, Picture]] = {}
    for part in PARTS:
        for module in pkgutil.iter_modules([str(paths.figures() / part)]):
            pictures = getattr(importlib.import_module(f"figures.{part}.{module.name}"), "FIGURES", {})
            for name, picture in pictures.items():
                if name in found:
                    raise ValueError(f"a figure's name must be unique, got {name} twice")
                found[name] = (part, picture)
    return found


def redraw_all(directory: Path | None = None) -> list[Path]:
    """Draw every registered figure from the reference tables, by default into figures/<part>/.

    Raises: ValueError naming the tables that are missing, after drawing the other figures
    """
    written, missing = [], []
    for name, (part, picture) in registered().items():
        try:
            table = results.load(picture.table, "reference")
        except FileNotFoundError:
            missing.append(f"{picture.table} (for {name})")
            continue
        with matplotlib.style.context(["default", STYLE]):
            written += save(picture.plot(table), (directory or paths.figures()) / part / name)
    if missing:
        raise ValueError(f"results/reference must hold every table a figure is drawn from, missing: {missing}")
    return written
