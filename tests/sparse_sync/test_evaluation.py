"""Zen's evaluation at its smallest: what its experiments put into their tables, and what is read from them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from artifact.sparse_sync.links import testbed
from figures import claims
from figures.zen import characterisation, communication, design_space, hashing, links, training


def value(claim, table):
    return claims.get(claim).metric()(table)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setenv("ARTIFACT_BACKEND", "serial")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_gradient_statistics_hold_every_pair_every_doubling_and_shares_that_sum_to_one():
    table = characterisation.gradient_statistics(names=["zipf"], num_workers=3, parts=[1, 4], steps=0)
    values = {quantity: rows.set_index("x")["value"] for quantity, rows in table.groupby("quantity")}
    assert len(values["overlap"]) == 3 and values["overlap"].between(0, 1).all()
    assert list(values["densification"].index) == [1, 2] and values["densification"][1] == 1
    assert values["skewness"][1] == 1 < values["skewness"][4]
    assert values["share_in_eight"].sum() == pytest.approx(1)


def test_densification_leaves_its_bounds_where_a_curve_falls_or_exceeds_the_workers():
    curves = {"grows": [1, 1.5, 2], "falls": [1, 1.5, 1.4], "exceeds": [1, 2.5, 3], "synthetic-zipf": [1, 9, 0]}
    rows = [("densification", name, x, y) for name, ys in curves.items() for x, y in zip((1, 2, 4), ys, strict=True)]
    table = pd.DataFrame(rows, columns=["quantity", "workload", "x", "value"])
    assert characterisation.densification_within_bounds_pct(table) == pytest.approx(100 * 4 / 6)


def test_every_scheme_is_exact_and_the_ring_costs_what_is_predicted():
    schemes = ["ring", "sparcml", "zen", "zen-row"]
    table = communication.scheme_traffic(names=["zipf"], workers=[2, 3], schemes=schemes, bandwidth_gbps=1, steps=0)
    assert value("zen-exact", table) == 100
    ring = table[table["scheme"] == "ring"]
    assert (ring["speedup_over_ring"] == 1).all() and (ring["busiest_bytes"] == ring["predicted_bytes"]).all()
    assert value("zen-closed-forms", table.assign(predicted_bytes=2 * table["busiest_bytes"])) == 100


def test_the_selector_map_leaves_out_overlaps_below_the_density():
    candidates = ["ring", "sparcml", "zen"]
    table = design_space.selector_map(
        workers=[2, 4], overlaps=[0.01, 0.5], densities=[0.05], size=4000, candidates=candidates
    )
    assert list(table["overlap"]) == [0.5, 0.5] and (table["chosen_over_cheapest"] >= 1).all()
    right = table.assign(chosen_over_cheapest=[1, 1.5], published="zen", zen_over_sparcml=[0.5, 2])
    assert value("zen-selector", right) == value("zen-published-rule", right) == 50


def test_modulo_is_as_uneven_as_there_are_partitions_on_their_stride_and_contiguous_parts_are_even():
    methods = ["counting", "modulo", "contiguous"]
    table = hashing.partition_imbalance(
        num_indices=[512], partitions=[8], strides=[0, 8], methods=methods, seeds=[0, 1]
    )
    strided = table[table["stride"] == 8].set_index("method")["imbalance"]
    assert strided["modulo"] == 8 and strided["contiguous"] == 1 and 1 < strided["counting"] < 2
    assert value("zen-theorem2", table.assign(bound=[1.0, 9, 9, 9, 9, 9])) == 50


def test_hierarchical_hashing_loses_nothing_and_the_strawman_what_is_expected():
    serial = hashing.serial_region(num_indices=20_000, hashes=[1, 3], slots_per_index=[1, 2])
    assert (serial["lost"] == 0).all() and serial["overflow"].max() > 0
    assert np.allclose(serial["serial_pct"], serial["expected_pct"], atol=1)
    strawman = hashing.strawman_loss(num_indices=20_000, slots_per_index=[0.5, 10])
    assert np.allclose(strawman["lost_pct"], strawman["expected_pct"], atol=1)


def test_a_dense_coo_is_twice_the_tensor_and_all_hash_bitmaps_are_an_eighth_byte_an_element():
    sizes = hashing.format_sizes(size=8192, densities=[1.0], num_servers=4).set_index("system")["over_dense"]
    assert sizes["COO"] == 2 and sizes["Bitmap"] == 1 + 4 / 32
    assert sizes["Hash bitmap"] == pytest.approx(1 + 1 / 32, abs=1e-3)
    index = hashing.bitmap_index_bytes(sizes=[1003], servers=[1, 7])
    assert index["excess_bytes"].between(0, index["servers"]).all()


def test_throughput_adds_the_schemes_bytes_and_the_rings_for_what_is_dense(monkeypatch):
    compute = {"compute_s": 1.0, "batch": 10, "dense_elements": 1e9 / 8}
    steps = pd.DataFrame([{"workload": name, **compute} for name in ("lstm", "topk-lstm")])
    costs = steps[["workload"]].assign(workers=2, scheme="zen", system="Zen", busiest_bytes=1e9 / 8)
    monkeypatch.setattr(training, "_step_time", lambda *_: steps)
    monkeypatch.setattr(training, "_busiest_bytes", lambda *_: costs)
    table = training.throughput(names=[], workers=[], schemes=[], steps=0, repeats=1, bandwidths_gbps=[1, 2])
    # 1 s of computing, 1 Gbit by the scheme, and 4 bytes of each dense element by the ring: not of a top-k workload.
    assert table["samples_per_s"].tolist() == pytest.approx([20 / 6, 20 / 3.5, 20 / 2, 20 / 1.5])
    assert table["communication_share_pct"].tolist() == pytest.approx([500 / 6, 250 / 3.5, 50, 50 / 1.5])


def test_the_papers_models_compute_for_as_long_as_makes_its_gain_come_out(monkeypatch):
    costs = pd.DataFrame({"scheme": ["ring", "zen"], "system": ["AllReduce", "Zen"], "busiest_bytes": [100, 10]})
    both = pd.concat([costs.assign(workload="synthetic-lstm:28"), costs.assign(workload="deepfm")])
    monkeypatch.setattr(training, "_busiest_bytes", lambda *_: both)
    table = training.full_size(schemes=["ring", "zen"], steps=0, bandwidths_gbps=[25, 100])
    step_s = table[table["model"] == "LSTM"].pivot(index="bandwidth_gbps", columns="scheme", values="step_s")
    assert step_s["ring"][25] / step_s["zen"][25] == pytest.approx(3.1) and step_s["ring"][100] < step_s["ring"][25]
    assert table[table["model"] == "DeepFM"]["compute_s"].isna().all()


def test_zen_trains_as_the_ring_does_and_a_strawman_without_memory_does_not():
    systems = ["ring", "zen", "strawman"]
    table = training.accuracy(names=["deepfm"], num_workers=2, steps=3, systems=systems, strawman_slots=0.01)
    assert value("zen-fig18", table) < 1e-5 < 1e-3 < value("zen-fig18-strawman", table)


def test_without_root_the_state_says_so_the_bytes_are_counted_and_the_figures_are_drawn(monkeypatch):
    monkeypatch.setattr(testbed, "available", lambda: (False, "not root"))
    case = ["zipf", 2, "100mbit"]
    table = links.synchronisation_times(cases=[case], systems=["torch-allreduce", "zen"], repeats=1, steps=0)
    assert set(table["state"]) == {"needs root: not root"} and set(table["rate_mbps"]) == {100}
    assert table["seconds"].isna().all() and table.set_index("system")["counted_bytes"]["zen"] > 0
    assert math.isnan(value("zen-links-bytes", table))
    trained = links.training_times(cases=[["deepfm", 2, "1gbit"]], steps=2, systems=["stock", "zen-row"])
    assert set(trained["state"]) == {"needs root: not root"} and list(trained["system"]) == ["Stock DDP", "Zen (rows)"]
    drawn = [links.plot_links(table), links.plot_links_training(trained)]
    assert [ax.get_title() for figure in drawn for ax in figure.axes] == [
        "synthetic-zipf, n = 2, 100 Mb/s",
        f"{trained['workload'][0]}, n = 2, 1000 Mb/s",
    ]


def test_the_hooks_overhead_is_its_share_of_what_it_saves_and_all_where_it_saves_nothing():
    rows = [("Stock DDP", 3.0, math.nan), ("Stock DDP, dense", 10.0, math.nan), ("Zen (rows)", 4.0, 0.5)]
    table = pd.DataFrame(rows, columns=["system", "elapsed_s", "own_s"])
    table = table.assign(workload="lstm", workers=4, rate_mbps=200.0)
    assert value("zen-hook-overhead", table) == pytest.approx(100 * 0.5 / 6.5)
    assert value("zen-hook-overhead-sparse", table) == 100
