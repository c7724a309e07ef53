"""Run a function on n real processes of a gloo group, and collect what each returns.

One subprocess imports torch, then forks the ranks: n processes cost one import, and no thread of the caller is forked.
If the caller, the subprocess or one rank dies, all ranks die.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000


class RankFailed(RuntimeError):
    """A rank raised, died or did not answer in time; the message says which and why."""


def run(
    function: Callable[[int, int], Any],
    num_workers: int,
    *,
    namespaces: Sequence[str] | None = None,
    timeout_s: float = 300,
) -> list[Any]:
    """`[function(rank, num_workers) for each rank]`, each in its own process with torch.distributed initialised (gloo).

    function:   pickled with cloudpickle, so it may be defined in a notebook or a test
    namespaces: a network namespace for each rank, with an interface eth0 (see `artifact.sparse_sync.links.testbed`)
    Raises:     RankFailed; ValueError if num_workers is less than 1 or is not the number of namespaces
    """
    import cloudpickle

    if num_workers < 1 or (namespaces is not None and len(namespaces) != num_workers):
        raise ValueError(f"num_workers must be at least 1 and each needs a namespace, got {num_workers}, {namespaces}")
    job = cloudpickle.dumps((function, num_workers, namespaces))
    command = [sys.executable, "-m", "artifact.sparse_sync.links.launch"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as launcher:
        try:
            answer, errors = launcher.communicate(job, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise RankFailed(f"the ranks must answer within {timeout_s} s, got none") from None
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
    if launcher.returncode:
        raise RankFailed(errors.decode(errors="replace").strip()[-2000:])
    results: list[Any] = pickle.loads(answer)
    return results


def main() -> None:
    """The subprocess: fork the ranks, write their results to standard output."""
    import numba  # noqa: F401 - both once, here, for all ranks
    import torch.distributed  # noqa: F401

    function, num_workers, namespaces = pickle.loads(sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what ranks print must not mix with the answer
    die_with_parent()
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "store"
        ranks = [_fork(function, rank, num_workers, namespaces, store) for rank in range(num_workers)]
        try:
            results = _collect(ranks)
        except RankFailed as error:
            print(error, file=sys.stderr)
            for pid, _ in ranks:
                os.kill(pid, signal.SIGKILL)
            sys.exit(1)
    pickle.dump(results, answer)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def enter_namespace(name: str) -> None:
    """Move this process into a named network namespace. Raises: OSError"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{name}") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {name}")


def _fork(
    function: Callable[[int, int], Any], rank: int, num_workers: int, namespaces: Sequence[str] | None, store: Path
) -> tuple[int, int]:
    """A rank's process, and the end of the pipe that its result comes from."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sending)
        return pid, receiving
    status = 1
    try:
        die_with_parent()
        os.close(receiving)
        try:
            outcome = (True, _rank(function, rank, num_workers, namespaces, store))
            status = 0
        except Exception:
            outcome = (False, traceback.format_exc())
        with os.fdopen(sending, "wb") as pipe:
            pickle.dump(outcome, pipe)
    finally:
        os._exit(status)


def _rank(
    function: Callable[[int, int], Any], rank: int, num_workers: int, namespaces: Sequence[str] | None, store: Path
) -> Any:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0" if namespaces else "lo"
    if namespaces:
        enter_namespace(namespaces[rank])
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(store), num_workers), rank=rank, world_size=num_workers
    )
    result = function(rank, num_workers)
    distributed.barrier()  # no rank leaves while another still expects its messages
    distributed.destroy_process_group()  # not after an error: the others would fail before it is reported
    return result


def _collect(ranks: list[tuple[int, int]]) -> list[Any]:
    """Every rank's result, in order. Raises: RankFailed at the first that fails"""
    outcomes: dict[int, Any] = {}
    arrived = {rank: bytearray() for rank in range(len(ranks))}
    with selectors.DefaultSelector() as selector:
        for rank, (_, pipe) in enumerate(ranks):
            selector.register(pipe, selectors.EVENT_READ, rank)
        while len(outcomes) < len(ranks):
            for key, _ in selector.select():
                if chunk := os.read(key.fd, 1 << 20):
                    arrived[key.data] += chunk
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                if not arrived[key.data]:
                    _, status = os.waitpid(ranks[key.data][0], 0)
                    raise RankFailed(f"rank {key.data} died with status {os.waitstatus_to_exitcode(status)}")
                good, outcome = pickle.loads(arrived[key.data])
                if not good:
                    raise RankFailed(f"rank {key.data} failed:\n{outcome}")
                outcomes[key.data] = outcome
    return [outcomes[rank] for rank in range(len(ranks))]


if __name__ == "__main__":
    main()
