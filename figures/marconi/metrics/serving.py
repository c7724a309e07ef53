"""The numbers of real models served from cached states: a results table in, one number out."""

from __future__ import annotations

import pandas as pd

from figures.marconi.metrics.simulation import MARCONI, NAN, SGLANG, VANILLA, VLLM, _number

COMPUTE_BOUND = "granite-small"
"""The model whose prefill is dominated by compute."""
CASES = 200


def largest_difference(table: pd.DataFrame) -> float:
    """Largest difference of a resumed prefill's logits from a cold one's, over all models and cases."""
    return float(table["difference"].max())


def smallest_control(table: pd.DataFrame) -> float:
    """Smallest difference, over the tolerance, of the controls."""
    return float((table["difference_of_control"] / table["tolerance"]).min())


def bit_equal_pct(table: pd.DataFrame) -> float:
    """Share of cases whose logits are bit for bit those of the same split computed cold, in %."""
    return float(100 * table["bit_equal"].mean())


def _resume(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["model"] == COMPUTE_BOUND]


def resume_speedup(table: pd.DataFrame) -> float:
    """Cold over resumed prefill, median of the repeats."""
    rows = _resume(table)
    return float((rows["cold_ms"] / rows["resumed_ms"]).median()) if len(rows) else NAN


def restore_share_pct(table: pd.DataFrame) -> float:
    """Lookup and restore in % of the resumed prefill, median of the repeats."""
    rows = _resume(table)
    return float((100 * rows["restore_ms"] / rows["resumed_ms"]).median()) if len(rows) else NAN


def hits_unlike_simulated(table: pd.DataFrame) -> float:
    """Requests, of all systems and capacities, whose served hits are not the simulated ones."""
    cached = table[table["system"] != VANILLA]
    return float((cached["hit_tokens"] != cached["simulated_hit_tokens"]).sum())


def served_difference(table: pd.DataFrame) -> float:
    """Largest difference of a served request's logits from those without a cache."""
    return float(table["logit_difference"].max())


def _reduction_pct(table: pd.DataFrame, against: str) -> float:
    """Largest reduction of P95 TTFT over the capacities, in points of that without a cache (as figure 9)."""
    p95 = table.groupby(["system", "capacity_mb"])["ttft_ms"].quantile(0.95).unstack()
    if not {MARCONI, against, VANILLA} <= set(p95.index):
        return NAN
    other, own, none = (p95.loc[system].to_numpy() for system in (against, MARCONI, VANILLA))
    return float((100 * (other - own) / none).max())


def served_reduction_vanilla(table: pd.DataFrame) -> float:
    """Against no cache."""
    return _reduction_pct(table, VANILLA)


def served_reduction_vllm(table: pd.DataFrame) -> float:
    """Against vLLM+."""
    return _reduction_pct(table, VLLM)


def served_reduction_sglang(table: pd.DataFrame) -> float:
    """Against SGLang+."""
    return _reduction_pct(table, SGLANG)


def tier_gain(table: pd.DataFrame) -> float:
    """Marconi's hit tokens with the largest second tier over those without one."""
    rows = table[table["system"] == MARCONI].sort_values("host_capacity_mb")
    return float(rows["hit_tokens"].iloc[-1] / rows["hit_tokens"].iloc[0])


def tiers_unlike_simulated(table: pd.DataFrame) -> float:
    """Runs whose hits are not, request by request, the simulated ones."""
    return float((~table["hits_equal_simulated"].astype(bool)).sum())


def restart_keeps_pct(table: pd.DataFrame) -> float:
    """Hit tokens after a restart with a saved cache, in % of those without a restart."""
    hits = table.set_index("restart")["hit_tokens"]
    return 100 * _number(hits["saved cache"]) / _number(hits["no restart"])


def end_share_of_branch_pct(table: pd.DataFrame) -> float:
    """Hit tokens with checkpoints at ends alone, in % of those at branch points too; least of traces and capacities."""
    return 100 / _branch_over(table, "end", largest=True)


def branch_over_every(table: pd.DataFrame) -> float:
    """Hit tokens with checkpoints at branch points over those every 32 tokens; least of traces and capacities."""
    return _branch_over(table, "every:32", largest=False)


def _branch_over(table: pd.DataFrame, other: str, *, largest: bool) -> float:
    hits = table.pivot(index=["trace", "capacity_mb"], columns="placement", values="hit_tokens")
    if not {"branch", other} <= set(hits):
        return NAN
    ratios = hits["branch"].clip(lower=1) / hits[other].clip(lower=1)
    return float(ratios.max() if largest else ratios.min())
