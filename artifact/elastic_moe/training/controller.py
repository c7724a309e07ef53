"""The controller of a training run: it tracks the members and the experts that they hold, and plans generations.

A member is lost if its connection closes, or if no message arrives from it within the heartbeat time; its node is then
killed, so that a process that was only stopped cannot return with an old state. Each change (a loss, a join, a
rebalance) is an attempt at a new generation: stop all members, collect what they hold, plan, let them fetch what they
lack, continue. A change during an attempt starts the next attempt. If an expert has no holder left, all members return
to the last checkpoint. The controller holds no weights.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from artifact.elastic_moe.placement.migration import Unrecoverable
from artifact.elastic_moe.presets import Preset
from artifact.elastic_moe.training import checkpoint
from artifact.elastic_moe.training.journal import Journal
from artifact.elastic_moe.training.planning import Generation, TooFewNodes, next_generation
from artifact.elastic_moe.training.wire import BEATS, Message, pack

MAX_FAILED_GENERATIONS = 5
"""Training ends after this many consecutive failed generations without a lost node."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training run.

    nodes:     at the start; steps: of the global batch; seed: of weights and data
    folder:    of the checkpoints; method: of placement
    checkpoint_interval, rebalance_interval: in steps
    heartbeat_s: silence after which a node is lost; timeout_s: of collectives; start_s: to wait for nodes
    faults:    (node, step, point, kill or stop); joins: steps at which one more node is started
    """

    preset: Preset
    system: str
    nodes: int
    steps: int
    seed: int
    folder: Path
    method: str = "mro"
    checkpoint_interval: int = 50
    rebalance_interval: int = 200
    heartbeat_s: float = 2.0
    timeout_s: float = 30.0
    start_s: float = 120.0
    device: str = "cpu"
    resume: bool = False
    faults: tuple[tuple[int, int, str, str], ...] = ()
    joins: tuple[int, ...] = ()


class Launcher(Protocol):
    """Starts and kills nodes, if this machine started them."""

    def start(self, node: int) -> None: ...

    def kill(self, node: int) -> None: ...


@dataclass
class Member:
    """A connected worker, and its answers in the present attempt."""

    node: int
    writer: asyncio.StreamWriter
    heard: float
    stopped: Message | None = None
    ready: bool = False
    halted: str | None = None
    failed: str | None = None

    def send(self, **message: Any) -> None:
        with suppress(ConnectionError, RuntimeError):
            self.writer.write(pack(message))


class _Interrupted(Exception):
    """A member of the attempt is lost, or has failed."""


class Controller:
    """Runs one training to its end, see the module.

    progress: called with each event and each step
    """

    def __init__(
        self,
        settings: TrainingSettings,
        store_port: int,
        launcher: Launcher,
        progress: Callable[[Message], None] = lambda message: None,
    ) -> None:
        self.settings, self.store_port, self.launcher, self.progress = settings, store_port, launcher, progress
        self.journal = Journal()
        self._members: dict[int, Member] = {}
        self._agents: dict[int, asyncio.StreamWriter] = {}
        self._numbers: set[int] = set()  # of nodes so far
        self._attempt = 0
        self._asked: set[int] = set()  # nodes that take part in the present attempt
        self._active: list[int] = []
        self._loads = self._even_loads()
        self._changed = asyncio.Event()
        self._unmended: list[Message] = []
        self._faults: dict[int, Message] = {}
        self._parts: dict[int, set[int]] = {}
        self._joined = 0
        self._starting: set[int] = set()
        self._ended = False

    # Connections

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The connection of an agent or a worker, until it closes, or the controller is interrupted."""
        with closing(writer), suppress(ConnectionError, ValueError, asyncio.CancelledError):
            line = await reader.readline()
            hello = json.loads(line) if line else {}
            if hello.get("role") == "agent":
                await self._serve_agent(hello, reader, writer)
            elif hello.get("role") == "worker":
                await self._serve_worker(hello, reader, writer)

    async def _serve_agent(self, hello: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = hello["node"]
        if node is None or node in self._numbers:
            node = max(self._numbers, default=-1) + 1
        self._numbers.add(node)
        self._agents[node] = writer
        writer.write(pack({"type": "welcome", "node": node, "heartbeat_s": self.settings.heartbeat_s}))
        try:
            async for _ in reader:
                writer.write(pack({"type": "beat"}))
        finally:
            del self._agents[node]
            self._starting.discard(node)
            self._changed.set()

    async def _serve_worker(self, hello: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings = self.settings
        member = Member(hello["node"], writer, time.monotonic())
        shared = ("seed", "steps", "checkpoint_interval", "rebalance_interval", "heartbeat_s", "timeout_s", "device")
        member.send(
            type="welcome",
            node=member.node,
            store_port=self.store_port,
            preset=settings.preset.name,
            folder=str(settings.folder),
            faults=[fault[1:] for fault in settings.faults if fault[0] == member.node],
            **{name: getattr(settings, name) for name in shared},
        )
        if self._ended:
            member.send(type="end")
        self._members[member.node] = member
        self._starting.discard(member.node)
        self.progress(self.journal.note("joined", node=member.node))
        self._changed.set()
        try:
            async for line in reader:
                if self._members.get(member.node) is not member:
                    break
                member.heard = time.monotonic()
                self._receive(member, json.loads(line))
        finally:
            if self._members.get(member.node) is member and not self._ended:
                self._lose(member, "its connection closed")

    def _receive(self, member: Member, message: Message) -> None:
        kind = message["type"]
        if kind == "beat":
            member.send(type="beat")
            return
        if kind == "step":
            self._step(message)
        elif kind == "saved":
            self._saved(message)
        elif kind == "holds":
            self.journal.held[member.node] = {**message, "step": len(self.journal.losses)}
        elif kind == "fault":
            self._faults[member.node] = message
        elif message["attempt"] != self._attempt:
            return
        elif kind == "stopped":
            member.stopped = message
        elif kind == "ready":
            member.ready = True
        elif kind == "halted":
            member.halted = message["reason"]
        elif kind == "failed":
            member.failed = message["error"]
        self._changed.set()

    def _step(self, message: Message) -> None:
        """Record an applied step, reported by rank 0, or after a failure by any rank."""
        step, journal = message["step"], self.journal
        if step in journal.losses:
            return
        journal.losses[step] = message["loss"]
        journal.members[step] = list(self._active)
        if "seconds" in message:
            journal.step_seconds.append((step, message["members"], message["seconds"]))
        for total, layer in zip(self._loads, message["loads"], strict=True):
            for expert, tokens in enumerate(layer):
                total[expert] += tokens
        self.progress({"event": "step", "step": step, "loss": message["loss"], "members": list(self._active)})
        while self._joined < len(self.settings.joins) and self.settings.joins[self._joined] <= step + 1:
            node = max(self._numbers | self._starting, default=-1) + 1
            self._joined += 1
            self._starting.add(node)
            self.launcher.start(node)
        for node, when, _, _ in self.settings.faults:  # of an idle node, which passes no point of the step
            if when == step and node in self._members and node not in self._active:
                self._faults[node] = {"kind": "kill", "point": "idle", "at": time.time()}
                self._kill(node)

    def _saved(self, message: Message) -> None:
        if message["attempt"] != self._attempt:
            return
        parts = self._parts.setdefault(message["step"], set())
        parts.add(message["part"])
        if len(parts) == len(self._active):
            checkpoint.publish(self.settings.folder, message["step"])
            self.progress(self.journal.note("checkpoint", step=message["step"]))

    def _kill(self, node: int) -> None:
        if agent := self._agents.get(node):
            agent.write(pack({"type": "kill"}))
        self.launcher.kill(node)

    def _lose(self, member: Member, why: str) -> None:
        """Remove a member for good; one that is only stopped is killed."""
        del self._members[member.node]
        member.writer.close()
        self._kill(member.node)
        fault = self._faults.pop(member.node, {})
        lost = self.journal.lost(member.node, why, fault)
        self._unmended.append(lost)
        self.progress(lost)
        self._changed.set()

    # Generations

    async def run(self) -> None:
        """From the first generation to the last step.

        Raises: TooFewNodes; TimeoutError if nodes do not come; RuntimeError if generations fail without a reason
        """
        watch = asyncio.create_task(self._watch())
        try:
            await self._until(lambda: len(self._members) >= self.settings.nodes, self.settings.nodes)
            source, failed = ("checkpoint" if self.settings.resume else "new"), 0
            while True:
                before = set(self._members)
                try:
                    if self.settings.system == "ds" and self._unmended and self._attempt:
                        await self._relaunch()
                        source = self._fall_back()
                    source = await self._generation(source)
                    reason = await self._train()
                    failed = 0
                    if reason == "finished":
                        return
                except _Interrupted as error:
                    failed = failed + 1 if set(self._members) >= before else 0
                    if failed == MAX_FAILED_GENERATIONS:
                        raise RuntimeError(f"{failed} generations in turn have failed: {error}") from None
        finally:
            watch.cancel()
            self._ended, self.journal.ended_s = True, self.journal.now()
            for member in self._members.values():
                member.send(type="end")

    async def closed(self) -> None:
        """Wait up to 10 s until the nodes have ended; then close the connections of those that have not."""
        try:
            await asyncio.wait_for(self._until(lambda: not self._agents), 10)
        except TimeoutError:
            for unreached in self._agents.values():
                unreached.transport.abort()
            await self._until(lambda: not self._agents)

    async def _watch(self) -> None:
        """Lose members that are silent for the heartbeat time."""
        pause_s = self.settings.heartbeat_s / BEATS / 2
        while True:
            before = time.monotonic()
            await asyncio.sleep(pause_s)
            now = time.monotonic()
            if now - before > 2 * pause_s:  # this process itself was held up: let it read first
                continue
            for member in list(self._members.values()):
                if now - member.heard > self.settings.heartbeat_s - pause_s:
                    self._lose(member, f"silent for {now - member.heard:.2f} s")

    async def _generation(self, source: str) -> str:
        """Form one generation. source: of its state, new, checkpoint or nodes. Returns: the source of the next one"""
        self._attempt += 1
        self._parts.clear()
        began_s = self.journal.now()
        for member in self._members.values():
            member.stopped = member.halted = member.failed = None
            member.ready = False
            member.send(type="stop", attempt=self._attempt)
        self._asked = set(self._members)
        await self._until(lambda: all(self._members[node].stopped for node in self._asked & set(self._members)))
        standing = {node: self._members[node].stopped or {} for node in self._asked & set(self._members)}
        checkpoint.discard_unfinished(self.settings.folder)  # not before: a member may have been writing its part
        stopped_s = self.journal.now()
        if self.settings.system == "ds" and self._unmended and source == "nodes":
            raise _Interrupted("a node is lost")
        source, step, generation = await self._plan(source, standing)
        for node in generation.members:
            self._members[node].send(
                type="plan",
                attempt=self._attempt,
                source=source,
                step=step,
                members=generation.members,
                placements=[layer.nodes for layer in generation.placements],
                transfers=[(move.layer, move.expert, move.source, move.target) for move in generation.transfers],
                joining=self._joining(generation, standing) if source == "nodes" else [],
            )
        planned_s = self.journal.now()
        await self._until_all(generation.members, lambda member: member.ready)
        self._active = generation.members
        for node in standing.keys() & self._members.keys():
            self._members[node].send(type="go", attempt=self._attempt)
        self._loads = self._even_loads()
        event = self.journal.note(
            "generation",
            attempt=self._attempt,
            source=source,
            step=step,
            members=generation.members,
            idle=generation.idle,
            placements=[layer.nodes for layer in generation.placements],
            transfers=len(generation.transfers),
            transferred_bytes=generation.moved_bytes,
            began_s=began_s,
            stopped_s=stopped_s,
            planned_s=planned_s,
        )
        for failure in self._unmended:
            failure["replanned_after_s"] = planned_s - failure["at_s"]
            failure["transferred_bytes"] = generation.moved_bytes
            failure["outage_s"] = event["at_s"] - (failure["failed_at_s"] or failure["at_s"])
            failure["source"] = source
        self._unmended = []
        self.progress(event)
        return "nodes"

    async def _plan(self, source: str, standing: dict[int, Message]) -> tuple[str, int, Generation]:
        held = {node: {(layer, expert) for layer, expert in answer["held"]} for node, answer in standing.items()}
        while True:
            step = 0
            if source == "checkpoint":
                step = checkpoint.finished_steps(self.settings.folder)[-1]
            if source == "nodes":
                # If one member has applied a step, all are prepared for it (see `worker`).
                applied = [answer for answer in standing.values() if answer["applied"] is not None]
                step = min((answer["applied"] + answer["prepared"] for answer in applied), default=0)
                for answer in applied:
                    if answer["report"] and answer["report"]["step"] < step:
                        self._step(answer["report"])
            kind, model, method = self.settings.system, self.settings.preset, self.settings.method
            restored = source != "nodes"
            try:
                generation = next_generation(kind, model, held, self._loads, method=method, restored=restored)
                return source, step, generation
            except Unrecoverable as error:
                self.progress(self.journal.note("unrecoverable", why=str(error)))
                source = self._fall_back()
            except TooFewNodes as error:
                if not self._starting:
                    raise
                self.progress(self.journal.note("waits", why=str(error)))
                await self._until(lambda: not self._starting)
                raise _Interrupted(str(error)) from None

    def _fall_back(self) -> str:
        """Forget the steps after the last checkpoint. Returns: the source of the next generation's state"""
        found = checkpoint.finished_steps(self.settings.folder)
        self.progress(self.journal.restart(found[-1] if found else 0))
        return "checkpoint" if found else "new"

    async def _relaunch(self) -> None:
        """End every worker and let its agent start a new process, as a job without elasticity must."""
        nodes = set(self._members)
        for node in nodes:
            member = self._members.pop(node)
            member.writer.close()
            if agent := self._agents.get(node):
                agent.write(pack({"type": "restart"}))
        await self._until(lambda: all(node in self._members or node not in self._agents for node in nodes), len(nodes))

    @staticmethod
    def _joining(generation: Generation, standing: dict[int, Message]) -> list[tuple[int, int]]:
        """(source, target) ranks that send the dense state to the members that join; the sources take turns."""
        ranks = range(len(generation.members))
        new = [rank for rank in ranks if standing[generation.members[rank]]["applied"] is None]
        old = [rank for rank in ranks if rank not in new]
        return [(old[number % len(old)], rank) for number, rank in enumerate(new)] if old else []

    async def _train(self) -> str:
        """Wait until the ranks have halted. Returns why. Raises: _Interrupted"""
        paused = self.settings.system == "ds"  # it admits nodes only when it restarts

        def waiting() -> bool:
            return not paused and bool(self._members.keys() - self._asked)

        while True:
            halted = [self._members[node].halted for node in self._active if node in self._members]
            if len(halted) == len(self._active) and all(halted):
                return str(halted[0])
            if waiting():
                paused = True
                for node in self._active:
                    if node in self._members:
                        self._members[node].send(type="pause")
            await self._until_all(self._active, lambda member: member.halted is not None, or_else=waiting)

    async def _until_all(
        self, nodes: Collection[int], holds: Callable[[Member], bool], or_else: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until `holds` of all these members. Raises: _Interrupted if one is lost or has failed"""

        def done() -> bool:
            for node in nodes:
                if node not in self._members:
                    raise _Interrupted(f"node {node} is lost")
                if error := self._members[node].failed:
                    raise _Interrupted(f"node {node}: {error}")
            return all(holds(self._members[node]) for node in nodes) or or_else()

        await self._until(done)

    async def _until(self, done: Callable[[], bool], nodes: int | None = None) -> None:
        """Wait until `done`. nodes: number of nodes that must come within start_s"""
        end = time.monotonic() + self.settings.start_s
        while not done():
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), None if nodes is None else end - time.monotonic())
            except TimeoutError:
                found = f"got {len(self._members)} in {self.settings.start_s:g} s"
                raise TimeoutError(f"{nodes} nodes must come, {found}") from None

    def _even_loads(self) -> list[list[int]]:
        return [[1] * self.settings.preset.num_experts for _ in range(self.settings.preset.num_layers)]
