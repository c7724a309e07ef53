"""The experiments on real tensors at their smallest, and the numbers that claims read from their tables."""

import pandas as pd
import pytest

from figures.marconi import metrics, plots
from figures.marconi.experiments import serving

SMALLEST = {"source": "synthetic-chat", "model": "granite-tiny", "requests": 6, "num_sessions": 2}


def test_exactness_has_a_row_for_each_case():
    table = serving.exactness(models=["lfm2-tiny", "jamba-tiny"], cases=3, longest=20, device="cpu")
    assert len(table) == 6 and table["bit_equal"].all() and (table["segments"] >= 1).all()
    assert metrics.largest_difference(table) <= 1e-5 and metrics.smallest_control(table) > 1
    assert metrics.bit_equal_pct(table) == 100
    assert plots.plot_exactness(table).axes


def test_a_resumed_prefill_is_timed_next_to_a_cold_one():
    table = serving.resume(models=["granite-tiny"], prefix_tokens=100, suffix_tokens=10, repeats=2)
    assert len(table) == 2 and (table["hit_tokens"] == 100).all()
    assert (table["restore_ms"] < table["resumed_ms"]).all() and (table["logit_difference"] <= 1e-5).all()
    assert pd.isna(metrics.resume_speedup(table))  # the claim is on another model
    renamed = table.assign(model=metrics.serving.COMPUTE_BOUND, cold_ms=[30, 50], resumed_ms=[10, 10], restore_ms=1)
    assert (metrics.resume_speedup(renamed), metrics.restore_share_pct(renamed)) == (4, 10)
    assert plots.plot_resume(table).axes


def test_every_system_serves_every_request():
    table = serving.ttft(**SMALLEST, capacities_mb=[0.5, 1])
    assert len(table) == 2 * 4 * 6
    assert metrics.hits_unlike_simulated(table) == 0 and metrics.served_difference(table) <= 1e-5
    assert plots.plot_served_ttft(table).axes
    wrong = table.copy()
    wrong.loc[wrong["system"] == "Marconi", "simulated_hit_tokens"] += 1
    assert metrics.hits_unlike_simulated(wrong) == 12


def test_reductions_are_points_of_the_time_without_a_cache():
    p95 = {"Vanilla": [200, 100], "vLLM+": [150, 100], "SGLang+": [100, 50], "Marconi": [100, 30]}
    rows = [
        {"system": system, "capacity_mb": capacity, "ttft_ms": value}
        for system, values in p95.items()
        for capacity, value in enumerate(values)
    ]
    table = pd.DataFrame(rows)
    assert metrics.served_reduction_vanilla(table) == pytest.approx(70)
    assert metrics.served_reduction_vllm(table) == pytest.approx(70)
    assert metrics.served_reduction_sglang(table) == pytest.approx(20)
    assert pd.isna(metrics.served_reduction_sglang(table[table["system"] != "SGLang+"]))


def test_tiers_and_a_restart():
    tiers = serving.tiers(**SMALLEST, capacity_mb=0.2, host_capacities_mb=[0, 2])
    assert len(tiers) == 4 and metrics.tiers_unlike_simulated(tiers) == 0 and metrics.tier_gain(tiers) >= 1
    assert (tiers["from_host_tokens"] > 0).tolist() == (tiers["host_capacity_mb"] > 0).tolist()
    assert plots.plot_tiers(tiers).axes
    restart = serving.restart(**SMALLEST, capacity_mb=1, host_capacity_mb=2)
    assert restart["restart"].tolist() == ["no restart", "saved cache", "empty cache"]
    assert metrics.restart_keeps_pct(restart) == 100 and restart["hit_tokens"].iloc[2] < restart["hit_tokens"].iloc[0]


def test_placements_are_compared_on_hits_bytes_and_time():
    table = serving.placements(**SMALLEST, capacities_mb=[2], placements=["end", "branch", "every:32"])
    assert table["placement"].tolist() == ["end", "branch", "every:32"] and table["hits_equal_simulated"].all()
    assert (table["prefill_ms_p50"] >= table["ttft_ms_p50"]).all() and (table["peak_bytes"] <= 2e6).all()
    assert plots.plot_placements(table).axes
    hits = table.assign(hit_tokens=[20, 50, 40])
    assert (metrics.end_share_of_branch_pct(hits), metrics.branch_over_every(hits)) == (40, 1.25)
    assert pd.isna(metrics.branch_over_every(hits[hits["placement"] != "every:32"]))
