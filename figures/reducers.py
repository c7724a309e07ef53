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
           `p95` the 95th percentile
    of:    the column, or an expression of columns ("abs(simulated / measured - 1)")
    where: column = value, [values], or { at_least, at_most, above, but }
    over:  a column: divides value by value, before `how`. Or column = value: divides by the same reduction of the
           rows where these columns have these values instead (Lazarus's rows over DS's)
    by:    columns: `over` divides within each group of rows (its means), and `how` reduces the ratios. Without `over`,
           `share` is of the groups all of whose rows are true
    less:  off the result: a number, or column = value, the same reduction of the rows with these values instead
    times: of the result, so that a gain in % is `less = 1, times = 100`
    """

    how: Literal["mean", "median", "min", "max", "sum", "count", "only", "share", "p95"]
    of: str
    where: Where = Field(default_factory=dict)
    over: str | Where | None = None
    by: tuple[str, ...] = ()
    less: float | Where = 0
    times: float = 1

    @model_validator(mode="after")
    def _consistent(self) -> Value:
        if self.by and not isinstance(self.over, dict) and (self.over is not None or self.how != "share"):
            raise ValueError("by needs over to name the other rows, or share")
        return self

    def __call__(self, table: pd.DataFrame) -> float:
        """The value; NaN where the table lacks the rows.

        Raises: KeyError on a column that the table does not have; ValueError if `only` finds several values
        """
        rows = selected(table, self.where)
        if self.over is None:
            value = self._reduced(self._values(rows))
        elif isinstance(self.over, str):
            value = self._reduced(rows[self.of] / rows[self.over])
        else:
            others = selected(table, {**self.where, **self.over})
            if self.by:
                keys = list(self.by)
                mean, other = (each.groupby(keys)[self.of].mean() for each in (rows, others))
                value = self._reduced((mean / other).dropna())
            else:
                below = self._reduced(others[self.of])
                value = self._reduced(rows[self.of]) / below if below else NAN
        less = self.less
        if isinstance(less, dict):
            less = self.model_copy(update={"where": {**self.where, **less}, "less": 0, "times": 1})(table)
        return (value - less) * self.times

    def _values(self, rows: pd.DataFrame) -> pd.Series:
        """`of` in each row, or in each group of `by` whether it is true in all its rows."""
        values: Any = rows[self.of] if self.of.isidentifier() else rows.eval(self.of, engine="python")
        return values.groupby([rows[column] for column in self.by]).all() if self.by else values

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
