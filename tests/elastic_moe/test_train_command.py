"""`python -m artifact train-moe`: what it prints, and how it refuses what cannot be run."""

import json

import pytest

EXAMPLE = ("train-moe", "--nodes", 4, "--steps", 6)
KEYS = {"losses", "members", "failures", "lost_steps", "restarts", "tokens_per_second", "seconds", "ended", "events"}


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--kill", "1"), "--kill must be NODE@STEP or NODE@STEP:POINT, got '1'"),
        (("--kill", "7@2"), "a node that fails must be in [0, 4), got 7"),
        (("--stop", "1@x"), "--stop must be NODE@STEP or NODE@STEP:POINT, got '1@x'"),
        (("--stop", "1@2:lunch"), "got 'lunch'"),
        (("--join", 9), "a node must join at a step in [0, 6), got 9"),
        (("--system", "magic"), "system must be one of lazarus, ds, ds-ft, got 'magic'"),
        (("--preset", "huge"), "got 'huge'"),
        (("--trace", "p9"), "--trace must be one of p3, infinitehbd, got 'p9'"),
        (("--method", "magic"), "got 'magic'"),
        (("--checkpoint-interval", 0), "--checkpoint-interval must be at least 1, got 0"),
        (("--heartbeat", 0), "--heartbeat must be at least 0.1 seconds, got 0"),
        (("--device", "tpu"), "--device must be cpu or cuda, got 'tpu'"),
        (("--listen", "here"), "must be HOST:PORT, got 'here'"),
        (("--resume",), "--resume goes with --checkpoints, got no folder"),
        (("--seed", -1), "--seed must not be negative, got -1"),
    ],
)
def test_refused(run, arguments, told):
    status, out, err = run(*EXAMPLE, *arguments)
    assert (status, out) == (2, "")
    assert told in err and err.count("\n") == 1
