"""Real links of limited rate on one machine: one network namespace per rank, limited by `tc`.

Veth pairs connect n namespaces to one bridge, and a token bucket limits both directions of every link. Bytes are read
from the interface, so that counted bytes can be compared with those on the wire. Needs root on Linux.

Frames are 9,000 bytes, as on the networks of clusters, so that headers are 0.7 % of a full one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, distributed

from artifact.sparse_sync.links import launch
from artifact.sparse_sync.links.accounting import is_exact
from artifact.sparse_sync.links.transport import Link, run_counted
from artifact.sparse_sync.schemes import SCHEMES
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, from_coo

PREFIX = "zen"
MTU_BYTES = 9000
BURST_BYTES = 64_000
QUEUE_MS = 200
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
PEERS = {"torch-allreduce": "PyTorch all_reduce", "torch-sparse": "PyTorch sparse all_reduce"}
SYSTEMS = ("torch-allreduce", "torch-sparse", "ps", "balanced-coo", "zen", "zen-row")


def available() -> tuple[bool, str]:
    """Whether network namespaces with rate limits can be made here, and why not."""
    if sys.platform != "linux":
        return False, f"network namespaces are Linux's, this is {sys.platform}"
    if os.geteuid() != 0:
        return False, "not root"
    if missing := [tool for tool in ("ip", "tc") if not shutil.which(tool)]:
        return False, f"{' and '.join(missing)} not found (package iproute2)"
    name = f"{PREFIX}{os.getpid()}t"
    try:
        _command(f"ip netns add {name}")
    except OSError as error:
        return False, str(error)
    _command(f"ip netns delete {name}")
    return True, ""


def rate_bps(rate: str) -> float:
    """Bits a second of "200mbit" or "1gbit". Raises: ValueError for anything else"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    if not match or float(match[1]) <= 0:
        raise ValueError(f'a rate must be a positive number with kbit, mbit or gbit, such as "200mbit", got {rate!r}')
    return float(match[1]) * UNITS[match[2]]


class Testbed:
    """Links for `num_workers` ranks, made on entry, removed on exit and when this process is terminated or killed.

    namespaces: one name per rank
    Raises:     ValueError for a wrong rate or number of workers; OSError if the system refuses (see `available`), or if
                this process holds one already
    """

    def __init__(self, num_workers: int, rate: str) -> None:
        if not 1 <= num_workers <= 250:
            raise ValueError(f"num_workers must be in [1, 250], got {num_workers}")
        self.rate_bps = rate_bps(rate)
        self.num_workers = num_workers
        self.bridge = f"{PREFIX}{os.getpid()}b"
        self.namespaces = [f"{PREFIX}{os.getpid()}n{rank}" for rank in range(num_workers)]

    def __enter__(self) -> Testbed:
        if Path(f"/sys/class/net/{self.bridge}").exists():  # failing later would remove the links of the other
            raise OSError("a process must hold one testbed at a time, got a second")
        clean()
        self._reaper = _reaper(self.bridge, self.namespaces)
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reaper.communicate()  # awaited: a late one would remove the next testbed, whose names are the same

    def run(self, function: Callable[[int, int], Any], *, timeout_s: float = 600) -> list[Any]:
        """`artifact.sparse_sync.links.launch.run`, each rank behind its own link."""
        return launch.run(function, self.num_workers, namespaces=self.namespaces, timeout_s=timeout_s)

    def _make(self) -> None:
        _command(f"ip link add {self.bridge} mtu {MTU_BYTES} type bridge")
        _command(f"ip link set {self.bridge} up")
        limit = f"tbf rate {round(self.rate_bps)}bit burst {BURST_BYTES} latency {QUEUE_MS}ms"
        for rank, name in enumerate(self.namespaces):
            outer = f"{name}v"  # the end on the bridge
            _command(f"ip netns add {name}")
            _command(f"ip link add {outer} mtu {MTU_BYTES} type veth peer name eth0 mtu {MTU_BYTES} netns {name}")
            _command(f"ip link set {outer} master {self.bridge} up")
            # No neighbour discovery among the bytes that are measured.
            _command(f"ip netns exec {name} sysctl -qw net.ipv6.conf.all.disable_ipv6=1", check=False)
            _command(f"ip -n {name} address add 10.77.0.{rank + 1}/24 dev eth0")
            _command(f"ip -n {name} link set eth0 up")
            _command(f"ip -n {name} link set lo up")
            _command(f"tc qdisc add dev {outer} root {limit}")
            _command(f"tc -n {name} qdisc add dev eth0 root {limit}")
            # A namespace starts with the host's choice; bbr's pacing does not work with a token bucket.
            _command(f"ip netns exec {name} sysctl -qw net.ipv4.tcp_congestion_control=reno", check=False)


def wire_bytes() -> tuple[int, int]:
    """Bytes that this process's namespace has sent and received over eth0 (headers and acknowledgements included)."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == "eth0":
            numbers = fields.split()
            return int(numbers[8]), int(numbers[0])
    raise OSError("this process is in no namespace with eth0")


def measure_links(
    tensors: Sequence[SparseTensor],
    rate: str,
    *,
    systems: Sequence[str] = SYSTEMS,
    repeats: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Synchronise one tensor a rank by each system over real links, and check every rank's sum.

    systems: names of schemes, and torch-allreduce (dense) and torch-sparse (what DDP does with a sparse embedding)
    rate:    of each link, both ways, such as "200mbit"
    Returns: a row per (system, repeat): seconds of the slowest rank from the barrier on; counted_bytes, payload of the
             rank that sends most; wire_bytes of the interface that sends most; the sums over all ranks of both
    Raises:  ValueError for an unknown system or less than one repeat; RuntimeError if a sum is wrong
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if unknown := [system for system in systems if system not in SCHEMES and system not in PEERS]:
        raise ValueError(f"systems must be schemes or one of {', '.join(PEERS)}, got {', '.join(unknown)}")
    rows = []
    with Testbed(len(tensors), rate) as bed:
        ranks = bed.run(lambda rank, _: {system: _timed(tensors[rank], system, repeats, seed) for system in systems})
    for system in systems:
        _check(system, tensors, [found[system]["sum"] for found in ranks])
        counted = run_counted(SCHEMES[system], tensors, seed)[1] if system in SCHEMES else None
        for repeat in range(repeats):
            sent = [found[system]["runs"][repeat]["sent"] for found in ranks]
            rows.append(
                {
                    "system": system,
                    "label": SCHEMES[system].label if system in SCHEMES else PEERS[system],
                    "workers": len(tensors),
                    "rate_mbps": bed.rate_bps / 1e6,
                    "repeat": repeat,
                    "seconds": max(found[system]["runs"][repeat]["seconds"] for found in ranks),
                    "counted_bytes": counted.max_sent_bytes if counted else np.nan,
                    "wire_bytes": max(sent),
                    "counted_total_bytes": counted.total_bytes if counted else np.nan,
                    "wire_total_bytes": sum(sent),
                }
            )
    return pd.DataFrame(rows)


def _timed(tensor: SparseTensor, system: str, repeats: int, seed: int) -> dict[str, Any]:
    """One rank: one warm run, then every repeat after a barrier."""
    link, runs = Link(), []
    total = _synchronise(link, tensor, system, seed)
    for _ in range(repeats):
        distributed.barrier()
        time.sleep(0.3)  # acknowledgements of the barrier are on the wire for a while
        before, start = wire_bytes()[0], time.perf_counter()
        total = _synchronise(link, tensor, system, seed)
        seconds = time.perf_counter() - start
        time.sleep(0.3)
        runs.append({"seconds": seconds, "sent": wire_bytes()[0] - before})
    return {"sum": total, "runs": runs}


def _synchronise(link: Link, tensor: SparseTensor, system: str, seed: int) -> SparseTensor:
    if system in SCHEMES:
        return link.run(SCHEMES[system], tensor, seed)
    if system == "torch-allreduce":
        dense = tensor.to_dense()
        distributed.all_reduce(dense)
        return SparseTensor(torch.arange(tensor.num_units), dense, tensor.num_units)
    sparse = torch.sparse_coo_tensor(
        tensor.index_N[None], tensor.value_ND, (tensor.num_units, tensor.width), check_invariants=False
    ).coalesce()
    distributed.all_reduce(sparse)
    return from_coo(sparse)


def _check(system: str, tensors: Sequence[SparseTensor], sums: Sequence[SparseTensor]) -> None:
    if system in SCHEMES:
        units = [SCHEMES[system].units(tensor) for tensor in tensors]
        good = is_exact(SCHEMES[system], units, [lambda total=total: total for total in sums])  # type: ignore[misc]
    else:
        expected: Tensor = sum((tensor.to_dense().double() for tensor in tensors[1:]), tensors[0].to_dense().double())
        good = all(torch.allclose(total.to_dense().double(), expected, rtol=1e-4, atol=1e-5) for total in sums)
    if not good:
        raise RuntimeError(f"{system}: a rank's sum is wrong")


def clean() -> None:
    """Remove the links and namespaces that testbeds of ended processes left behind."""
    names = _command("ip netns list", check=False).split() + [
        line.split(": ")[1].split("@")[0] for line in _command("ip -o link", check=False).splitlines()
    ]
    for name in names:
        match = re.fullmatch(rf"{PREFIX}(\d+)([nbt])\d*(v?)", name)
        if match and not Path(f"/proc/{match[1]}").exists():
            kind = "link" if match[2] == "b" or match[3] else "netns"
            _command(f"ip {kind} delete {name}", check=False)


def _reaper(bridge: str, namespaces: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process that removes everything when its input is closed, by this process or by its end, whatever ends it.

    A namespace's links disappear later than its name, so they are deleted too.
    """
    orders = [f"kill -9 $(ip netns pids {name})" for name in namespaces]
    orders += [f"ip link delete {name}v" for name in namespaces]
    orders += [f"ip netns delete {name}" for name in namespaces]
    script = f"cat >/dev/null; {{ {'; '.join(orders)}; ip link delete {bridge}; }} 2>/dev/null"
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def _command(line: str, *, check: bool = True) -> str:
    done = subprocess.run(line.split(), capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(f"`{line}` failed: {done.stderr.strip()}")
    return done.stdout
