"""One look for all figures, and the same bytes each time one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact import paths, results, systems

FULL_WIDTH_IN = 7.0
COLUMN_WIDTH_IN = 3.35

# Paul Tol's bright scheme: told apart by colour-blind readers and in print.
BLUE, CYAN, GREEN, YELLOW = "#4477AA", "#66CCEE", "#228833", "#CCBB44"
RED, PURPLE, GREY, BLACK = "#EE6677", "#AA3377", "#BBBBBB", "#222222"
CYCLE = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE)
PAPER_COLOR = "#888888"

SYSTEM_COLORS: dict[str, str] = {
    # Marconi's evaluation
    "Marconi": BLUE,
    "SGLang+": RED,
    "vLLM+": GREEN,
    "Vanilla": GREY,
    "Static alpha": CYAN,
    "Best static alpha": PURPLE,
    "Clairvoyant heuristic": YELLOW,
    "Infinite cache": BLACK,
    # Zen's evaluation
    "Zen": BLUE,
    "Zen (rows)": CYAN,
    "Zen, table-free": PURPLE,
    "Zen, table-free (rows)": "#BB77AA",
    "Balanced Parallelism": GREEN,
    "Balanced Parallelism (rows)": "#77BB88",
    "AllReduce": GREY,
    "AGsparse": YELLOW,
    "AGsparse (rows)": "#DDD488",
    "SparCML": RED,
    "SparCML (rows)": "#F4AAB3",
    "OmniReduce": BLACK,
    "OmniReduce (cyclic)": "#777777",
    "Sparse PS": "#AA7733",
    "Sparse PS (rows)": "#CCAA88",
    "Modulo": "#997799",
    "Modulo (rows)": "#BBAABB",
    "Lossy strawman": RED,
    "PyTorch all_reduce": GREY,
    "PyTorch sparse all_reduce": YELLOW,
    "Stock DDP": GREY,
    "Stock DDP, dense": BLACK,
    "Chosen": PURPLE,
    # Lazarus's evaluation
    "Lazarus": BLUE,
    "DS": RED,
    "DS(FT)": YELLOW,
    "Tutel": GREEN,
    "Tutel(FT)": CYAN,
    "MRO": BLUE,
    "best": PURPLE,
    "spread": GREEN,
    "compact": RED,
    "random": GREY,
    "EPLB": YELLOW,
    "EPLB + best": CYAN,
}
"""One colour per system, by the paper's label, in every notebook. Each new system adds its labels here."""

STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "svg.hashsalt": "artifact",
    "svg.fonttype": "path",
}


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


def save(figure: Figure, name: str, directory: Path | None = None) -> list[Path]:
    """Write `name`.svg and `name`.png, by default to figures/. The same figure gives the same bytes.

    Notebooks do not call this: figures/ is drawn from the reference tables by `redraw_all`.
    """
    written = []
    for suffix, metadata in ((".svg", {"Date": None, "Creator": None}), (".png", {"Software": None})):
        path = (directory or paths.figures()) / f"{name}{suffix}"
        with matplotlib.style.context(["default", STYLE]), paths.replacing(path) as temporary:
            figure.savefig(temporary, metadata=metadata)
        written.append(path)
    return written


def registered() -> dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]]:
    """Figure name -> (table name, plot), from the `FIGURES` of each system's `plots` module.

    Raises: ValueError if two systems use one name
    """
    found: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {}
    for plots in systems.modules("plots"):
        for name, entry in plots.FIGURES.items():
            if name in found:
                raise ValueError(f"a figure's name must be unique, got {name} twice")
            found[name] = entry
    return found


def redraw_all(directory: Path | None = None) -> list[Path]:
    """Draw every registered figure from the reference tables.

    Raises: ValueError naming the tables that are missing, after drawing the other figures
    """
    written, missing = [], []
    for name, (table, plot) in registered().items():
        try:
            rows = results.load(table, "reference")
        except FileNotFoundError:
            missing.append(f"{table} (for {name})")
            continue
        with matplotlib.style.context(["default", STYLE]):
            written += save(plot(rows), name, directory)
    if missing:
        raise ValueError(f"results/reference must hold every table a figure is drawn from, missing: {missing}")
    return written
