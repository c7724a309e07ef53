"""Metrics of allocation and placement: exact numbers of survived failure sets, and what follows from them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from figures.lazarus.metrics.rows import NAN, Metric, rows_of

FIGURE_4_SURVIVORS = {"1,2", "1,3", "1,4", "2,4", "2,5"}
MIB = 2**20


def _value(column: str, **where: Any) -> Metric:
    """The one value of the rows of these values."""

    def value(table: pd.DataFrame) -> float:
        values = rows_of(table, **where)[column].unique()
        return float(values[0]) if len(values) == 1 else NAN

    return value


# Skew (figure 2) and the worked examples (figures 4, 5)


def hottest_two_pct(table: pd.DataFrame) -> float:
    """Largest share of a layer's tokens on two experts, in %, from the first replicas by load (step 201) on."""
    return float(rows_of(table, trace="smartmoe").query("iteration >= 201")["hottest_two_pct"].max())


fig4_plan_a, fig4_plan_b = (_value("good", case="figure 4", plan=plan) for plan in "AB")


def fig4_survivors(table: pd.DataFrame) -> float:
    """How many of plan A's published survivors survive here, less those that do but are not published."""
    found = set(str(rows_of(table, case="figure 4", plan="A")["survivors"].iloc[0]).split())
    return float(len(found & FIGURE_4_SURVIVORS) - len(found - FIGURE_4_SURVIVORS))


def fig5_mro_failed(table: pd.DataFrame) -> float:
    """Failure sets that the plan with overlap does not survive."""
    return _lost(table, "MRO")


def fig5_apart_failed(table: pd.DataFrame) -> float:
    """Failure sets that the plan without overlap does not survive."""
    return _lost(table, "apart")


def _lost(table: pd.DataFrame, plan: str) -> float:
    row = rows_of(table, case="figure 5", plan=plan).iloc[0]
    return float(row["sets"] - row["good"])


# The theorem and the promise


def optimal_whole_pct(table: pd.DataFrame) -> float:
    """Of the cases whose groups are whole, those where MRO is the best placement for every number of failures, in %."""
    return _always_pct(table[table["whole"]], "mro")


def optimal_cut_pct(table: pd.DataFrame) -> float:
    """The same of the cases where a group is cut short."""
    return _always_pct(table[~table["whole"]], "mro")


def _always_pct(table: pd.DataFrame, method: str) -> float:
    optimal = (table[method] == table["best"]).groupby([table["nodes"], table["slots"], table["replicas"]]).all()
    return float(100 * optimal.mean())


def bound_reached_whole_pct(table: pd.DataFrame) -> float:
    """Of the rows whose groups are whole, those where MRO reaches the upper bound, in %."""
    whole = table[table["whole"]]
    return float(100 * (whole["mro"] == whole["bound"]).mean())


def _kept_pct(column: str) -> Metric:
    def kept(table: pd.DataFrame) -> float:
        return float(100 * table.drop_duplicates(["nodes", "slots", "replicas"])[column].mean())

    return kept


promise_mro_pct, promise_spread_pct, promise_best_pct = (
    _kept_pct(f"keeps_{name}") for name in ("mro", "spread", "best_on_average")
)


def one_for_all_pct(table: pd.DataFrame) -> float:
    """Cases in which the best placement on average is the best one for every number of failures, in %."""
    same = (
        (table["best_on_average"] == table["best"]).groupby([table["nodes"], table["slots"], table["replicas"]]).all()
    )
    return float(100 * same.mean())


# One hot expert (figure 10b); the time of placement


def mro_over_spread_2_to_1(table: pd.DataFrame) -> float:
    """Recovery of MRO less that of spread, in points, mean over 1 to 8 failures; hot expert: twice the mean."""
    return _over_spread(table, 2)


def mro_over_spread_4_to_1(table: pd.DataFrame) -> float:
    """The same at four times the mean."""
    return _over_spread(table, 4)


def _over_spread(table: pd.DataFrame, ratio: float) -> float:
    mean = (
        table.query("ratio == @ratio and of == 'mean' and 1 <= failures <= 8").groupby("system")["probability"].mean()
    )
    return float(100 * (mean["MRO"] - mean["spread"])) if len(mean) else NAN


def placement_ms_10_nodes(table: pd.DataFrame) -> float:
    """Slowest allocation and placement by MRO on 10 nodes, in ms."""
    return _slowest_ms(table, 10)


def placement_ms_1024_gpus(table: pd.DataFrame) -> float:
    """Slowest allocation and placement by MRO of 256 experts on 128 nodes x 8 GPUs, in ms."""
    return _slowest_ms(table[table["experts"] == 256], 128)


def _slowest_ms(table: pd.DataFrame, nodes: int) -> float:
    return float(rows_of(table, nodes=nodes, system="MRO")["ms"].max())


# Whole models (figure 8, table 2)


def _recovered_pct(system: str, failures: int) -> Metric:
    """Of GPT-L at step 200."""

    def recovered(table: pd.DataFrame) -> float:
        rows = rows_of(table, model="GPT-L", iteration=201, system=system, failures=failures)
        return float(100 * rows["probability"].mean())

    return recovered


recovered_l_lazarus_4, recovered_l_lazarus_5 = (_recovered_pct("Lazarus", failures) for failures in (4, 5))
recovered_l_spread_4, recovered_l_spread_5 = (_recovered_pct("spread", failures) for failures in (4, 5))


def recovery_order_pct(table: pd.DataFrame) -> float:
    """Cases in which Lazarus recovers at least as often as spread and spread as compact, in %."""
    rows = rows_of(table)
    if rows.empty:
        return NAN
    cases = rows.pivot(index=["model", "iteration", "failures"], columns="system", values="probability")
    in_order = (cases["Lazarus"] >= cases["spread"]) & (cases["spread"] >= cases["compact"])
    return float(100 * in_order.mean())


def independent_pct(table: pd.DataFrame) -> float:
    """Recovery of GPT-L at step 200 after four failures, each layer's nodes in an order of its own, mean, in %."""
    return 100 * _at_four(table)["independent"]


def aligned_share_pct(table: pd.DataFrame) -> float:
    """The same aligned, over that of the worst layer alone, in %."""
    by_orders = _at_four(table)
    return 100 * by_orders["aligned"] / by_orders["worst layer"]


def _at_four(table: pd.DataFrame) -> dict[str, float]:
    rows = rows_of(table, model="GPT-L", iteration=201, system="MRO", failures=4)
    orders = ("independent", "aligned", "worst layer")
    return {each: float(rows[rows["orders"] == each]["probability"].mean()) for each in orders}


def _transferred(model: str, iteration: int) -> Metric:
    """Median over failure sets, with the greedy assignment and experts numbered as recorded."""

    def transferred(table: pd.DataFrame) -> float:
        where = {"model": model, "iteration": iteration, "numbering": "as recorded", "method": "greedy"}
        return float(rows_of(table, **where)["experts"].median())

    return transferred


transferred_s_200, transferred_s_4000 = (_transferred("GPT-S", iteration) for iteration in (201, 4001))
transferred_l_200, transferred_l_4000 = (_transferred("GPT-L", iteration) for iteration in (201, 4001))


def _state_mib(model: str) -> Metric:
    """What the transfer of one expert moves."""

    def state_mib(table: pd.DataFrame) -> float:
        rows = table[table["model"] == model]
        return float(rows["bytes"].sum() / rows["experts"].sum() / MIB) if len(rows) else NAN

    return state_mib


expert_state_mib_s, expert_state_mib_l = _state_mib("GPT-S"), _state_mib("GPT-L")
