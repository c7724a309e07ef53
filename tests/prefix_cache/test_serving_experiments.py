"""The experiments on real tensors at their smallest, and the numbers that claims read from their tables."""

import pandas as pd
import pytest

from figures import claim_file
from figures.marconi import real_states, served

TRACE = {"requests": 6, "limit_sessions": 2, "model": "granite-tiny"}
SMALLEST = {"source": "synthetic-chat", **TRACE}


def value(claim: str, table: pd.DataFrame) -> float:
    return claim_file.get(f"marconi-{claim}").metric()(table)


def test_exactness_has_a_row_for_each_case():
    table = real_states.exactness(models=["lfm2-tiny", "jamba-tiny"], cases=3, longest=20, device="cpu")
    assert len(table) == 6 and table["bit_equal"].all() and (table["segments"] >= 1).all()
    assert value("real-exactness", table) <= 1e-5 and value("real-control", table) > 1
    assert value("real-bits", table) == 100
    assert real_states.plot_exactness(table).axes


def test_a_resumed_prefill_is_timed_next_to_a_cold_one():
    table = real_states.resume(models=["granite-tiny"], prefix_tokens=100, suffix_tokens=10, repeats=2)
    assert len(table) == 2 and (table["hit_tokens"] == 100).all()
    assert (table["restore_ms"] < table["resumed_ms"]).all() and (table["logit_difference"] <= 1e-5).all()
    assert pd.isna(value("real-resume", table))  # the claim is on another model
    renamed = table.assign(model="granite-small", cold_ms=[30, 50], resumed_ms=[10, 10], restore_ms=1)
    assert (value("real-resume", renamed), value("real-restore", renamed)) == (4, 10)
    assert real_states.plot_resume(table).axes


def test_every_system_serves_every_request():
    table = served.ttft(**SMALLEST, capacities_mb=[0.5, 1])
    assert len(table) == 2 * 4 * 6
    assert value("served-hits", table) == 0 and value("served-exactness", table) <= 1e-5
    assert served.plot_served_ttft(table).axes
    wrong = table.copy()
    wrong.loc[wrong["system"] == "Marconi", "simulated_hit_tokens"] += 1
    assert value("served-hits", wrong) == 12


def test_reductions_are_points_of_the_time_without_a_cache():
    p95 = {"Vanilla": [200, 100], "vLLM+": [150, 100], "SGLang+": [100, 50], "Marconi": [100, 30]}
    rows = [
        {"trace": "sharegpt", "system": system, "capacity_mb": capacity, "ttft_ms": value}
        for system, values in p95.items()
        for capacity, value in enumerate(values)
    ]
    table = pd.DataFrame(rows)
    assert value("served-fig9-vanilla", table) == pytest.approx(70)
    assert value("served-fig9-vllm", table) == pytest.approx(70)
    assert value("served-fig9-sglang", table) == pytest.approx(20)
    assert pd.isna(value("served-fig9-sglang", table[table["system"] != "SGLang+"]))


def test_tiers_and_a_restart():
    tiers = served.tiers(**SMALLEST, capacity_mb=0.2, host_capacities_mb=[0, 2])
    assert len(tiers) == 4 and value("tiers-hits", tiers) == 0 and value("tiers-gain", tiers) >= 1
    assert (tiers["from_host_tokens"] > 0).tolist() == (tiers["host_capacity_mb"] > 0).tolist()
    assert value("tiers-hits", tiers.assign(hits_equal_simulated=False)) == 4
    assert served.plot_tiers(tiers).axes
    restart = served.restart(**SMALLEST, capacity_mb=1, host_capacity_mb=2)
    assert restart["restart"].tolist() == ["no restart", "saved cache", "empty cache"]
    assert value("restart", restart) == 100 and restart["hit_tokens"].iloc[2] < restart["hit_tokens"].iloc[0]


def test_placements_are_compared_on_hits_bytes_and_time():
    table = served.placements(workloads={"synthetic-chat": [2]}, **TRACE, placements=["end", "branch", "every:32"])
    assert table["placement"].tolist() == ["end", "branch", "every:32"] and table["hits_equal_simulated"].all()
    assert (table["prefill_ms_p50"] >= table["ttft_ms_p50"]).all() and (table["peak_bytes"] <= 2e6).all()
    assert served.plot_placements(table).axes
    hits = table.assign(hit_tokens=[20, 50, 40])
    assert (value("branch-points", hits), value("few-checkpoints", hits)) == (40, 1.25)
    assert value("branch-points", hits.assign(hit_tokens=[0, 50, 40])) == 2  # one token counts where none is reused
    assert pd.isna(value("few-checkpoints", hits[hits["placement"] != "every:32"]))
