"""Step times: closed forms where everything is even, placements and transfers as the modules they stand for, units."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import (
    PRESETS,
    TESTBEDS,
    WORKLOADS,
    Placement,
    Testbed as Rates,
    allocate,
    calibrated_testbed,
    gpt_workload,
    place,
    smartmoe_loads,
    top_experts,
)
from artifact.elastic_moe.placement import migration
from artifact.elastic_moe.simulation import layouts
from artifact.elastic_moe.simulation.layouts import GroupLayout, ReplicatedLayout

ROUND = Rates("round", flops=1e12, link_gbps=8, transfer_gbps=8, storage_gbps=80, storage_node_gbps=16)


@st.composite
def clusters(draw):
    """Loads by layer, nodes, slots and f."""
    nodes, slots, layers = draw(st.integers(1, 12)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    experts = draw(st.integers(1, nodes * slots))
    load = st.lists(st.sampled_from([0, 1, 5, 70, 900]), min_size=experts, max_size=experts)
    loads = [draw(load) for _ in range(layers)]
    return np.array(loads), nodes, slots, draw(st.integers(1, 3))


def placed(layout):
    """A layout as placements, one a layer."""
    experts = range(layout.counts_LNE.shape[2])
    return [
        Placement(tuple(tuple(np.repeat(experts, row)) for row in counts_NE), len(experts))
        for counts_NE in layout.counts_LNE
    ]


@given(clusters())
@settings(max_examples=150, deadline=None)
def test_layouts_are_the_published_placement(cluster):
    loads_LE, nodes, slots, floor = cluster
    layout = layouts.replicated_layout(loads_LE, nodes, slots, floor)
    for load_E, counts_NE in zip(loads_LE.tolist(), layout.counts_LNE, strict=True):
        expected = place("mro", allocate(load_E, nodes * slots, floor), [slots] * nodes)
        np.testing.assert_array_equal(counts_NE, expected.counts_NE)


@given(clusters(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_greedy_assignment_and_transfers_are_those_of_migration(cluster, random):
    loads_LE, nodes, slots, floor = cluster
    before = layouts.replicated_layout(loads_LE, nodes, slots, floor)
    after = layouts.replicated_layout(loads_LE[:, ::-1].copy(), nodes, slots, floor)
    rows = random.sample(range(nodes), nodes)
    holdings, asked = migration.holdings_of(placed(before), rows), placed(after)
    order = migration.assign_nodes(holdings, asked, "greedy")
    sent = migration.transfers(holdings, asked, order, 1)
    chosen_N, states_N = layouts.assign_rows(before.held_NW[rows], after)
    assert [order[row] for row in chosen_N] == list(range(nodes))
    assert states_N.tolist() == [sum(each.target == row for each in sent) for row in chosen_N]
    assert not layouts.has_lost_experts(before.held_NW[rows], after)


def test_more_nodes_than_places_leave_those_idle_that_have_most_to_fetch():
    layout = GroupLayout(1, 2, num_layers=3, num_experts=4)
    held = np.concatenate([layout.held_NW[[1]] * 0, layout.held_NW[[1]], layout.held_NW[[1]]])
    chosen_N, states_N = layouts.assign_rows(held, layout)
    assert chosen_N.tolist() == [0, 1] and states_N.tolist() == [6, 0]
    assert layouts.has_lost_experts(held, layout)
    assert not layouts.has_lost_experts(layout.held_NW, layout)


def test_lost_experts_are_those_of_the_recovery_probability():
    loads_LE = np.array([[1, 2, 3, 4, 50], [9, 9, 9, 1, 1]])
    layout = layouts.replicated_layout(loads_LE, 5, 3, 2)
    for failed in range(2**5):
        alive = [node for node in range(5) if not failed >> node & 1]
        expected = not (layout.counts_LNE[:, alive].sum(axis=1) > 0).all()
        assert layouts.has_lost_experts(layout.held_NW[alive], layout) is expected


def test_slowest_node_of_a_placement_worked_by_hand():
    # Two nodes: expert 0 on both, expert 1 only on node 1, three quarters of the tokens for expert 0.
    layout = ReplicatedLayout(np.array([[[2, 0], [1, 1]]], dtype=np.int16))
    computed_L, exchanged_L = layout.slowest_L(np.array([[0.75, 0.25]]))
    assert computed_L == pytest.approx([1.0])  # node 0 takes 2/3 of 1.5, node 1 0.5 and 0.5
    assert exchanged_L == pytest.approx([0.25])  # node 0 sends its 0.25 of expert 1 and gets 0.25 of expert 0
    assert layout.shared_experts == 1.0  # expert 0, two holders: 2 * 1 / 2


def test_groups_give_every_expert_the_room_of_the_hottest():
    layout = GroupLayout(3, 4, num_layers=2, num_experts=8)
    computed_L, exchanged_L = layout.slowest_L(np.array([[0.5] + [0.5 / 7] * 7, [1 / 8] * 8]))
    assert computed_L.tolist() == [4, 1] and exchanged_L.tolist() == [3, 0.75]
    assert layout.num_nodes == 12 and layout.shared_experts == 2 * 2 * 2 * 2 / 3
    assert np.bitwise_count(layout.held_NW).sum(axis=1).tolist() == [4] * 12


def test_an_even_step_is_its_closed_form():
    work = gpt_workload(replace(PRESETS["GPT-S"], num_experts=6))
    layout = layouts.replicated_layout(np.ones((12, 6), dtype=np.int64), 4, 6, 2)  # every node holds every expert
    parts = ROUND.parts(work, layout, np.full((12, 6), 1 / 6))
    tokens = 4 * 1024
    assert parts.compute_s == pytest.approx(tokens * (work.dense_flops + 12 * work.expert_flops) / 1e12)
    assert parts.exchange_s == pytest.approx(0, abs=1e-9)
    assert parts.gradients_s == pytest.approx(1.5 * 2 * (work.dense_parameters + 72 * work.expert_parameters) / 1e9)


def test_rates_and_sizes_scale_the_parts_that_they_concern():
    work, layout = WORKLOADS["GPT-L"], GroupLayout(2, 4, 12, 16)
    share_LE = np.full((12, 16), 1 / 16)
    parts = ROUND.parts(work, layout, share_LE)
    fast = replace(ROUND, flops=2e12, link_gbps=80).parts(work, layout, share_LE)
    assert fast.compute_s == parts.compute_s / 2
    assert fast.exchange_s + fast.gradients_s == pytest.approx((parts.exchange_s + parts.gradients_s) / 10)
    accumulated = ROUND.parts(gpt_workload(PRESETS["GPT-L"], micro_batches=20), layout, share_LE)
    assert accumulated.compute_s == pytest.approx(20 * parts.compute_s)
    assert accumulated.gradients_s == parts.gradients_s
    fewer = ROUND.parts(work, GroupLayout(2, 4, 3, 16), share_LE[:3])  # three layers that stand for all
    assert (fewer.compute_s, fewer.gradients_s) == pytest.approx((parts.compute_s, parts.gradients_s))


def test_times_around_a_step():
    work, layout = WORKLOADS["GPT-S"], GroupLayout(2, 2, 12, 8)
    everything = 14 * PRESETS["GPT-S"].parameters
    assert work.all_state_bytes == everything
    assert ROUND.checkpoint_s(work, 2) == pytest.approx(everything / 4e9)  # 2 nodes with 16 Gb/s each
    assert ROUND.checkpoint_s(work, 10) == pytest.approx(everything / 10e9)  # the store's 80 Gb/s
    read = 4 * work.dense_state_bytes + 2 * 96 * work.expert_state_bytes
    assert ROUND.restart_s(work, layout) == pytest.approx(ROUND.restart_start_s + read / 8e9)
    assert ROUND.reconfigure_s(work, 0) == ROUND.regroup_s
    assert ROUND.reconfigure_s(work, 3) == pytest.approx(ROUND.regroup_s + 2 + 3 * 63.05 * 2**20 / 1e9, rel=1e-3)


def test_the_papers_testbed_gives_the_two_throughputs_it_is_fitted_to():
    trace, work = top_experts(smartmoe_loads(), 12, 12), WORKLOADS["GPT-M"]
    if trace.name != "smartmoe":
        pytest.skip("data set smartmoe is not at hand")
    seconds = []
    for record in range(20, 200, 20):
        counts_LE = trace.counts_ILE[record + 10]
        share_LE = counts_LE / counts_LE.sum(axis=1, keepdims=True)
        both = (layouts.replicated_layout(trace.counts_ILE[record], 10, 6, 2), GroupLayout(5, 2, 12, 12))
        seconds.append([TESTBEDS["paper-gpu"].step_s(work, "", each, share_LE) for each in both])
    np.testing.assert_allclose(40 / np.mean(seconds, axis=0), [45, 34], rtol=0.02)


def test_calibration_is_read_from_json_and_interpolated():
    text = '{"step_s": {"lazarus": {"2": 0.1, "4": 0.2}}, "outage_s": 0.3, "restart_s": 4, "checkpoint_s": 0.05}'
    clock = calibrated_testbed("measured-cpu", **json.loads(text))
    work = WORKLOADS["tiny"]
    steps = [clock.step_s(work, "lazarus", GroupLayout(n, 1, 2, 8), np.ones((2, 8)) / 8) for n in (1, 2, 3, 4, 9)]
    assert steps == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.2])
    assert (clock.reconfigure_s(work, 9), clock.restart_s(work, GroupLayout(1, 2, 2, 8))) == (0.3, 4)
    assert (clock.checkpoint_s(work, 2), clock.join_s(work, 3), clock.rebalance_s(work, 3)) == (0.05, 0, 0)
    assert work.batch(3) == work.batch(8) == PRESETS["tiny"].global_batch
    with pytest.raises(ValueError, match="must be measured for ds, got lazarus"):
        clock.step_s(work, "ds", GroupLayout(1, 2, 2, 8), np.ones((2, 8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_s": {"ds": {}}}, "positive seconds for ds"),
        ({"step_s": {"ds": {2: 0}}}, "positive seconds for ds"),
        ({"outage_s": -1}, "outage_s must not be negative, got -1"),
    ],
)
def test_wrong_calibrations_are_refused(change, message):
    given_times = {"step_s": {"ds": {2: 1.0}}, "outage_s": 1, "restart_s": 1, "checkpoint_s": 1}
    with pytest.raises(ValueError, match=message):
        calibrated_testbed("x", **(given_times | change))


def test_a_workload_has_one_kind_of_batch():
    with pytest.raises(ValueError, match="either node_samples or step_samples"):
        replace(WORKLOADS["GPT-S"], step_samples=40)
