"""Metrics of what is traded: racks, f, balance, rebalancing. Generated stand-ins for a trace do not count as it."""

from __future__ import annotations

import pandas as pd

from figures.lazarus.metrics.rows import NAN, rows_of


def _rack_recovery(table: pd.DataFrame, racks: str, failed: int) -> float:
    where = {"model": "GPT-L", "layers": 1, "system": "MRO", "racks": racks, "failed_racks": failed}
    return float(rows_of(table, **where)["recovery"].mean())


def one_rack_adjacent(table: pd.DataFrame) -> float:
    """GPT-L's first layer by MRO in racks of two adjacent nodes: recovery when one fails."""
    return _rack_recovery(table, "adjacent", 1)


def one_rack_strided(table: pd.DataFrame) -> float:
    return _rack_recovery(table, "strided", 1)


def two_racks_adjacent(table: pd.DataFrame) -> float:
    return _rack_recovery(table, "adjacent", 2)


def two_racks_strided(table: pd.DataFrame) -> float:
    return _rack_recovery(table, "strided", 2)


def several_at_once_pct(table: pd.DataFrame) -> float:
    """Failure instants of InfiniteHBD that lose several servers, in %."""
    rows = rows_of(table, trace="infinitehbd")
    total = rows["instants"].sum()
    return float(100 * rows[rows["nodes_lost"] > 1]["instants"].sum() / total) if total else NAN


def one_failure_with_f(table: pd.DataFrame, system: str = "Lazarus") -> float:
    """Recovery after one failure with at least two replicas of every expert, the least of all models and f."""
    rows = rows_of(table, system=system)
    return float(rows[rows["min_replicas"] >= 2]["survives_one"].min())


def one_failure_with_f_best(table: pd.DataFrame) -> float:
    return one_failure_with_f(table, "best")


def _stale_over_own(table: pd.DataFrame, interval: float) -> float:
    rows = rows_of(table, name="SmartMoE", system="Lazarus", interval=interval)
    return float((rows["max_load_ratio"] / rows["own_ratio"]).mean())


def stale_200(table: pd.DataFrame) -> float:
    """Largest over mean load with a rebalance every 200 iterations, over that by each iteration's own loads."""
    return _stale_over_own(table, 200)


def stale_never(table: pd.DataFrame) -> float:
    """The same for the first placement kept."""
    return _stale_over_own(table, float("inf"))


def _moved(table: pd.DataFrame, name: str, interval: float, system: str, mapping: str) -> pd.DataFrame:
    return rows_of(table, name=name, interval=interval, system=system, mapping=mapping)


def eplb_moves_over_lazarus(table: pd.DataFrame) -> float:
    """States that EPLB's plans without a mapping move, over those of Lazarus mapped greedily: every 200 iterations."""
    eplb, lazarus = _moved(table, "SmartMoE", 200, "EPLB", "none"), _moved(table, "SmartMoE", 200, "Lazarus", "greedy")
    return float(eplb["moved_states"].mean() / lazarus["moved_states"].mean())


def eplb_reshuffle_pct(table: pd.DataFrame) -> float:
    """Share of all states held that EPLB's plans move when the task changes."""
    rows = _moved(table, "DeepSeek-V2-Lite", 8, "EPLB", "none")
    return float(100 * rows["moved_states"].sum() / rows["held_states"].sum()) if len(rows) else NAN


def greedy_over_optimal(table: pd.DataFrame) -> float:
    """States that Lazarus's greedy mapping moves over the fewest: SmartMoE, every 200 iterations."""
    greedy, optimal = (_moved(table, "SmartMoE", 200, "Lazarus", each) for each in ("greedy", "optimal"))
    return float(greedy["moved_states"].mean() / optimal["moved_states"].mean())
