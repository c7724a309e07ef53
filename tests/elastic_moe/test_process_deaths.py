"""Deaths that no one has announced: of the controller, of a worker under torchrun, of a network."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from training_runs import LONGEST, TINY, alive, alone, checked, command_line_of, descendants

from artifact.elastic_moe import train
from artifact.elastic_moe.training import checkpoint
from figures.lazarus.real_recovery import losses_in_one_process

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_death_of_the_controller_leaves_a_checkpoint_and_no_process(tmp_path, death):
    command = [sys.executable, "-m", "artifact", "train-moe", "--nodes", "4", "--checkpoints", str(tmp_path)]
    running = subprocess.Popen(
        [*command, "--steps", "100000", "--checkpoint-interval", "100000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    seen = next(line for line in running.stderr if line.startswith('step {"step": 3,'))
    assert seen
    children = descendants(running.pid)
    assert len(children) >= 9  # what forks, 4 agents, 4 workers
    running.send_signal(death)
    running.communicate()
    until = time.monotonic() + 30
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, children))
    (step,) = checkpoint.finished_steps(tmp_path)
    assert step >= 4
    # And training goes on from there.
    out = subprocess.run(
        [*command, "--steps", str(step + 2), "--resume", "--json"], capture_output=True, text=True, check=True
    ).stdout
    result = json.loads(out)
    assert result["ended"] == "finished"
    assert result["losses"] == pytest.approx(losses_in_one_process(TINY, 0, step + 2)[step:], rel=1e-4)


def test_nodes_that_torchrun_starts(tmp_path):
    """A worker that dies is replaced by its agent; torchrun sees nothing of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "artifact", "train-moe", "--nodes", "4", "--steps", str(LONGEST), "--json"]
    with (tmp_path / "out").open("w") as out:
        controller = subprocess.Popen([*command, "--listen", address], stdout=out, stderr=subprocess.PIPE, text=True)
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
        + ["-m", "artifact.elastic_moe.training.node", "--controller", address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        next(line for line in controller.stderr if line.startswith('step {"step": 3,'))
        workers = [pid for pid in descendants(torchrun.pid) if b"--worker" in command_line_of(pid)]
        assert len(workers) == 4
        os.kill(workers[1], signal.SIGKILL)
        controller.communicate()
        assert controller.returncode == 0
        result = json.loads((tmp_path / "out").read_text())
        assert result["losses"] == pytest.approx(alone(), rel=1e-4)
        assert len(result["failures"]) == 1 and result["restarts"] == 0
        assert torchrun.wait(timeout=60) == 0
    finally:
        controller.kill()
        torchrun.terminate()
        torchrun.wait()


NETWORKS = shutil.which("ip") is not None and os.geteuid() == 0


def _ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


@pytest.fixture
def machines():
    """Four network namespaces on one bridge: (address of this machine on it, namespaces, their links)."""
    stem = f"moe{os.getpid()}"
    bridge, names = f"{stem}b", [f"{stem}n{node}" for node in range(4)]
    links = [f"{stem}l{node}" for node in range(4)]
    try:
        _ip(f"link add {bridge} type bridge")
        _ip(f"address add 10.79.0.254/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for node, (name, link) in enumerate(zip(names, links, strict=True)):
            _ip(f"netns add {name}")
            _ip(f"link add {link} type veth peer name eth0 netns {name}")
            _ip(f"link set {link} master {bridge} up")
            _ip(f"-n {name} address add 10.79.0.{node + 1}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} link set lo up")
        yield "10.79.0.254", names, links
    finally:
        for name in names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for pid in map(int, pids.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        for link in (*links, bridge):
            subprocess.run(["ip", "link", "delete", link], capture_output=True)


@pytest.mark.skipif(not NETWORKS, reason="needs root and ip: network namespaces cannot be made")
def test_a_cut_network_is_a_failure_of_its_node(machines):
    """No connection is closed and no process ends: the node falls silent in the middle of a collective."""
    here, names, links = machines
    with socket.create_server((here, 0)) as free:
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "artifact.elastic_moe.training.node"]
            + ["--controller", f"{here}:{port}", "--node", str(node), "--restarts", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for node, name in enumerate(names)
    ]  # fmt: skip
    cut_at = []

    def cut(message):
        if message["event"] == "step" and message["step"] == 3:
            _ip(f"link set {links[2]} down")
            cut_at.append(time.monotonic())
        elif message["event"] == "lost":
            cut_at.append(time.monotonic())

    result = train(nodes=4, steps=12, listen=(here, port), heartbeat_s=1.5, seed=0, progress=cut)
    checked(result, 12)
    (failure,) = result.failures
    assert failure["node"] == 2
    assert cut_at[1] - cut_at[0] < 1.5 + 0.5
    assert (result.lost_steps, result.restarts, result.members[-1]) == (0, 0, [0, 1, 3])
    for node in (0, 1, 3):
        assert nodes[node].wait(timeout=60) == 0
