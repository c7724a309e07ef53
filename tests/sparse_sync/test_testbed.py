"""Rate-limited links between real processes. Without root, `ip` or `tc` the reason is said and the rest is skipped."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from artifact.sparse_sync import workloads
from artifact.sparse_sync.links import testbed
from artifact.sparse_sync.links.accounting import ring_bytes

POSSIBLE, REASON = testbed.available()
needs_links = pytest.mark.skipif(not POSSIBLE, reason=f"needs root: {REASON}")


def names():
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return links + spaces


@pytest.mark.parametrize(("rate", "bits"), [("200mbit", 2e8), ("1gbit", 1e9), ("1.5gbit", 1.5e9), ("64kbit", 64e3)])
def test_a_rate_is_read(rate, bits):
    assert testbed.rate_bps(rate) == bits


@pytest.mark.parametrize("rate", ["", "200", "fast", "-1mbit", "0mbit", "200 mbit", "200mbps"])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"a rate must be a positive number with kbit, mbit or gbit"):
        testbed.Testbed(2, rate)


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert testbed.available() == (False, "not root")


def test_no_repeats_are_refused():
    tensors = workloads.uniform(size=100, density=0.1, overlap=0.5, num_workers=2, seed=0)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        testbed.measure_links(tensors, "200mbit", systems=["zen"], repeats=0)


def test_an_unknown_system_is_refused():
    tensors = workloads.uniform(size=100, density=0.1, overlap=0.5, num_workers=2, seed=0)
    with pytest.raises(ValueError, match="systems must be schemes or one of"):
        testbed.measure_links(tensors, "200mbit", systems=["carrier-pigeon"])


@needs_links
def test_the_wire_carries_what_is_counted_and_no_faster_than_its_rate():
    tensors = workloads.uniform(size=2_000_000, density=0.1, overlap=0.5, num_workers=4, seed=0)
    systems = ["torch-allreduce", "agsparse", "ps", "zen"]
    table = testbed.measure_links(tensors, "200mbit", systems=systems, repeats=1).set_index("system")
    for system in systems[1:]:
        assert 1 <= table["wire_bytes"][system] / table["counted_bytes"][system] <= 1.02
    assert table["seconds"]["torch-allreduce"] > 0.9 * ring_bytes(tensors[0], 4) * 8 / 200e6
    assert f"zen{os.getpid()}" not in names()


@needs_links
def test_the_wire_carries_what_zen_counts_for_rows():
    tensors = workloads.zipf_embedding(rows=40_000, width=64, tokens_per_worker=20_000, num_workers=4, seed=0)
    [row] = testbed.measure_links(tensors, "200mbit", systems=["zen-row"], repeats=1).to_dict("records")
    assert row["counted_bytes"] > 2e6
    assert 1 <= row["wire_bytes"] / row["counted_bytes"] <= 1.02


@needs_links
def test_a_late_reaper_leaves_the_next_testbed_alone(monkeypatch):
    popen = subprocess.Popen

    def slow(command, **options):
        if command[0] == "sh":
            command = [*command[:2], command[2].replace("cat >/dev/null;", "cat >/dev/null; sleep 0.5;")]
            assert "sleep" in command[2]
        return popen(command, **options)

    with monkeypatch.context() as late:
        late.setattr(subprocess, "Popen", slow)
        with testbed.Testbed(2, "100mbit"):
            pass
    with testbed.Testbed(2, "100mbit") as bed:
        time.sleep(1)
        assert all(name in names() for name in [*bed.namespaces, bed.bridge])
    assert f"zen{os.getpid()}" not in names()


@needs_links
def test_a_second_testbed_is_refused_and_leaves_the_first_alone():
    with testbed.Testbed(2, "100mbit") as bed:
        with pytest.raises(OSError, match="one testbed at a time"), testbed.Testbed(2, "100mbit"):
            pass
        assert all(name in names() for name in [*bed.namespaces, bed.bridge])


@needs_links
def test_what_an_ended_process_left_is_removed_and_what_a_living_one_has_is_not():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left, held = f"zen{process.pid}", f"zen{os.getppid()}"
    try:
        for command in (
            "netns add {0}n0",
            "link add {0}n0v type veth peer name eth0 netns {0}n0",
            "link add {0}b type bridge",
        ):
            subprocess.run(["ip", *command.format(left).split()], check=True)
        subprocess.run(["ip", "netns", "add", f"{held}n0"], check=True)
        testbed.clean()
        found = names()
        assert left not in found and f"{held}n0" in found
    finally:
        subprocess.run(["ip", "netns", "delete", f"{held}n0"])


@needs_links
def test_an_error_inside_leaves_nothing_behind():
    with pytest.raises(ArithmeticError), testbed.Testbed(3, "100mbit") as bed:
        assert all(name in names() for name in bed.namespaces)
        raise ArithmeticError
    assert f"zen{os.getpid()}" not in names()


@needs_links
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_leaves_nothing_behind(number):
    script = (
        "import time\nfrom artifact.sparse_sync.links.testbed import Testbed\n"
        "with Testbed(3, '100mbit'):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert f"zen{process.pid}n0" in names()
        process.send_signal(number)
        process.wait()
    until = time.monotonic() + 20
    while f"zen{process.pid}" in names() and time.monotonic() < until:
        time.sleep(0.1)
    assert f"zen{process.pid}" not in names()


@needs_links
def test_a_rank_sees_only_its_own_link():
    with testbed.Testbed(2, "100mbit") as bed:
        before = bed.run(lambda rank, n: (testbed.wire_bytes(), torch.distributed.get_rank() == rank))
    assert all(sent > 0 and received > 0 and same for (sent, received), same in before)
