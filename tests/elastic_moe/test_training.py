"""Real processes: killed, stopped and joining in every phase of a step, they train as one process would."""

import asyncio
import time

import pytest
import torch
from training_runs import TINY, alone, checked

from artifact.elastic_moe import FailureEvent, FailureTrace, train
from artifact.elastic_moe.training import checkpoint
from artifact.elastic_moe.training.collectives import Group
from artifact.elastic_moe.training.controller import Controller

pytestmark = pytest.mark.slow

PATIENT_S = 10.0
"""Heartbeat time where kills are tested: they are seen by their connections, and a process may wait for a core."""


def test_killed_in_every_phase_of_a_step(forks):
    points = ("forward", "backward", "allreduce", "vote", "apply")
    kills = [(node, 2 + 2 * node, point) for node, point in enumerate(points)]
    result = checked(train(nodes=8, steps=13, kills=kills, heartbeat_s=PATIENT_S, forks=forks, seed=0), 13)
    assert [(each["node"], each["point"]) for each in result.failures] == list(enumerate(points))
    assert (result.lost_steps, result.restarts) == (0, 0)
    # A step that every survivor was prepared for is not run again: node 3 died in its vote at step 8, node 4 after it.
    assert [len(members) for members in result.members] == [8] * 2 + [7] * 2 + [6] * 2 + [5] * 3 + [4] * 2 + [3] * 2
    for failure in result.failures:
        assert failure["detected_after_s"] < 2
        assert failure["transferred_bytes"] > 0


def test_several_at_once_during_migration_and_before_a_checkpoint(forks, tmp_path):
    kills = [(0, 3, "backward"), (1, 3, "allreduce"), (2, 3, "migration"), (3, 8, "checkpoint")]
    options = {"checkpoint_interval": 4, "folder": tmp_path, "heartbeat_s": PATIENT_S, "forks": forks, "seed": 0}
    result = checked(train(nodes=8, steps=12, kills=kills, **options), 12)
    assert {each["node"] for each in result.failures} == {0, 1, 2, 3}
    assert result.members[-1] == [4, 5, 6, 7]
    assert result.lost_steps == result.restarts == 0
    # The one of step 8 was given up when its writer died; the one before it is whole.
    assert checkpoint.finished_steps(tmp_path) == [4]
    assert not list(tmp_path.glob("*.part"))


def test_killed_while_the_others_write_a_checkpoint(forks, tmp_path):
    """What a survivor is writing is discarded only once it has stopped writing."""
    options = {"checkpoint_interval": 4, "folder": tmp_path, "heartbeat_s": PATIENT_S, "forks": forks, "seed": 0}
    result = checked(train(nodes=4, steps=6, kills=[(1, 3, "apply")], **options), 6)
    assert [each["node"] for each in result.failures] == [1]
    assert result.lost_steps == result.restarts == 0
    assert not list(tmp_path.glob("*.part"))


def test_stopped_node_is_found_within_the_heartbeat_time_and_a_node_joins(forks):
    result = checked(
        train(nodes=4, steps=14, stops=[(2, 3, "backward")], joins=[8], heartbeat_s=1.5, forks=forks, seed=0), 14
    )
    (failure,) = result.failures
    assert (failure["kind"], failure["node"]) == ("stop", 2)
    assert failure["detected_after_s"] <= 1.5 + 0.5  # and half a second for a machine that does other things
    at = next(event["at_s"] for event in result.events if event["event"] == "joined" and event["node"] == 4)
    generation = next(event for event in result.events if event["event"] == "generation" and 4 in event["members"])
    finished = [event for event in result.events if at < event["at_s"] < generation["at_s"]]
    assert finished == []  # nothing else came between
    assert generation["step"] >= 8 and result.members[generation["step"]] == [0, 1, 3, 4]


def test_a_node_holds_only_its_own_experts(forks):
    result = checked(train(nodes=4, steps=3, heartbeat_s=PATIENT_S, forks=forks, seed=0), 3)
    every = TINY.num_layers * TINY.num_experts
    for held in result.held.values():
        assert held["experts"] <= TINY.num_layers * TINY.slots < every
        assert held["expert_bytes"] == held["experts"] * TINY.expert_bytes
    assert sum(held["experts"] for held in result.held.values()) >= 2 * every  # min_replicas


def test_lost_expert_goes_back_to_the_last_checkpoint(forks, tmp_path):
    kills = [(0, 10, "backward"), (1, 10, "backward")]
    options = {"checkpoint_interval": 4, "folder": tmp_path, "heartbeat_s": PATIENT_S, "forks": forks, "seed": 0}
    result = checked(train(nodes=4, steps=14, kills=kills, **options), 14)
    assert (result.restarts, result.lost_steps) == (1, 2)
    assert result.members[8] == [2, 3]
    assert checkpoint.finished_steps(tmp_path) == [8, 12]  # and the previous one is kept


def test_systems_train_alike_and_differ_in_what_a_failure_costs(forks):
    schedule = {"nodes": 4, "steps": 12, "kills": [(1, 9, "backward")], "checkpoint_interval": 4, "seed": 0}
    schedule["heartbeat_s"] = PATIENT_S
    lazarus, ds, ds_ft = (
        checked(train(system=system, forks=forks, **schedule), 12) for system in ("lazarus", "ds", "ds-ft")
    )
    assert (lazarus.restarts, lazarus.members[-1]) == (0, [0, 2, 3])
    assert (ds.restarts, ds.lost_steps, len(ds.members[-1])) == (1, 1, 2)  # whole groups of two only
    assert (ds_ft.restarts, ds_ft.lost_steps, len(ds_ft.members[-1])) == (0, 0, 2)
    assert ds.failures[0]["outage_s"] > 3 * lazarus.failures[0]["outage_s"]  # its processes start anew


def test_a_node_that_takes_no_part_is_killed_too(forks):
    """Of five nodes, DS(FT) uses four: groups of two."""
    result = checked(train(nodes=5, steps=8, system="ds-ft", kills=[(4, 3, "backward")], forks=forks, seed=0), 8)
    assert result.members == [[0, 1, 2, 3]] * 8
    (failure,) = result.failures
    assert (failure["node"], failure["kind"], failure["point"]) == (4, "kill", "idle")
    assert 0 < failure["detected_after_s"] < 2
    assert failure["outage_s"] is None  # nobody waits


def test_seconds_are_those_of_training_not_of_the_end_of_its_processes(forks, monkeypatch):
    closed = Controller.closed

    async def late(controller):
        await asyncio.sleep(1)
        await closed(controller)

    monkeypatch.setattr(Controller, "closed", late)
    began = {}
    result = train(
        nodes=2, steps=2, forks=forks, seed=0, progress=lambda each: began.setdefault(each["event"], time.monotonic())
    )
    since = time.monotonic() - began["generation"]
    assert 0 < checked(result, 2).seconds <= since - 1


def test_rebalance_follows_the_loads(forks):
    result = checked(train(nodes=6, steps=10, rebalance_interval=4, heartbeat_s=PATIENT_S, forks=forks, seed=0), 10)
    plans = [event for event in result.events if event["event"] == "generation"]
    assert [plan["step"] for plan in plans] == [0, 4, 8]
    assert plans[1]["placements"] != plans[0]["placements"]


def test_a_trace_is_replayed_a_minute_a_step(forks):
    events = (
        FailureEvent(180.0, "fail", (11, 12)),
        FailureEvent(420.0, "join", (11,)),
        FailureEvent(540.0, "fail", (13,)),
    )
    trace = FailureTrace("made", (10, 11, 12, 13, 14, 15), events)
    result = checked(train(nodes=6, steps=12, trace=trace, heartbeat_s=PATIENT_S, forks=forks, seed=0), 12)
    assert sorted(each["node"] for each in result.failures) == [1, 2, 3]
    assert result.members[2] == [0, 1, 2, 3, 4, 5]
    assert result.members[5] == [0, 3, 4, 5]
    assert result.members[-1] == [0, 4, 5, 6]


def test_too_few_nodes_end_training_and_say_so(forks):
    result = train(nodes=2, steps=6, kills=[(1, 3, "backward")], forks=forks, seed=0)
    assert "got 1 nodes with 4 slots" in result.ended
    assert result.losses == pytest.approx(alone()[:3], rel=1e-4)


def test_a_checkpoint_that_cannot_be_written_or_read_is_an_error_to_handle(tmp_path):
    state = {"weight": torch.arange(3.0)}
    (tmp_path / "step-2.part").touch()
    with pytest.raises(RuntimeError, match=r"part 0 of a checkpoint at step 2 cannot be written: .*Not a directory"):
        checkpoint.write_part(tmp_path, 2, 0, state)
    checkpoint.write_part(tmp_path, 3, 0, state)
    place = checkpoint.publish(tmp_path, 3)
    for written in place.glob("part0/*.distcp"):
        written.unlink()
    with pytest.raises(RuntimeError, match=r"part0 of checkpoint step-3 cannot be read: .*No such file"):
        checkpoint.read_checkpoint(tmp_path, 3, state)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs 4 CUDA devices: nccl takes one a process")
def test_killed_over_nccl(forks):
    kills = [(1, 3, "backward"), (2, 6, "allreduce")]
    result = checked(train(nodes=4, steps=9, kills=kills, device="cuda", forks=forks, seed=0), 9)
    assert (result.lost_steps, len(result.failures)) == (0, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_collectives_over_nccl_keep_a_rank_alone_as_it_is():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    group = Group(store, 0, 0, 1, host="127.0.0.1", device=device, timeout_s=30)
    rows = torch.arange(6.0, device=device).reshape(3, 2)
    group.vote()
    group.all_reduce(reduced := rows.clone())
    for found in (reduced, group.all_gather(rows)[0], group.all_to_all(rows, [3], [3])):
        assert torch.equal(found, rows)


def test_checkpoints_of_another_run_are_left_alone(tmp_path):
    run = {"preset": "tiny", "seed": 0}
    checkpoint.prepare_folder(tmp_path, run, 5, resume=False)
    checkpoint.write_part(tmp_path, 4, 0, {"weight": torch.zeros(1)})
    checkpoint.publish(tmp_path, 4)
    wrong = [
        ({"steps": 5}, r"must have a folder without checkpoints, .* has those of steps \[4\]"),
        ({"steps": 4, "resume": True}, r"steps must be more than the 4 of the checkpoint in .*, got 4"),
        (
            {"steps": 5, "resume": True, "seed": 1},
            r"resumed with the settings of its start, .* got {'preset': 'tiny', 'seed'",
        ),
        ({"steps": 5, "resume": True, "preset": "small"}, r"got {'preset': 'small', 'seed': 0}"),
    ]
    for changed, told in wrong:
        with pytest.raises(ValueError, match=told):
            train(**{"nodes": 4, "folder": tmp_path, "seed": 0, **changed})
    assert checkpoint.finished_steps(tmp_path) == [4]


def test_a_node_that_joins_can_be_killed_at_the_step_of_its_join(forks):
    """It takes part from a step after that one on, and is killed in its first."""
    result = checked(train(nodes=4, steps=12, joins=[3], kills=[(4, 3, "backward")], forks=forks, seed=0), 12)
    assert [each["node"] for each in result.failures] == [4]
    assert result.lost_steps == result.restarts == 0


def test_joins_beside_a_trace_are_counted_in_the_numbers_of_its_nodes(forks):
    events = (FailureEvent(120.0, "fail", (1,)), FailureEvent(240.0, "join", (1,)), FailureEvent(600.0, "fail", (1,)))
    trace = FailureTrace("made", (0, 1, 2, 3), events)
    result = checked(train(nodes=4, steps=14, joins=[2], trace=trace, forks=forks, seed=0), 14)
    assert [each["node"] for each in result.failures] == [1, 5]  # 4 is the node that joins at step 2
    assert result.members[-1] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"nodes": 1}, "nodes must be at least 2 to hold each of 8 experts, got 1"),
        ({"nodes": 33}, r"nodes must be in \[1, 32\], a sequence each, got 33"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"preset": "huge"}, "preset must be one of .*, got 'huge'"),
        ({"system": "magic"}, "system must be one of lazarus, ds, ds-ft, got 'magic'"),
        ({"kills": [(4, 1, "backward")]}, r"a node that fails must be in \[0, 4\), got 4"),
        ({"kills": [(1, 9, "backward")]}, r"a node must fail at a step in \[0, 5\), got 9"),
        ({"kills": [(1, 1, "lunch")]}, "a point must be one of .*, got 'lunch'"),
        ({"kills": [(1, 1, "backward")], "stops": [(1, 3, "vote")]}, "a node must fail once, got 2 failures of node 1"),
        ({"joins": [3], "kills": [(4, 2, "vote")]}, "node 4 must fail no sooner than it joins, at step 3, got 2"),
        ({"joins": [7]}, r"a node must join at a step in \[0, 5\), got 7"),
    ],
)
def test_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        train(**{"nodes": 4, "steps": 5, **changed})
