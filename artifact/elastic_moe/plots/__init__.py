"""Figures of Lazarus's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {}
