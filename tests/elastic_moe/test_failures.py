"""Failures: the cap replaces what is lost, processes fail at the rate they say, and texts name what they ask for."""

import json

import numpy as np
import pytest

from artifact import datasets
from artifact.elastic_moe import (
    FailureEvent,
    FailureTrace,
    infinitehbd_failures,
    parse_failures,
    periodic_failures,
    poisson_failures,
    spot_failures,
)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(datasets, "path_or_none", lambda name: None)


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Puts a text in place of every data set."""

    def put(text):
        (tmp_path / "data").write_text(text)
        monkeypatch.setattr(datasets, "path_or_none", lambda name: tmp_path / "data")

    return put


SMALL = "0,add,node1\n0,add,node2\n0,add,node3\n60000,add,node4\n120000,remove,node1\n120000,remove,node4\n"
"""Three nodes; a fourth joins at minute 1; the first and the fourth are lost at minute 2."""


def real(name):
    if not datasets.available(name):
        pytest.skip(f"data set {name} is not at hand")


def test_a_spot_trace_without_a_cap_is_the_file(data):
    data(SMALL)
    expected = (FailureEvent(60, "join", (3,)), FailureEvent(120, "fail", (0, 3)))
    assert spot_failures() == FailureTrace("p3", (0, 1, 2), expected)


def test_a_waiting_node_takes_the_place_of_a_used_one_that_goes(data):
    data(SMALL)
    assert spot_failures(cap=2) == FailureTrace(
        "p3", (0, 1), (FailureEvent(120, "fail", (0,)), FailureEvent(120, "join", (2,)))
    )
    assert spot_failures(cap=3) == FailureTrace(
        "p3", (0, 1, 2), (FailureEvent(120, "fail", (0,)),)
    )  # node 3 goes before it is used


def test_a_stride_keeps_some_machines_of_the_file(data):
    data(SMALL)
    assert spot_failures(stride=2) == FailureTrace("p3", (0, 2), (FailureEvent(120, "fail", (0,)),))
    assert spot_failures(stride=3, cap=1) == FailureTrace(
        "p3", (0,), (FailureEvent(120, "fail", (0,)),)
    )  # node 3 goes in the same minute


def test_four_of_ten_nodes_are_lost_at_minute_34_of_every_second_machine():
    real("spot-p3")
    lost = {event.time_s / 60: len(event.nodes) for event in spot_failures(cap=10, minutes=80, stride=2).events
            if event.kind == "fail"}  # fmt: skip
    assert lost == {34: 4, 51: 1, 53: 2, 54: 1, 57: 2, 77: 1}
    assert max(len(event.nodes) for event in spot_failures(cap=10, minutes=80).events) == 2


def test_a_part_of_a_trace_starts_with_the_nodes_of_its_first_minute(data):
    data(SMALL)
    assert spot_failures(start_minute=1) == FailureTrace("p3", (0, 1, 2, 3), (FailureEvent(60, "fail", (0, 3)),))
    assert spot_failures(start_minute=5) == FailureTrace("p3", (1, 2), ())
    assert spot_failures(minutes=2) == FailureTrace("p3", (0, 1, 2), (FailureEvent(60, "join", (3,)),))


def test_nodes_at_a_time_are_those_after_its_events(data):
    data(SMALL)
    found = spot_failures()
    assert [found.nodes_at(time_s) for time_s in (0, 59.9, 60, 120)] == [(0, 1, 2), (0, 1, 2), (0, 1, 2, 3), (1, 2)]


def test_p3_is_as_described():
    real("spot-p3")
    found = spot_failures()
    assert FailureEvent(34 * 60, "fail", (18, 10, 16, 2)) in found.events  # four at minute 34
    assert sum(len(event.nodes) for event in found.events) == 344 - len(found.initial)
    sizes = [len(found.nodes_at(event.time_s)) for event in found.events]
    assert max(sizes) == 32 and max(len(event.nodes) for event in found.events if event.kind == "fail") == 6


@pytest.mark.parametrize("cap", [1, 10, 25])
def test_the_cap_is_full_whenever_the_trace_has_as_many_nodes(cap):
    real("spot-p3")
    whole, capped = spot_failures(), spot_failures(cap=cap)
    for event in whole.events:
        there, used = whole.nodes_at(event.time_s), capped.nodes_at(event.time_s)
        assert set(used) <= set(there) and len(used) == min(cap, len(there))


def test_infinitehbd_servers_are_down_from_the_first_fault_to_the_last_end(data):
    faults = [("b", 1, "start"), ("a", 2, "start"), ("b", 2.5, "start"), ("b", 3, "end"), ("b", 4, "end")]
    data(json.dumps([{"node_id": n, "event_time": t, "event_type": f"fault_{k}"} for n, t, k in faults]))
    found = infinitehbd_failures()
    assert found.initial == tuple(range(400))
    day = 24 * 3600
    assert found.events == (
        FailureEvent(day, "fail", (0,)),
        FailureEvent(2 * day, "fail", (1,)),
        FailureEvent(4 * day, "join", (0,)),
    )


def test_infinitehbd_is_as_described():
    real("infinitehbd")
    found = infinitehbd_failures()
    together = [len(event.nodes) > 1 for event in found.events if event.kind == "fail"]
    assert len(together) == 511 and sum(together) == 34
    assert found.nodes_at(400 * 24 * 3600) == tuple(range(400))  # all repaired
    assert len(infinitehbd_failures(cap=300).nodes_at(100 * 24 * 3600)) == 300


def test_without_data_a_trace_says_that_it_is_synthetic_and_repeats(no_data):
    found = spot_failures(cap=10)
    assert found.name == "synthetic-p3" and found == spot_failures(cap=10)
    lost = [len(event.nodes) for event in spot_failures().events if event.kind == "fail"]
    assert 100 < sum(lost) < 250 and 4 <= max(lost) <= 6
    assert infinitehbd_failures().name == "synthetic-infinitehbd"


def test_one_node_fails_at_each_interval_until_half_are_left():
    found = periodic_failures(5, 10, seed=1)
    assert [event.time_s for event in found.events] == [300, 600, 900, 1200, 1500]
    assert len(found.nodes_at(1e9)) == 5
    assert len(periodic_failures(5, 7).nodes_at(1e9)) == 4 and len(periodic_failures(5, 7, until_nodes=0).events) == 7
    assert found == periodic_failures(5, 10, seed=1) != periodic_failures(5, 10, seed=2)


def test_nodes_fail_at_the_rate_and_come_back_after_the_repair():
    found = poisson_failures(0.5, 2000, 1, seed=0)
    share = len(found.events) / 2000  # of Poisson processes without repair: 1 - exp(-0.5)
    assert abs(share - (1 - np.exp(-0.5))) < 0.04
    repaired = poisson_failures(2.0, 500, 10, repair_hours=0.25, seed=0)
    up = np.mean([len(repaired.nodes_at(3600 * hour)) for hour in range(2, 10)]) / 500
    assert abs(up - 0.5 / (0.5 + 0.25)) < 0.04  # up half an hour, down a quarter
    assert poisson_failures(0, 3, 1).events == ()


def test_a_rate_is_the_probability_of_a_failure_within_an_hour():
    found = parse_failures("rate:0.3", 5000, 60, seed=1)
    assert found.name == "rate:0.3" and abs(len(found.events) / 5000 - 0.3) < 0.03


def test_texts_of_the_command_line():
    assert parse_failures("every:5min", 10, 30, seed=3) == periodic_failures(5, 10, seed=3)
    assert len(parse_failures("every:2.5min", 10, 6).events) == 2
    assert parse_failures("trace:p3", 10, 80) == spot_failures("p3", cap=10, minutes=80)
    assert parse_failures("trace:infinitehbd", 10, 80) == infinitehbd_failures(cap=10, minutes=80)


@pytest.mark.parametrize(
    "text",
    ["", "every:5", "every:0min", "every:-1min", "trace:p4", "rate:1", "rate:1.5", "rate:x", "rate:5min", "none"],
)
def test_another_text_is_refused_by_name(text):
    with pytest.raises(ValueError, match=f"failures must be every:.*, got {text!r}"):
        parse_failures(text, 10, 30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spot_failures("p2"), "one of p3, got 'p2'"),
        (lambda: spot_failures(cap=0), "cap must be at least 1, got 0"),
        (lambda: spot_failures(minutes=0), "minutes must be positive, got 0"),
        (lambda: spot_failures(stride=0), "stride must be at least 1, got 0"),
        (lambda: spot_failures(start_minute=-1), "start_minute must not be negative, got -1"),
        (lambda: parse_failures("every:5min", 0, 30), "num_nodes must be at least 1, got 0"),
        (lambda: parse_failures("every:5min", 10, 0), "must be positive, got 0"),
        (lambda: periodic_failures(0, 10), "must be positive, got 0"),
        (lambda: periodic_failures(5, 10, until_nodes=11), r"in \[0, 10\], got 11"),
        (lambda: poisson_failures(-1, 10, 1), "must not be negative, got -1"),
        (lambda: poisson_failures(1, 10, 1, repair_hours=0), "repair_hours must be positive, got 0"),
        (
            lambda: FailureTrace("x", (0,), (FailureEvent(2, "fail", (0,)), FailureEvent(1, "join", (0,)))),
            "in order of time, got 1 s after 2",
        ),
        (lambda: FailureTrace("x", (0,), (FailureEvent(1, "fail", (1,)),)), r"fail must be present, got \[1\]"),
        (lambda: FailureTrace("x", (0,), (FailureEvent(1, "join", (0,)),)), r"join must be absent, got \[0\]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
