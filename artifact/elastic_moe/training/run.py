"""Elastic training in one call: a controller in this process, and nodes started here or elsewhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from artifact.elastic_moe.failures import FailureTrace
from artifact.elastic_moe.presets import PRESETS
from artifact.elastic_moe.training import checkpoint
from artifact.elastic_moe.training.controller import Controller, TrainingSettings
from artifact.elastic_moe.training.journal import TrainingResult
from artifact.elastic_moe.training.planning import TRAINED_SYSTEMS
from artifact.elastic_moe.training.wire import Message

POINTS = ("forward", "backward", "allreduce", "vote", "apply", "migration", "checkpoint")
"""Points of a step at which a node can be made to fail: between a layer's two all-to-alls; halfway through the backward
pass; between the all-reduces of the dense and the experts' gradients; halfway through its vote; between vote and
optimizer step; before experts are sent; before a checkpoint is written. The node fails when it first passes the point
at or after the given step."""


def train(
    *,
    nodes: int,
    steps: int,
    preset: str = "tiny",
    system: str = "lazarus",
    kills: Sequence[tuple[int, int, str]] = (),
    stops: Sequence[tuple[int, int, str]] = (),
    joins: Sequence[int] = (),
    trace: FailureTrace | None = None,
    folder: Path | None = None,
    listen: tuple[str, int] | None = None,
    forks: ForkLauncher | None = None,
    progress: Callable[[Message], None] = lambda message: None,
    **options: Any,
) -> TrainingResult:
    """Train a preset on `nodes` processes for `steps` steps, through failures and joins.

    kills, stops: (node, step, point): the node is killed (SIGKILL) or stopped (SIGSTOP) at that point of that step
    joins:        steps at which one more node is started; it gets the next free number
    trace:        more failures and joins; a minute of the trace is a step
    folder:       keeps the checkpoints; without it they are deleted at the end
    listen:       (host, port) at which to wait for nodes from elsewhere (see `node`); no node is started here
    forks:        starts the nodes; sharing one between runs saves its start-up
    progress:     called with each event and each step
    options:      fields of `TrainingSettings`
    Raises: ValueError for an unknown preset, system or point, numbers out of range, a node that fails twice or before
            it joins, an address that cannot be listened at, and folders as `checkpoint.prepare`
    """
    joins = sorted(joins)
    if trace is not None:
        asked = {node for node, _, _ in (*kills, *stops)}
        traced, joins = _replayed(trace, nodes, steps, joins)
        kills = [*kills, *(kill for kill in traced if kill[0] not in asked)]
    _check(nodes, steps, preset, system, [*kills, *stops], joins)
    faults = [(*fault, "kill") for fault in kills] + [(*fault, "stop") for fault in stops]
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="checkpoints-")))
        settings = TrainingSettings(
            PRESETS[preset],
            system,
            nodes,
            steps,
            folder=folder.resolve(),
            faults=tuple(faults),
            joins=tuple(joins),
            **options,
        )
        checkpoint.prepare_folder(folder, {"preset": preset, "seed": settings.seed}, steps, resume=settings.resume)
        if listen is None and forks is None:
            forks = stack.enter_context(ForkLauncher())
        return _in_a_thread(_run(settings, listen, forks, progress))


def _in_a_thread(run: Coroutine[Any, Any, TrainingResult]) -> TrainingResult:
    """Run to the end even if this thread has an event loop, as in a notebook. An interrupt ends the run."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def noted() -> TrainingResult:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await run

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(asyncio.run, noted())
        try:
            return ended.result()
        except BaseException:
            if not ended.done():
                loop, task = started.result()
                loop.call_soon_threadsafe(task.cancel)
            raise


async def _run(
    settings: TrainingSettings,
    listen: tuple[str, int] | None,
    forks: ForkLauncher | None,
    progress: Callable[[Message], None],
) -> TrainingResult:
    from torch import distributed

    host, port = listen or ("127.0.0.1", 0)
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(f"an address must be one of this machine and free, got {host}:{port}: {error}") from None
    store = distributed.TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=settings.timeout_s)
    )
    launcher = RemoteLauncher() if forks is None else forks
    controller = Controller(settings, store.port, launcher, progress)
    server = await asyncio.start_server(controller.serve, host, port)
    launcher.open(server.sockets[0].getsockname())
    ended = "finished"
    try:
        try:
            for node in range(settings.nodes):
                launcher.start(node)
            await controller.run()
        except (ValueError, RuntimeError, TimeoutError) as error:
            ended = str(error)
        await controller.closed()
    finally:
        server.close()
    return controller.journal.result(settings.preset.step_tokens, ended)


class ForkLauncher:
    """Starts nodes on this machine by forking one process with all imports done. Serves one run at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "artifact.elastic_moe.training.node", "--fork"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> ForkLauncher:
        return self

    def __exit__(self, *raised: object) -> None:
        """Wait until the nodes have ended: the controller ended them, or they find it gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def open(self, address: tuple[str, int]) -> None:
        self._controller = f"{address[0]}:{address[1]}"

    def start(self, node: int) -> None:
        self._say("start", node)

    def kill(self, node: int) -> None:
        self._say("kill", node)

    def _say(self, command: str, node: int) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{command} {self._controller} {node}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the process that starts nodes has ended with status {self._process.wait()}") from None


class RemoteLauncher:
    """Waits for nodes that are started elsewhere."""

    def open(self, address: tuple[str, int]) -> None:
        print(f"waiting for nodes at {socket.gethostname()}, port {address[1]}", file=sys.stderr, flush=True)

    def start(self, node: int) -> None:
        """Nothing: the node connects by itself."""

    def kill(self, node: int) -> None:
        """Nothing: the node's agent kills it."""


def _replayed(
    trace: FailureTrace, nodes: int, steps: int, others: Sequence[int]
) -> tuple[list[tuple[int, int, str]], list[int]]:
    """Kills and joins of a trace, a minute per step, from the first minute at which it has `nodes` nodes.

    others: steps of further joins, ascending; the returned joins and the node numbers include them
    """
    starts = [0.0, *(event.time_s for event in trace.events)]
    start = next((time_s for time_s in starts if len(trace.nodes_at(time_s)) >= nodes), None)
    if start is None:
        raise ValueError(f"a trace must have {nodes} nodes at some time, {trace.name} never has")
    number = {node: rank for rank, node in enumerate(trace.nodes_at(start)[:nodes])}
    unused = set(trace.nodes_at(start)[nodes:])
    kills: list[tuple[int, int, str]] = []
    joins = list(others)
    for event in trace.events:
        step = max(round((event.time_s - start) / 60), 1)
        if event.time_s <= start or step >= steps:
            continue
        for node in event.nodes:
            if event.kind == "join":
                place = bisect_right(joins, step)
                number[node] = nodes + place
                joins.insert(place, step)
            elif node not in unused:
                kills.append((number[node], step, "backward"))
            unused.discard(node)
    return kills, joins


def _check(
    nodes: int, steps: int, preset: str, system: str, faults: Sequence[tuple[int, int, str]], joins: Sequence[int]
) -> None:
    for name, value, known in (("preset", preset, sorted(PRESETS)), ("system", system, TRAINED_SYSTEMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    shape = PRESETS[preset]
    if not 1 <= nodes <= shape.global_batch:
        raise ValueError(f"nodes must be in [1, {shape.global_batch}], a sequence each, got {nodes}")
    if nodes * shape.slots < shape.num_experts:
        least = -(-shape.num_experts // shape.slots)
        raise ValueError(f"nodes must be at least {least} to hold each of {shape.num_experts} experts, got {nodes}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for node, step, point in faults:
        if point not in POINTS:
            raise ValueError(f"a point must be one of {', '.join(POINTS)}, got {point!r}")
        if not 0 <= node < nodes + len(joins):
            raise ValueError(f"a node that fails must be in [0, {nodes + len(joins)}), got {node}")
        if not 0 <= step < steps:
            raise ValueError(f"a node must fail at a step in [0, {steps}), got {step}")
    for node, step, _ in faults:
        if node >= nodes and step < joins[node - nodes]:
            raise ValueError(
                f"node {node} must fail no sooner than it joins, at step {joins[node - nodes]}, got {step}"
            )
    for node, count in Counter(node for node, _, _ in faults).items():
        if count > 1:
            raise ValueError(f"a node must fail once, got {count} failures of node {node}")
    for step in joins:
        if not 0 <= step < steps:
            raise ValueError(f"a node must join at a step in [0, {steps}), got {step}")
