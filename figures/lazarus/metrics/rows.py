"""Rows of a table: what every metric begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

NAN = float("nan")
Metric = Callable[[pd.DataFrame], float]


def rows_of(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows of these values; generated stand-ins for a trace do not count as the trace."""
    for column in ("loads", "trace"):
        if column in table:
            table = table[~table[column].str.startswith("synthetic-")]
    for column, value in where.items():
        table = table[table[column] == value]
    return table
