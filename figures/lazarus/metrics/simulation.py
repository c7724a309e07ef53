"""Metrics of the simulated runs. A gain is Lazarus's mean samples over another system's, of the same runs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from figures.lazarus.metrics.rows import NAN, Metric, rows_of


def _gain(over: str, value: str = "samples", **where: Any) -> Metric:
    def gain(table: pd.DataFrame) -> float:
        means = rows_of(table, **where).groupby("system")[value].mean()
        if not {"Lazarus", over} <= set(means.index) or not means[over]:
            return NAN
        return float(means["Lazarus"] / means[over])

    return gain


def _share(system: str, states: tuple[str, ...], **where: Any) -> Metric:
    """Share, in %, of the time in some states."""

    def share(table: pd.DataFrame) -> float:
        rows = rows_of(table, system=system, **where)
        spent = rows.filter(regex="ing_s$|stalled_s$").sum()
        return float(100 * spent[[f"{state}_s" for state in states]].sum() / spent.sum()) if len(rows) else NAN

    return share


def _mean(value: str, **where: Any) -> Metric:
    def mean(table: pd.DataFrame) -> float:
        return float(rows_of(table, **where)[value].mean())

    return mean


def _case(model: str, **where: Any) -> dict[str, Any]:
    return {"model": model, **where}


# Controlled failures (figures 6, 7, 14)

_S5, _L5, _S40, _L40 = (_case(model, interval_min=each) for each in (5, 40) for model in ("GPT-S", "GPT-L"))
steps_5min_s = _mean("steps", system="Lazarus", **_S5)
steps_5min_l = _mean("steps", system="Lazarus", **_L5)
gain_5min_s_ds, gain_5min_l_ds = _gain("DS", **_S5), _gain("DS", **_L5)
gain_5min_s_dsft, gain_5min_l_dsft = _gain("DS(FT)", **_S5), _gain("DS(FT)", **_L5)
gain_40min_s_ds, gain_40min_l_ds = _gain("DS", **_S40), _gain("DS", **_L40)
throughput_m_lazarus = _mean("training_samples_per_s", system="Lazarus", model="GPT-M")
throughput_m_ds = _mean("training_samples_per_s", system="DS", model="GPT-M")


def lazarus_4_to_1(table: pd.DataFrame) -> float:
    """Throughput of Lazarus where one expert is four times as hot, over that under even load."""
    return _four_to_one(table, "Lazarus")


def ds_4_to_1(table: pd.DataFrame) -> float:
    """The same for DS."""
    return _four_to_one(table, "DS")


def _four_to_one(table: pd.DataFrame, system: str) -> float:
    by_ratio = table[table["system"] == system].set_index("ratio")["samples_per_s"]
    return float(by_ratio[4] / by_ratio[1]) if {1, 4} <= set(by_ratio.index) else NAN


# The spot trace (figures 9, 11)

_S80, _L80 = (_case(model, minutes=80, stride=1) for model in ("GPT-S", "GPT-L"))
gain_spot_s_ds, gain_spot_l_ds = _gain("DS", **_S80), _gain("DS", **_L80)
gain_spot_s_dsft, gain_spot_l_dsft = _gain("DS(FT)", **_S80), _gain("DS(FT)", **_L80)
restarts_spot_l = _mean("restarts", system="Lazarus", **_L80)
most_lost_spot = _mean("most_lost", system="Lazarus", **_L80)
replanning_pct_l = _share("Lazarus", ("reconfiguring", "rebalancing"), **_L80)
ds_overhead_pct_l = _share("DS", ("checkpointing", "restarting"), **_L80)
dsft_restart_pct_l = _share("DS(FT)", ("restarting",), **_L80)

# Larger clusters (figures 12, 13)

gain_a10g_s_tutel, gain_a10g_l_tutel = _gain("Tutel", model="GPT-S"), _gain("Tutel", model="GPT-L")
gain_a10g_s_tutelft, gain_a10g_l_tutelft = _gain("Tutel(FT)", model="GPT-S"), _gain("Tutel(FT)", model="GPT-L")
gain_v3_512_01_ds = _gain("DS", "samples_per_s", gpus=512, p=0.01)
gain_v3_512_01_dsft = _gain("DS(FT)", "samples_per_s", gpus=512, p=0.01)
gain_v3_512_15_ds = _gain("DS", "samples_per_s", gpus=512, p=0.15)
gain_v3_512_15_dsft = _gain("DS(FT)", "samples_per_s", gpus=512, p=0.15)
gain_v3_256_05_ds = _gain("DS", "samples_per_s", gpus=256, p=0.05)
gain_v3_256_05_dsft = _gain("DS(FT)", "samples_per_s", gpus=256, p=0.05)
gain_v3_1024_05_ds = _gain("DS", "samples_per_s", gpus=1024, p=0.05)
gain_v3_1024_05_dsft = _gain("DS(FT)", "samples_per_s", gpus=1024, p=0.05)


def seconds_1000_nodes_24h(table: pd.DataFrame) -> float:
    """Wall time of the slowest simulation of 1,000 nodes over 24 hours."""
    return float(table.query("nodes == 1000 and hours == 24")["seconds"].max())
