"""The simulator: small cases worked by hand, what is conserved, and the closed form without failures."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from artifact.elastic_moe import (
    PHASES,
    SIMULATED_SYSTEMS,
    TESTBEDS,
    WORKLOADS,
    FailureEvent,
    FailureTrace,
    LayoutCache,
    LoadTrace,
    calibrated_testbed,
    default_loads,
    drifting_loads,
    periodic_failures,
    poisson_failures,
    simulate,
)
from artifact.elastic_moe.simulation.layouts import GroupLayout

EVEN = LoadTrace("even", np.ones((1, 2, 8), dtype=np.int64), (1,))
DRIFTING = drifting_loads(2, 8, 200, skew=1, drift=0.2, seed=1)
SECOND = calibrated_testbed(
    "a step a second",
    step_s={system: {1: 1.0} for system in SIMULATED_SYSTEMS},
    outage_s=3,
    restart_s=5,
    checkpoint_s=2,
    join_s=4,
    rebalance_s=1,
    join_wait_s=10,
)
"""With the workload tiny: 32 samples a step, 8 experts, Lazarus 4 slots a node, DS groups of 2."""


def run(system, events, seconds, nodes=4, *, loads=EVEN, clock=SECOND, checkpoint_steps=None, **options):
    events = tuple(FailureEvent(*event) for event in events)
    trace = FailureTrace("by hand", tuple(range(nodes)), events)
    return simulate(
        "tiny", system, trace, clock, seconds / 60, loads=loads, checkpoint_steps=checkpoint_steps, **options
    )


def phases(result):
    return [(segment.state, segment.start_s, segment.end_s, segment.samples // 32) for segment in result.segments]


def test_without_failure_steps_are_time_over_step_time():
    result = run("ds", [], 60.5)
    assert phases(result) == [("training", 0, 60.5, 60)]
    assert (result.steps, result.samples, result.samples_per_s) == (60, 1920, pytest.approx(1920 / 60.5))


def test_lazarus_under_even_load_is_the_closed_form():
    testbed, loads = TESTBEDS["paper-gpu"], LoadTrace("even", np.ones((1, 12, 8), dtype=np.int64), (1,))
    layouts = LayoutCache(WORKLOADS["GPT-S"], loads)
    layout = layouts.of(SIMULATED_SYSTEMS["lazarus"], 8, 0)
    assert layout.slowest_L(np.full((12, 8), 1 / 8))[0] == pytest.approx([1] * 12, rel=1e-6)  # 6 replicas of each
    step_s = testbed.step_s(WORKLOADS["GPT-S"], "lazarus", layout, np.full((12, 8), 1 / 8))
    result = simulate("GPT-S", "lazarus", periodic_failures(999, 8), testbed, 30, loads=layouts, checkpoint_steps=250)
    cycle_s = 250 * step_s + testbed.checkpoint_s(WORKLOADS["GPT-S"], 8)
    cycles, left_s = divmod(1800, cycle_s)
    assert result.steps == 250 * cycles + min(250, left_s // step_s)
    assert result.rebalances == 0 and result.samples == 32 * result.steps


def test_ds_restarts_from_its_checkpoint_and_loses_the_steps_since():
    result = run("ds", [(25.5, "fail", (0,))], 40, checkpoint_steps=10)
    assert phases(result) == [
        ("training", 0, 10, 10),
        ("checkpointing", 10, 12, 0),
        ("training", 12, 22, 10),
        ("checkpointing", 22, 24, 0),
        ("training", 24, 25.5, 1),
        ("restarting", 25.5, 30.5, 0),
        ("training", 30.5, 40, 9),
    ]
    assert (result.steps, result.lost_steps, result.lost_samples, result.restarts) == (29, 1, 32, 1)
    assert [segment.used for segment in result.segments[-2:]] == [0, 2]  # three are left: one group


def test_a_checkpoint_that_is_interrupted_does_not_count():
    result = run("ds", [(23, "fail", (1,))], 29, checkpoint_steps=10)
    assert (result.steps, result.lost_steps) == (10 + 1, 10)


def test_failures_during_a_restart_begin_it_anew():
    result = run("ds", [(10, "fail", (0,)), (12, "fail", (1,))], 20)
    assert phases(result)[1:] == [("restarting", 10, 12, 0), ("restarting", 12, 17, 0), ("training", 17, 20, 3)]
    assert (result.restarts, result.lost_steps) == (1, 10)


def test_a_failure_is_detected_before_a_restart_and_before_a_reconfiguration():
    late = replace(SECOND, detection_s=2.5)
    restarted = run("ds", [(25.5, "fail", (0,))], 40, clock=late, checkpoint_steps=10)
    assert phases(restarted)[-2:] == [("restarting", 25.5, 33, 0), ("training", 33, 40, 7)]
    in_place = run("ds-ft", [(10.5, "fail", (0,))], 20, clock=late)
    assert phases(in_place)[1:] == [("reconfiguring", 10.5, 16, 0), ("training", 16, 20, 4)]
    # Joins need no detection, and nodes that stalled for others have been detected: the same as with SECOND.
    joins = [(5.5, "join", (8, 9))]
    for system in ("ds", "lazarus"):
        assert phases(run(system, joins, 40, clock=late)) == phases(run(system, joins, 40))


def test_a_testbed_of_rates_restarts_after_its_detection_time():
    def restarting(detection_s):
        clock = replace(TESTBEDS["a10g"], detection_s=detection_s)
        result = simulate("GPT-S", "ds", periodic_failures(5, 8, until_nodes=7), clock, 15)
        assert result.restarts == 1
        return result.seconds["restarting"]

    assert restarting(20) - restarting(5) == pytest.approx(15)


def test_ds_ft_goes_on_while_every_expert_is_left():
    result = run("ds-ft", [(10.5, "fail", (0,))], 20)
    assert phases(result) == [("training", 0, 10.5, 10), ("reconfiguring", 10.5, 13.5, 0), ("training", 13.5, 20, 6)]
    assert (result.reconfigurations, result.restarts, result.lost_steps) == (1, 0, 0)
    assert result.segments[-1].nodes == 3 and result.segments[-1].used == 2
    # Nodes 0 and 2 hold the same half of the experts.
    together = run("ds-ft", [(10.5, "fail", (0, 2))], 20)
    assert (together.reconfigurations, together.restarts, together.lost_steps) == (0, 1, 10)
    halves = run("ds-ft", [(10.5, "fail", (0, 1))], 20)
    assert (halves.reconfigurations, halves.moved_states) == (1, 0)
    assert run("ds-ft", [(10.5, "fail", (0, 3))], 20).moved_states == 0


def test_an_idle_node_fails_without_a_trace():
    for system in ("ds", "ds-ft"):
        result = run(system, [(10, "fail", (4,))], 20, nodes=5)
        assert [segment.state for segment in result.segments] == ["training"] * 2
        assert result.steps == 20


def test_lazarus_uses_all_nodes_and_loses_the_step_that_is_interrupted_only():
    result = run("lazarus", [(10.5, "fail", (3,))], 20, nodes=5)
    assert phases(result) == [("training", 0, 10.5, 10), ("reconfiguring", 10.5, 13.5, 0), ("training", 13.5, 20, 6)]
    assert [segment.used for segment in result.segments] == [5, 4, 4]
    assert result.lost_steps == 0


def test_lazarus_restarts_where_an_expert_is_lost():
    # 4 nodes of 4 slots, 2 replicas of each of 8 experts: groups of 2 nodes hold the same experts.
    result = run("lazarus", [(13.5, "fail", (0, 1))], 30, checkpoint_steps=10)
    assert phases(result)[2:] == [
        ("training", 12, 13.5, 1),
        ("restarting", 13.5, 18.5, 0),
        ("training", 18.5, 28.5, 10),
        ("checkpointing", 28.5, 30, 0),
    ]
    assert (result.lost_steps, result.restarts) == (1, 1)
    assert run("lazarus", [(13.5, "fail", (0, 2))], 30, checkpoint_steps=10).restarts == 0


def test_nodes_that_join_wait_for_others():
    result = run("lazarus", [(5.5, "join", (8,)), (9, "join", (9,)), (40, "fail", (8,))], 50)
    assert phases(result) == [
        ("training", 0, 5.5, 5),
        ("training", 5.5, 9, 4),
        ("training", 9, 16, 7),  # ten seconds after the first, at the end of a step
        ("reconfiguring", 16, 20, 0),
        ("training", 20, 40, 20),
        ("reconfiguring", 40, 43, 0),
        ("training", 43, 50, 7),
    ]
    assert [segment.nodes for segment in result.segments] == [4, 5, 6, 6, 6, 5, 5]
    assert [segment.used for segment in result.segments] == [4, 4, 4, 4, 6, 5, 5]


def test_a_node_that_fails_while_it_waits_is_never_used():
    alone = run("lazarus", [(5.5, "join", (8,)), (9, "fail", (8,))], 40)
    assert phases(alone) == [("training", 0, 5.5, 5), ("training", 5.5, 9, 4), ("training", 9, 40, 31)]
    assert [(segment.nodes, segment.used) for segment in alone.segments] == [(4, 4), (5, 4), (4, 4)]
    other = run("lazarus", [(5.5, "join", (8, 9)), (9, "fail", (8,))], 40)
    assert phases(other)[-2:] == [("reconfiguring", 16, 20, 0), ("training", 20, 40, 20)]
    assert (other.segments[-1].nodes, other.segments[-1].used) == (5, 5)


def test_ds_takes_another_group_by_a_checkpoint_and_a_restart():
    one, two = [(5.5, "join", (8,))], [(5.5, "join", (8, 9))]
    assert run("ds", one, 40).steps == 40
    result = run("ds", two, 40)
    assert phases(result)[1:] == [
        ("training", 5.5, 16, 11),
        ("checkpointing", 16, 18, 0),
        ("restarting", 18, 23, 0),
        ("training", 23, 40, 17),
    ]
    assert result.lost_steps == 0 and result.segments[-1].used == 6


def test_too_few_nodes_stall_until_others_join():
    events = [(10, "fail", (0, 1, 2)), (12, "join", (5,)), (30, "fail", (3,))]
    for system in ("lazarus", "ds", "ds-ft"):
        result = run(system, events, 60)
        assert phases(result)[1:] == [
            ("stalled", 10, 12, 0),
            ("stalled", 12, 22, 0),
            ("restarting", 22, 27, 0),
            ("training", 27, 30, 3),
            ("stalled", 30, 60, 0),
        ]
        assert (result.steps, result.lost_steps, result.restarts) == (0, 13, 1)


def test_a_rebalance_follows_the_loads():
    moving = LoadTrace("moving", np.stack([np.tile([1] * 7 + [9], (2, 1)), np.tile([9] + [1] * 7, (2, 1))]), (1, 11))
    result = run("lazarus", [], 60, nodes=6, loads=moving, rebalance_steps=20)
    assert phases(result) == [("training", 0, 20, 20), ("rebalancing", 20, 21, 0), ("training", 21, 60, 39)]
    assert result.rebalances == 1 and result.moved_states > 0


def test_a_run_can_end_at_a_number_of_samples():
    result = run("lazarus", [], 600, until_samples=100)
    assert (result.samples, result.total_s) == (128, 4)


@pytest.mark.parametrize("system", SIMULATED_SYSTEMS)
@pytest.mark.parametrize("seed", range(4))
def test_time_samples_and_nodes_are_conserved(system, seed):
    trace = poisson_failures(2.0, 9, 1, repair_hours=0.1, seed=seed)
    result = simulate("tiny", system, trace, SECOND, 60, loads=DRIFTING, checkpoint_steps=20, rebalance_steps=30)
    assert result.segments[0].start_s == 0 and result.segments[-1].end_s == 3600
    assert all(before.end_s == after.start_s for before, after in pairwise(result.segments))
    assert sum(result.seconds.values()) == pytest.approx(3600) and set(result.seconds) == set(PHASES)
    done = sum(segment.samples for segment in result.segments)
    assert done == result.samples + result.lost_samples == 32 * (result.steps + result.lost_steps)
    for segment in result.segments:
        assert segment.nodes == len(trace.nodes_at(segment.start_s)) and segment.used <= segment.nodes
        assert (segment.samples_per_s > 0) == (segment.state == "training")
    assert result == simulate(
        "tiny", system, trace, SECOND, 60, loads=DRIFTING, checkpoint_steps=20, rebalance_steps=30
    )


@pytest.mark.parametrize("model", ["GPT-S", "GPT-M", "GPT-L"])
@pytest.mark.parametrize("seed", range(3))
def test_a_failure_never_raises_the_throughput_of_ds(model, seed):
    trace, recorded = periodic_failures(5, 10, seed=seed), default_loads(WORKLOADS[model])
    loads = LoadTrace("still", recorded.counts_ILE[-1:], (1,))
    result = simulate(model, "ds", trace, "paper-gpu", 30, loads=loads)
    rates = [segment.samples_per_s for segment in result.segments if segment.state == "training"]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) > 1
    none, one = (FailureTrace("", trace.initial, trace.events[:count]) for count in (0, 1))
    without, once = (simulate(model, "ds", each, "paper-gpu", 30, loads=loads) for each in (none, one))
    assert once.samples <= without.samples


def test_layers_that_stand_for_all_move_as_much():
    loads = drifting_loads(12, 8, 100, skew=1, drift=0, seed=0)
    same = LoadTrace("same", loads.counts_ILE[:, [0] * 12], loads.iterations)
    one = LoadTrace("one", loads.counts_ILE[:, :1], loads.iterations)
    trace = periodic_failures(5, 10, seed=1)
    all_layers, one_layer = (simulate("GPT-S", "lazarus", trace, "paper-gpu", 30, loads=each) for each in (same, one))
    assert all_layers.moved_states == one_layer.moved_states and all_layers.steps == one_layer.steps


def test_thousands_of_layouts_are_not_kept():
    layouts = LayoutCache(WORKLOADS["tiny"], DRIFTING, kept=3)
    first = layouts.of(SIMULATED_SYSTEMS["lazarus"], 4, 0)
    assert layouts.of(SIMULATED_SYSTEMS["lazarus"], 4, 0) is first
    for record in range(1, 4):
        layouts.of(SIMULATED_SYSTEMS["lazarus"], 4, record)
    assert layouts.of(SIMULATED_SYSTEMS["lazarus"], 4, 0) is not first
    assert isinstance(layouts.of(SIMULATED_SYSTEMS["ds"], 5, 0), GroupLayout)
    assert layouts.of(SIMULATED_SYSTEMS["ds"], 1, 0) is None and layouts.of(SIMULATED_SYSTEMS["lazarus"], 1, 0) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: simulate("GPT-X", "ds", periodic_failures(5, 4), "a10g", 1),
            "model must be one of .*GPT-S.*, got 'GPT-X'",
        ),
        (
            lambda: simulate("GPT-S", "sd", periodic_failures(5, 4), "a10g", 1),
            "system must be one of lazarus.*, got 'sd'",
        ),
        (
            lambda: simulate("GPT-S", "ds", periodic_failures(5, 4), "tpu", 1),
            "testbed must be one of paper-gpu.*, got 'tpu'",
        ),
        (
            lambda: simulate("GPT-S", "ds", periodic_failures(5, 4), "a10g", 0),
            "minutes must be positive and finite, got 0",
        ),
        (lambda: run("ds", [], 5, checkpoint_steps=-1), "checkpoint_steps must be at least 1, got -1"),
        (lambda: run("ds", [], 5, rebalance_steps=0), "rebalance_steps must be at least 1, got 0"),
        (
            lambda: simulate(
                "GPT-S",
                "ds",
                periodic_failures(5, 4),
                "a10g",
                1,
                loads=drifting_loads(1, 4, 1, skew=0, drift=0, seed=0),
            ),
            "loads must be of 8 experts, got 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
