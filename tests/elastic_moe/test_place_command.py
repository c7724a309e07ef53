"""`python -m artifact moe place`: what it prints, and how it refuses what cannot be placed."""

import json
import math
from itertools import combinations
from typing import get_args

import pytest

from artifact.elastic_moe import METHODS, commands

KEYS = {"replicas", "placement", "recovery_probability", "exact", "seconds", "max_load_ratio"}
EXAMPLE = ("moe", "place", "--replicas", "2,2,3,4,5", "--nodes", 5, "--slots", 4)


def printed(outcome):
    status, out, err = outcome
    assert (status, err) == (0, "")
    return json.loads(out)


def enumerated(placement, num_experts):
    """Recovery probabilities from every set of failed nodes."""
    nodes = range(len(placement))
    chances = []
    for k in range(len(placement) + 1):
        good = [
            set().union(*(placement[node] for node in nodes if node not in failed)) == set(range(num_experts))
            for failed in combinations(nodes, k)
        ]
        chances.append(sum(good) / len(good))
    return chances


def test_the_choices_are_the_methods():
    assert get_args(commands.Method) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_example(run, method):
    found = printed(run(*EXAMPLE, "--method", method, "--json"))
    assert set(found) == KEYS
    assert found["replicas"] == [2, 2, 3, 4, 5]
    assert (
        sorted(expert for node in found["placement"] for expert in node)
        == [0] * 2 + [1] * 2 + [2] * 3 + [3] * 4 + [4] * 5
    )
    assert all(len(node) <= 4 for node in found["placement"])
    assert found["recovery_probability"] == pytest.approx(enumerated(found["placement"], 5))
    assert found["exact"] is True
    assert 0 <= found["seconds"] < 60
    assert found["max_load_ratio"] >= 1


def test_best_of_the_given_number_of_failures_is_reached_where_mro_is_not(run):
    wanted = ("moe", "place", "--replicas", "6,6,6,7,7", "--nodes", 8, "--slots", 4, "--failures", 6, "--json")
    assert printed(run(*wanted, "--method", "best"))["recovery_probability"][6] == pytest.approx(25 / 28)
    assert printed(run(*wanted))["recovery_probability"][6] == pytest.approx(12 / 28)


def test_loads_are_allocated_first(run):
    found = printed(run("moe", "place", "--loads", "10,5,1", "--min-replicas", 2, "--nodes", 4, "--slots", 3, "--json"))
    assert sum(found["replicas"]) == 12 and found["replicas"][0] > found["replicas"][1] >= found["replicas"][2] == 2
    carried = [
        sum(load / copies for load, copies in ((([10, 5, 1][e]), found["replicas"][e]) for e in node))
        for node in found["placement"]
    ]
    assert found["max_load_ratio"] == pytest.approx(max(carried) / (math.fsum(carried) / 4))


def test_slots_one_a_node(run):
    found = printed(run("moe", "place", "--replicas", "2,2,2", "--nodes", 3, "--slots", "3,2,1", "--json"))
    assert [len(node) for node in found["placement"]] == [3, 2, 1]


def test_many_nodes_are_sampled_or_counted_and_say_so(run):
    loads = ",".join(map(str, range(1, 65)))
    options = ("--loads", loads, "--nodes", 128, "--slots", 8, "--min-replicas", 2)
    found = printed(run("moe", "place", *options, "--json"))
    assert len(found["recovery_probability"]) == 129
    assert found["seconds"] < 60


def test_people_read_a_table(run):
    status, out, err = run(*EXAMPLE)
    assert (status, err) == (0, "")
    assert "node 4" in out and "recovery probability" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--replicas", "2,2", "--nodes", 5, "--slots", 4), "4 replicas leave 16 of 20 slots empty"),
        (("--replicas", "20,2", "--nodes", 5, "--slots", 4), "must not exceed the slots, got 22 replicas for 20"),
        (("--replicas", "1", "--nodes", 0, "--slots", 4), "--nodes must be at least 1, got 0"),
        (("--loads", "3,-1", "--nodes", 2, "--slots", 2), "not negative, got -1"),
        (("--loads", "3,nan", "--nodes", 2, "--slots", 2), "got nan"),
        (("--loads", "1,1,1,1,1", "--nodes", 2, "--slots", 2), "at least one an expert, got 4 for 5 experts"),
        (("--replicas", "2,0", "--nodes", 1, "--slots", 2), "at least 1 replica, got 0"),
        (("--replicas", "2,x", "--nodes", 1, "--slots", 2), "--replicas must be numbers with commas"),
        (
            ("--replicas", "2,2", "--nodes", 2, "--slots", 0),
            "--slots must be at least 1 on every node, at most 1000000 in all, got 0",
        ),
        (("--replicas", "2,2", "--nodes", 2, "--slots", "2,2,2"), "one for each of 2 nodes, got 3"),
        (("--nodes", 2, "--slots", 2), "either --replicas or --loads, got neither"),
        (("--replicas", "1", "--loads", "1", "--nodes", 1, "--slots", 1), "got both"),
        (("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--method", "magic"), "eplb, got 'magic'"),
        (
            ("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--failure-probability", "nan"),
            "must be at most 1, got nan",
        ),
        (("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--failures", 3), "--failures must be in [0, 2]"),
        (
            ("--loads", "1,1", "--nodes", 2, "--slots", 2, "--min-replicas", 0),
            "--min-replicas must be at least 1, got 0",
        ),
        (
            ("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--failure-probability", 2),
            "--failure-probability must be at most 1, got 2",
        ),
        (
            ("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--min-replicas", 2),
            "--min-replicas goes with --loads, got 2",
        ),
        (("--replicas", "2,2", "--nodes", 10**30, "--slots", 2), "--nodes must be at most 10000, got 1000000"),
        (("--replicas", "2,2", "--nodes", 2, "--slots", 10**12), "at most 1000000 in all, got 1000000000000"),
        (("--loads", f"1,{10**400}", "--nodes", 2, "--slots", 2), "--loads must be at most 1e+300, got 1000"),
        (("--loads", f"1,-{10**400}", "--nodes", 2, "--slots", 2), "--loads must be at most 1e+300, got -1000"),
        (("--replicas", "2,2", "--nodes", 2, "--slots", 2, "--seed", -1), "--seed must be at least 0, got -1"),
    ],
)
def test_refused(run, arguments, told):
    status, out, err = run("moe", "place", *arguments)
    assert (status, out) == (2, "")
    assert told in err and err.count("\n") == 1
