"""`python -m artifact moe simulate`: what it prints, and how it refuses what cannot be simulated."""

import json
from typing import get_args

import pytest

from artifact.elastic_moe import PHASES, SIMULATED_SYSTEMS, commands, periodic_failures, simulate
from artifact.elastic_moe.simulation.step_time import TESTBEDS, WORKLOADS

KEYS = {"model", "system", "failures", "testbed", "minutes", "samples", "steps", "samples_per_s", "lost_samples"}
KEYS |= {"lost_steps", "restarts", "reconfigurations", "rebalances", "moved_states", "state_seconds", "timeline"}
KEYS |= {"seconds"}
EXAMPLE = {"model": "GPT-L", "system": "lazarus", "failures": "every:5min", "nodes": 10, "minutes": 30}


@pytest.fixture
def run(run):
    """`moe simulate` with options by name."""

    def call(*flags, **options):
        given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return run("moe", "simulate", *given, *flags)

    return call


def printed(outcome):
    status, out, err = outcome
    assert (status, err) == (0, "")
    return json.loads(out)


def test_the_choices_are_what_the_simulator_has():
    assert get_args(commands.Simulated) == tuple(SIMULATED_SYSTEMS)
    assert get_args(commands.Model) == tuple(WORKLOADS)
    assert get_args(commands.Testbed) == tuple(TESTBEDS)


@pytest.mark.parametrize("system", SIMULATED_SYSTEMS)
def test_example(run, system):
    found = printed(run("--json", **{**EXAMPLE, "system": system}))
    assert set(found) == KEYS
    assert (found["model"], found["system"], found["failures"]) == ("GPT-L", system, "every:5min")
    assert set(found["state_seconds"]) == set(PHASES)
    assert sum(found["state_seconds"].values()) == pytest.approx(1800)
    assert found["timeline"][0]["start_s"] == 0 and found["timeline"][-1]["end_s"] == 1800
    assert sum(each["samples"] for each in found["timeline"]) == found["samples"] + found["lost_samples"]
    assert found["timeline"][0]["nodes"] == 10 and found["timeline"][-1]["nodes"] == 5
    expected = simulate("GPT-L", system, periodic_failures(5, 10), "paper-gpu", 30)
    assert (found["samples"], found["restarts"]) == (expected.samples, expected.restarts)


@pytest.mark.parametrize("failures", ["trace:p3", "trace:infinitehbd", "rate:0.9", "every:2.5min"])
def test_every_kind_of_failure(run, failures):
    found = printed(run("--json", **{**EXAMPLE, "failures": failures}))
    assert found["failures"].removeprefix("synthetic-") == failures.removeprefix("trace:")
    assert found["steps"] > 0


def test_seed_checkpoints_and_testbed_are_heeded(run):
    rate = {**EXAMPLE, "failures": "rate:0.9", "system": "ds"}
    first, again, other = (printed(run("--json", **rate, seed=seed)) for seed in (0, 0, 1))
    del first["seconds"], again["seconds"]
    assert first == again and first["timeline"] != other["timeline"]
    slow, often = (
        printed(run("--json", **EXAMPLE, testbed="a10g")),
        printed(run("--json", **EXAMPLE, checkpoint_steps=10)),
    )
    base = printed(run("--json", **EXAMPLE))
    assert slow["samples"] < base["samples"]
    assert often["state_seconds"]["checkpointing"] > base["state_seconds"]["checkpointing"]


def test_people_read_a_table(run):
    status, out, err = run(**EXAMPLE)
    assert (status, err) == (0, "")
    assert "samples_per_s" in out and "reconfiguring" in out and "failures: every:5min" in out


def test_a_large_model_has_its_own_testbed(run):
    options = {**EXAMPLE, "model": "DeepSeek-V3", "nodes": 32, "testbed": "h200-deepseek-v3", "failures": "rate:0.5"}
    assert printed(run("--json", **options))["steps"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "GPT-4"}, "--model must be one of GPT-S, GPT-M, GPT-L, DeepSeek-V3, tiny, small, got 'GPT-4'"),
        ({"system": "magic"}, "--system must be one of lazarus, ds, ds-ft, tutel, tutel-ft, got 'magic'"),
        ({"testbed": "tpu"}, "--testbed must be one of paper-gpu, a10g, h200-deepseek-v3, got 'tpu'"),
        ({"failures": "sometimes"}, "failures must be every:<minutes>min"),
        ({"failures": "rate:2"}, "got 'rate:2'"),
        ({"failures": "every:0min"}, "got 'every:0min'"),
        ({"failures": "trace:p9"}, "got 'trace:p9'"),
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"nodes": -3}, "--nodes must be at least 1, got -3"),
        ({"minutes": 0}, "--minutes must be positive and finite, got 0"),
        ({"minutes": "inf"}, "--minutes must be positive and finite, got inf"),
        ({"minutes": "nan"}, "--minutes must be positive and finite, got nan"),
        ({"checkpoint_steps": 0}, "--checkpoint-steps must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
    ],
)
def test_refused(run, options, told):
    status, out, err = run(**{**EXAMPLE, **options})
    assert (status, out) == (2, "")
    assert told in err and err.count("\n") == 1
