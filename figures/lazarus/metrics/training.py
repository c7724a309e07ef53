"""Of training on real processes."""

from __future__ import annotations

import pandas as pd


def largest_loss_difference(table: pd.DataFrame) -> float:
    """Largest relative difference of a step's loss from that of one process."""
    return float(table["relative_difference"].max())


def longest_outage_s(table: pd.DataFrame) -> float:
    """From a node's death to the first step without it, seconds, the longest of all points."""
    return float(table["end_ms"].max()) / 1e3


def real_gain_ds(table: pd.DataFrame) -> float:
    """Tokens a second of Lazarus over DS."""
    return _gain(table, "DS")


def real_gain_dsft(table: pd.DataFrame) -> float:
    """Tokens a second of Lazarus over DS(FT)."""
    return _gain(table, "DS(FT)")


def simulator_error_pct(table: pd.DataFrame) -> float:
    """Largest difference of the simulated throughput from the measured one, in percent of that."""
    return float((100 * (table["simulated_tokens_per_s"] / table["tokens_per_s"] - 1).abs()).max())


def _gain(table: pd.DataFrame, other: str) -> float:
    rate = table.set_index("system")["tokens_per_s"]
    return float(rate["Lazarus"] / rate[other])
