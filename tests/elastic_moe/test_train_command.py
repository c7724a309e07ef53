"""`python -m artifact moe train`: what it prints, and how it refuses what cannot be run."""

import json
from typing import get_args

import pytest

from artifact.elastic_moe import commands
from artifact.elastic_moe.presets import PRESETS
from artifact.elastic_moe.training.planning import TRAINED_SYSTEMS

EXAMPLE = ("moe", "train", "--nodes", 4, "--steps", 6)
KEYS = {"losses", "members", "failures", "lost_steps", "restarts", "tokens_per_second", "seconds", "ended", "events"}


def test_the_choices_are_what_can_be_trained():
    assert get_args(commands.Preset) == tuple(PRESETS)
    assert get_args(commands.Trained) == TRAINED_SYSTEMS


@pytest.mark.slow
def test_example(run):
    status, out, err = run(*EXAMPLE, "--kill", "1@2", "--join", 3, "--json")
    assert status == 0
    found = json.loads(out)
    assert set(found) >= KEYS
    assert len(found["losses"]) == len(found["members"]) == 6 and found["ended"] == "finished"
    (failure,) = found["failures"]
    assert (failure["node"], failure["step"]) == (1, 2)
    assert 0 < failure["detected_after_s"] < failure["outage_s"]
    assert found["members"][0] == [0, 1, 2, 3] and found["members"][-1] == [0, 2, 3, 4]
    assert err.count("step {") == 6  # progress


@pytest.mark.slow
def test_training_that_cannot_go_on_says_why_and_nothing_else(run):
    status, out, err = run("moe", "train", "--nodes", 2, "--steps", 6, "--kill", "1@3", "--json")
    assert status == 1
    assert "got 1 nodes with 4 slots" in json.loads(out)["ended"]
    assert {line.split()[0] for line in err.splitlines()} == {"joined", "generation", "step", "lost"}


def test_refused_where_there_are_too_few_devices(run, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    status, out, err = run(*EXAMPLE, "--device", "cuda")
    assert (status, out) == (2, "")
    assert "--device cuda must have a device for each of 4 nodes, found 3" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--kill", "1"), "--kill must be NODE@STEP or NODE@STEP:POINT, got 1"),
        (("--kill", "7@2"), "a node that fails must be in [0, 4), got 7"),
        (("--stop", "1@x"), "--stop must be NODE@STEP or NODE@STEP:POINT, got '1@x'"),
        (("--stop", "1@2:lunch"), "got 'lunch'"),
        (("--join", 9), "a node must join at a step in [0, 6), got 9"),
        (("--system", "magic"), "--system must be one of lazarus, ds, ds-ft, got 'magic'"),
        (("--preset", "huge"), "got 'huge'"),
        (("--trace", "p9"), "--trace must be one of p3, infinitehbd, got 'p9'"),
        (("--method", "magic"), "got 'magic'"),
        (("--checkpoint-interval", 0), "--checkpoint-interval must be at least 1, got 0"),
        (("--heartbeat", 0), "--heartbeat must be at least 0.1, got 0"),
        (("--heartbeat", "nan"), "--heartbeat must be at most 3600, got nan"),
        (("--heartbeat", 1e12), "--heartbeat must be at most 3600, got 1000000000000.0"),
        (("--device", "tpu"), "--device must be one of cpu, cuda, got 'tpu'"),
        (("--listen", "here"), "must be HOST:PORT with a port up to 65535, got 'here'"),
        (("--listen", "localhost:99999"), "got 'localhost:99999'"),
        (("--listen", "192.0.2.1:5000"), "an address must be one of this machine and free, got 192.0.2.1:5000"),
        (("--kill", "1@2", "--stop", "1@4"), "a node must fail once, got 2 failures of node 1"),
        (("--kill", "4@2", "--join", 3), "node 4 must fail no sooner than it joins, at step 3, got 2"),
        (("--checkpoints", "/dev/null"), "must have a folder that can be written to, got /dev/null"),
        (("--checkpoints", "/dev/null/none", "--resume"), "a checkpoint to resume from, got none in /dev/null/none"),
        (("--resume",), "--resume goes with --checkpoints, got no folder"),
        (("--seed", -1), "--seed must be at least 0, got -1"),
    ],
)
def test_refused(run, arguments, told):
    status, out, err = run(*EXAMPLE, *arguments)
    assert (status, out) == (2, "")
    assert told in err and err.count("\n") == 1
