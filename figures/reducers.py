"""The value of a claim, read from its table by a few named steps: which rows, which column, how to reduce them."""

from __future__ import annotations

from functools import partial
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
    below: float | None = None
    but: Scalar | None = None

    @model_validator(mode="after")
    def _something(self) -> Bound:
        if not self.model_fields_set:
            raise ValueError(f"a bound must be one of {', '.join(Bound.model_fields)}")
        return self

    def keeps(self, column: pd.Series) -> pd.Series:
        """Which values of the column are within."""
        tests = {"at_least": column.ge, "at_most": column.le, "above": column.gt, "below": column.lt, "but": column.ne}
        kept = pd.Series(True, index=column.index)
        for name in self.model_fields_set:
            kept &= tests[name](getattr(self, name))
        return kept


Where = dict[str, Scalar | list[Scalar] | Bound]


class Value(Strict):
    """`(how(of) - less) * times` over the rows `where`, divided by or less the same of other rows.

    how:   reduces the values to one; `only` asks for one distinct value, `share` is the fraction that is true, `p95`
           the 95th percentile, `spread` the greatest over the least, `growth` the last over the first, `furthest` the
           largest distance from `less`
    of:    the column, or an expression of columns ("abs(simulated / measured - 1)")
    where: column = value, [values], or { at_least, at_most, above, below, but }
    over:  a column: divides value by value, before `how`. Or column = value: divides by the same reduction of the
           rows where these columns have these values instead (Lazarus's rows over DS's)
    minus: column = value: as `over`, but subtracts; before `over` divides
    by:    columns: `minus` and `over` act within each group of rows, and `how` reduces what the groups give, in order
    group: how the rows of a group become one: their mean, `p95`, or whether they are all true
    within: true for a value within these bounds, false for any other: what `how` reduces, to a `sum` or a `share`
    less, times: of the result, so that a gain in % is `less = 1, times = 100`
    """

    how: Literal["mean", "median", "min", "max", "sum", "count", "only", "share", "p95", "spread", "growth", "furthest"]
    of: str = Field(pattern=r"^[\w\s()+*/<>=!&|-]+$")
    where: Where = Field(default_factory=dict)
    over: str | Where | None = None
    minus: Where | None = None
    by: tuple[str, ...] = ()
    group: Literal["mean", "p95", "all"] = "mean"
    within: Bound | None = None
    less: float = 0
    times: float = 1

    @model_validator(mode="after")
    def _consistent(self) -> Value:
        if self.by and isinstance(self.over, str):
            raise ValueError("by needs over to name other rows, got a column")
        if self.group != "mean" and not self.by:
            raise ValueError("group needs by to name the groups")
        return self

    def __call__(self, table: pd.DataFrame) -> float:
        """The value; NaN where the table lacks the rows.

        Raises: KeyError on a column that the table does not have; ValueError if `only` finds several values
        """
        values = self._values(table, {})
        if self.by:
            if self.minus is not None:
                values = values - self._values(table, self.minus)
            if isinstance(self.over, dict):
                values = values / self._values(table, self.over)
            value = self._reduced(values.dropna())
        else:
            value = self._reduced(values)
            if self.minus is not None:
                value -= self._reduced(self._values(table, self.minus))
            if isinstance(self.over, dict):
                below = self._reduced(self._values(table, self.over))
                value = value / below if below else NAN
        return (value if self.how == "furthest" else value - self.less) * self.times

    def _values(self, table: pd.DataFrame, other: Where) -> pd.Series:
        """One value a row, or a group, of the rows `where`, or of those that have `other` values."""
        rows = selected(table, {**self.where, **other})
        values: Any = rows[self.of] if self.of.isidentifier() else rows.eval(self.of, engine="python")
        if isinstance(self.over, str):
            values = values / rows[self.over]
        if not self.by:
            return values
        groups = values.groupby([rows[column] for column in self.by])
        return {"mean": groups.mean, "p95": partial(groups.quantile, 0.95), "all": groups.all}[self.group]()

    def _reduced(self, values: pd.Series) -> float:
        if self.how == "count":
            return float(len(values))
        if values.empty:
            return NAN
        if self.within is not None:
            values = self.within.keeps(values)
        match self.how:
            case "only":
                if values.nunique() != 1:
                    raise ValueError(f"{self.of} must have one value in these rows, got {values.nunique()}")
                return float(values.iloc[0])
            case "share":
                return float(values.astype(bool).mean())
            case "p95":
                return float(values.quantile(0.95))
            case "spread":
                return float(values.max() / values.min())
            case "growth":
                return float(values.iloc[-1] / values.iloc[0]) if len(values) > 1 else NAN
            case "furthest":
                return float((values - self.less).abs().max())
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
