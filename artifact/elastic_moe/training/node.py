"""A node: an agent that starts a worker, and kills it when the controller says so.

`python -m artifact.elastic_moe.training.node --controller HOST:PORT` runs an agent; under torchrun every process is an
agent. If its worker dies, it starts another one, which joins as a new node. torchrun's rendezvous is not used, so that
each machine can run its own torchrun.

`--fork` runs a process that imports all that a worker needs, and forks agents by commands on its standard input
(`start 127.0.0.1:4000 3`, `kill 127.0.0.1:4000 3`: node 3 of that controller), within milliseconds. It ends with its
input.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from artifact.elastic_moe.training.wire import CONTROLLER_GONE, Connection, address_of

GRACE_S = 60.0
"""Time that a worker has to write a checkpoint after the controller is gone."""

Start = Callable[[tuple[str, int], int], int]


def run_agent(address: tuple[str, int], node: int | None, start: Start, wait_s: float = 30.0) -> int:
    """Be node `node` (None: the controller's choice) until its worker ends. Returns: the worker's exit status

    wait_s: how long to wait for a controller that is still starting
    """
    with suppress(PermissionError):  # if this process already leads a session
        os.setsid()
    connection = Connection(address, {"type": "hello", "role": "agent", "node": node}, wait_s=wait_s)
    number = connection.welcome["node"]
    worker = start(address, number)
    connection.start()
    gone_at = None
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            connection.close()
            return os.waitstatus_to_exitcode(status)
        if connection.lost.is_set():
            gone_at = gone_at or time.monotonic()
            if time.monotonic() - gone_at > GRACE_S:
                os.kill(worker, signal.SIGKILL)
        while not connection.inbox.empty():
            message = connection.inbox.get()
            if message is not None and message["type"] in ("kill", "restart"):
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)
                if message["type"] == "kill":
                    connection.close()
                    return -signal.SIGKILL
                worker = start_process(address, number)
        time.sleep(0.01)


def start_process(address: tuple[str, int], node: int) -> int:
    """Start a worker as a new process, with its own imports. Returns: its process id"""
    command = [sys.executable, "-m", "artifact.elastic_moe.training.node", "--controller", f"{address[0]}:{address[1]}"]
    return subprocess.Popen([*command, "--node", str(node), "--worker"]).pid


def fork_worker(address: tuple[str, int], node: int) -> int:
    """Start a worker with the imports of this process. Returns: its process id"""
    child = os.fork()
    if not child:
        _run_and_exit(lambda: run_worker(address, node))
    return child


def run_worker(address: tuple[str, int], node: int) -> int:
    """Be the worker of a node. Returns: the exit status"""
    _die_with_parent()
    from artifact.elastic_moe.training.worker import Worker

    return Worker(address, node).run()


def serve_forks() -> None:
    """Fork agents by the commands on standard input, until it ends."""
    import torch.distributed.checkpoint

    from artifact.elastic_moe.training import worker  # noqa: F401

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first optimizer imports most of what it needs
    nodes: dict[tuple[str, str], int] = {}
    for line in sys.stdin:
        command, controller, node = line.split()
        for name, child in list(nodes.items()):
            if os.waitpid(child, os.WNOHANG)[0]:
                del nodes[name]
        if command == "start":
            address, number = address_of(controller), int(node)
            if child := os.fork():
                nodes[controller, node] = child
            else:
                sys.stdin.close()
                _die_with_parent()
                _run_and_exit(lambda: run_agent(address, number, fork_worker))  # noqa: B023
        elif (controller, node) in nodes:
            _kill_group(nodes[controller, node])
    until = time.monotonic() + GRACE_S
    while nodes:
        for name, child in list(nodes.items()):
            if os.waitpid(child, os.WNOHANG)[0]:
                del nodes[name]
            elif time.monotonic() > until:
                _kill_group(child)
        time.sleep(0.01)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _run_and_exit(run: Callable[[], int]) -> None:
    """In a forked process: run, and end without the parent's exit handlers."""
    status = 1
    try:
        status = run()
    except (ConnectionError, KeyboardInterrupt) as error:
        print(f"node: {error}", file=sys.stderr, flush=True)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status % 256)


def _die_with_parent() -> None:
    """Linux only: a killed node leaves no process behind."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def main() -> int:
    """The command line of the module. Returns: the exit status"""
    parser = argparse.ArgumentParser(
        prog="python -m artifact.elastic_moe.training.node", description="A node in training."
    )
    parser.add_argument("--controller", metavar="HOST:PORT")
    rank = os.environ.get("RANK")
    parser.add_argument("--node", type=int, default=None if rank is None else int(rank), help="default: RANK")
    parser.add_argument("--restarts", type=int, default=3, help="workers that it starts after the first one dies")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fork", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.fork:
        serve_forks()
        return 0
    try:
        address = address_of(chosen.controller or "")
    except ValueError as error:
        parser.error(str(error))
    if chosen.worker:
        return run_worker(address, chosen.node)
    status = run_agent(address, chosen.node, start_process)
    for _ in range(chosen.restarts):
        if status in (0, CONTROLLER_GONE):
            break
        try:
            status = run_agent(address, None, start_process, wait_s=1)
        except ConnectionError:  # training has ended
            return 0
    return status % 256


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConnectionError as error:
        sys.exit(f"node: {error}")
