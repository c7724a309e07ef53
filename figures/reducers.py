"""The value of a claim, read from its table by a few named steps: which rows, which column, how to reduce them."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

NAN = float("nan")
STAND_IN = "synthetic-"
"""A data set's name begins so where the project's generator stands in for it: no such row counts as the data set."""
DATA_COLUMNS = ("trace", "loads", "workload")

Scalar = bool | int | float | str


class Strict(BaseModel):
    """What claims.toml may hold: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Bound(Strict):
    """Rows of values within these bounds, or of any other value than `but`."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    but: Scalar | None = None

    @model_validator(mode="after")
    def _something(self) -> Bound:
        if not self.model_fields_set:
            raise ValueError(f"a bound must be one of {', '.join(Bound.model_fields)}")
        return self

    def keeps(self, column: pd.Series) -> pd.Series:
        """Which values of the column are within."""
        kept = pd.Series(True, index=column.index)
        if self.at_least is not None:
            kept &= column >= self.at_least
        if self.at_most is not None:
            kept &= column <= self.at_most
        if self.above is not None:
            kept &= column > self.above
        if self.but is not None:
            kept &= column != self.but
        return kept


Where = dict[str, Scalar | list[Scalar] | Bound]


class Value(Strict):
    """`(how(of) / how(over) - less) * times` over the rows `where`.

    how:   reduces the values to one; `only` asks for one distinct value, `share` is the fraction that is true,
           `p95` the 95th percentile, `spread` the greatest over the least, `growth` the last over the first
    of:    the column
    where: column = value, [values], or { at_least, at_most, above, but }
    over:  a column: divides value by value, before `how`. Or column = value: divides by the same reduction of the
           rows where these columns have these values instead (Lazarus's rows over DS's)
    by:    columns: `over` divides within each group of rows, and `how` reduces the ratios, in the order of the groups
    within: how the rows of a group become one, their mean or `p95`
    minus: column = value: within each group, the same of these other rows is taken off before `over` divides
    less, times: of the result, so that a gain in % is `less = 1, times = 100`
    """

    how: Literal["mean", "median", "min", "max", "sum", "count", "only", "share", "p95", "spread", "growth"]
    of: str
    where: Where = Field(default_factory=dict)
    over: str | Where | None = None
    by: tuple[str, ...] = ()
    within: Literal["mean", "p95"] = "mean"
    minus: Where | None = None
    less: float = 0
    times: float = 1

    @model_validator(mode="after")
    def _consistent(self) -> Value:
        if self.by and not (isinstance(self.over, dict) or self.minus or (self.how, self.over) == ("growth", None)):
            raise ValueError("by needs over to name the other rows")
        if self.minus and not self.by:
            raise ValueError("minus needs by to name the groups")
        return self

    def __call__(self, table: pd.DataFrame) -> float:
        """The value; NaN where the table lacks the rows.

        Raises: KeyError on a column that the table does not have; ValueError if `only` finds several values
        """
        rows = selected(table, self.where)
        if self.by:
            groups = self._by_group(table, {})
            groups = groups if self.minus is None else groups - self._by_group(table, self.minus)
            groups = groups / self._by_group(table, self.over) if isinstance(self.over, dict) else groups
            value = self._reduced(groups.dropna())
        elif isinstance(self.over, dict):
            below = self._reduced(selected(table, {**self.where, **self.over})[self.of])
            value = self._reduced(rows[self.of]) / below if below else NAN
        else:
            value = self._reduced(rows[self.of] if self.over is None else rows[self.of] / rows[self.over])
        return (value - self.less) * self.times

    def _by_group(self, table: pd.DataFrame, other: Where) -> pd.Series:
        """One value a group: of the rows `where`, or of those that have `other` values."""
        groups = selected(table, {**self.where, **other}).groupby(list(self.by))[self.of]
        return groups.quantile(0.95) if self.within == "p95" else groups.mean()

    def _reduced(self, values: pd.Series) -> float:
        if self.how == "count":
            return float(len(values))
        if values.empty:
            return NAN
        if self.how == "only":
            if values.nunique() != 1:
                raise ValueError(f"{self.of} must have one value in these rows, got {values.nunique()}")
            return float(values.iloc[0])
        if self.how == "share":
            return float(values.astype(bool).mean())
        if self.how == "p95":
            return float(values.quantile(0.95))
        if self.how == "spread":
            return float(values.max() / values.min())
        if self.how == "growth":
            return float(values.iloc[-1] / values.iloc[0]) if len(values) > 1 else NAN
        return float(getattr(values, self.how)())


def selected(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    """The rows of these values. Stand-ins for a data set are left out, unless its column is in `where`."""
    for column in DATA_COLUMNS:
        if column in table and column not in where:
            table = table[~table[column].astype(str).str.startswith(STAND_IN)]
    for column, wanted in where.items():
        values: Any = table[column]
        if isinstance(wanted, Bound):
            table = table[wanted.keeps(values)]
        else:
            table = table[values.isin(wanted) if isinstance(wanted, list) else values == wanted]
    return table
