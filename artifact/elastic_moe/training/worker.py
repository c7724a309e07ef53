"""A worker: the process of a node that holds some experts, and continues in another group when a node is lost.

A step has two phases. First all gradients are summed; a rank that has all sums is prepared. Then the ranks vote, and a
rank that has the votes of all others applies the step. So if any rank has applied it, all others are prepared: if a
rank dies in the vote, the survivors that are only prepared apply the step too, and no rank has to undo it. If a
survivor is not prepared, no rank has applied the step, and all run it again. The controller decides, as all report to
it.

No state is dropped for a new plan until every member of the next generation has the state that it needs.

If the controller is gone, the ranks together write a checkpoint of their last step and end. If it goes while they form
a group, they cannot write one: they end, and the last checkpoint remains.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from artifact.elastic_moe.placement.migration import ExpertKey, holdings_of
from artifact.elastic_moe.placement.placements import Placement
from artifact.elastic_moe.presets import PRESETS
from artifact.elastic_moe.training import checkpoint
from artifact.elastic_moe.training.collectives import Group
from artifact.elastic_moe.training.model import DistributedDispatch, batch
from artifact.elastic_moe.training.shard import ModelShard
from artifact.elastic_moe.training.synchronise import Synchroniser
from artifact.elastic_moe.training.wire import CONTROLLER_GONE, Connection, Message


class Worker:
    """Follows the controller's plans. See the module."""

    def __init__(self, address: tuple[str, int], node: int | None) -> None:
        torch.set_num_threads(1)
        hello = {"type": "hello", "role": "worker", "node": node}
        self.connection = Connection(address, hello, on_message=self._hear)
        job: Any = self.connection.welcome
        self.node, self.preset, self.job = job["node"], PRESETS[job["preset"]], job
        self.folder = Path(job["folder"])
        self.device = torch.device("cpu")
        if job["device"] == "cuda":
            local = int(os.environ.get("LOCAL_RANK", self.node % torch.cuda.device_count()))
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        self.store = distributed.TCPStore(
            address[0], job["store_port"], is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        self.state: ModelShard | None = None
        self.group: Group | None = None
        self._report: Message | None = None  # of the last step that this process was prepared for
        self._prepared = False
        self._attempt = self._adopted = -1
        self._pause = threading.Event()
        self._faults: list[tuple[int, str, str]] = [tuple(fault) for fault in job["faults"]]

    def run(self) -> int:
        """Work until the controller ends training. Returns: the exit status"""
        self.connection.start()
        while (message := self.connection.inbox.get()) is not None:
            kind = message["type"]
            if kind == "end":
                return 0
            if message.get("attempt") != self._attempt:
                continue  # of a generation that is over
            try:
                if kind == "stop":
                    self.connection.send(self._standing())
                elif kind == "plan":
                    self._adopt(message)
                elif kind == "go":
                    self._train(message["attempt"])
            except (RuntimeError, ConnectionError) as error:
                if self.group is not None:
                    self.group.break_off()
                reason = str(error).partition("\n")[0][:300]
                self.connection.send({"type": "failed", "error": reason, "attempt": message["attempt"]})
        return CONTROLLER_GONE

    def _hear(self, message: Message) -> None:
        """In the reading thread: end the collectives of a generation that is over."""
        if message["type"] == "pause":
            self._pause.set()
        if message["type"] == "stop":
            self._attempt = message["attempt"]
            if self.group is not None:
                self.group.break_off()

    def _standing(self) -> Message:
        return {
            "type": "stopped",
            "attempt": self._attempt,
            "applied": None if self.state is None else self.state.applied,
            "prepared": self._prepared,
            "held": [] if self.state is None else sorted(self.state.experts),
            "report": self._report,
        }

    # A new generation

    def _adopt(self, plan: Message) -> None:
        """Apply the last step if others have, form the group, fetch experts, and report ready."""
        members, experts = plan["members"], self.preset.num_experts
        placements = [Placement(tuple(map(tuple, ranks)), experts) for ranks in plan["placements"]]
        rank = members.index(self.node)
        (wanted,) = holdings_of(placements, [rank])
        if plan["source"] != "nodes":
            self.state = ModelShard(self.preset, self.job["seed"], wanted, self.device)
            self._prepared, self._report = False, None
            if plan["source"] == "checkpoint":
                named = {name: torch.empty_like(part) for name, part in self.state.named(wanted, dense=True).items()}
                checkpoint.read_checkpoint(self.folder, plan["step"], named)
                self.state.restore(named, plan["step"])
        joins = self.state is None
        if self.state is None:
            self.state = ModelShard(self.preset, self.job["seed"], (), self.device)
            self.state.applied = plan["step"]
        if self.state.applied < plan["step"]:
            assert self._prepared, "a step that another rank has applied is one that all are prepared for"
            self._apply()
        self._prepared = False
        try:
            self.group = self._form_group(plan["attempt"], rank, len(members))
            self._migrate(plan, rank)
        except Exception:
            if joins:
                self.state = None
            raise
        self._report = None
        self._pause.clear()
        self._wanted, self._placements, self._adopted = wanted, placements, plan["attempt"]
        self.connection.send({"type": "ready", "attempt": plan["attempt"]})

    def _form_group(self, attempt: int, rank: int, size: int) -> Group:
        """In a separate thread, as forming a group waits until the timeout for a peer that dies meanwhile."""
        formed: list[Group] = []
        errors: list[Exception] = []

        def form() -> None:
            try:
                timeout_s = self.job["timeout_s"]
                place: Any = {"host": self.connection.host, "device": self.device, "timeout_s": timeout_s}
                formed.append(Group(self.store, attempt, rank, size, **place))
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=form, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.005)
            self._still(attempt)
        if errors:
            raise errors[0]
        self.group = formed[0]
        self._still(attempt)  # a stop from here on breaks this group off
        return formed[0]

    def _still(self, attempt: int) -> None:
        if self._attempt != attempt or self.connection.lost.is_set():
            raise ConnectionError("stopped while the group was formed")

    def _migrate(self, plan: Message, rank: int) -> None:
        """Exchange the planned experts with their optimizer states, and send the dense state to nodes that join."""
        state, group = self._live()
        self._at("migration", plan["step"])
        send: list[list[Tensor]] = [[torch.empty(0, device=self.device)] for _ in range(group.size)]
        expected: list[list[ExpertKey]] = [[] for _ in range(group.size)]
        for source, target in plan["joining"]:
            if source == rank:
                send[target].append(state.pack_dense())
        for layer, expert, source, target in plan["transfers"]:
            if source == rank:
                send[target].append(state.pack_expert((layer, expert)))
            if target == rank:
                expected[source].append((layer, expert))
        dense = [state.dense_numbers if [source, rank] in plan["joining"] else 0 for source in range(group.size)]
        size = 3 * self.preset.expert_parameters
        arrived = group.exchange(
            [torch.cat(tensors) for tensors in send],
            [rest + size * len(keys) for rest, keys in zip(dense, expected, strict=True)],
        )
        for packed, rest, keys in zip(arrived, dense, expected, strict=True):
            if rest:
                state.unpack_dense(packed[:rest])
            for key, part in zip(keys, packed[rest:].split(size), strict=False):
                state.unpack_expert(key, part)

    # Training

    def _train(self, attempt: int) -> None:
        """Train until the ranks agree to halt. A node that is not in the plan drops its state."""
        if self._adopted != attempt:
            self.state = None
            return
        state, group = self._live()
        state.keep(self._wanted)
        replicas_LRE = torch.stack([torch.from_numpy(layer.counts_NE) for layer in self._placements])
        self._dispatch = DistributedDispatch(group, replicas_LRE.to(self.device), self._at)
        self._synchroniser = Synchroniser(group, [layer.nodes for layer in self._placements])
        first_LE = replicas_LRE.ne(0).long().argmax(1)
        self._written = [key for key in state.experts if first_LE[key] == group.rank]
        began, reason = state.applied, ""
        while not reason:
            if state.applied >= self.job["steps"]:
                reason = "finished"
            elif state.applied > began and state.applied % self.job["rebalance_interval"] == 0:
                reason = "rebalance"
            else:
                reason = self._step()
                if state.applied == began + 1:  # the optimizer has its states from now on
                    self.connection.send({"type": "holds", "experts": len(state.experts), **state.bytes_held()})
                if reason == "controller":
                    self._end_alone()
                elif state.applied % self.job["checkpoint_interval"] == 0 and state.applied < self.job["steps"]:
                    self._write_checkpoint()
        self.connection.send({"type": "halted", "reason": reason, "attempt": attempt})

    def _step(self) -> str:
        """One step of the global batch. Returns: why to halt after it, the same on every rank, or an empty string"""
        state, group = self._live()
        start, step, dispatch = time.perf_counter(), state.applied, self._dispatch
        state.clear_gradients()
        sample_BT = batch(self.preset, self.job["seed"], step)
        mine_BT = sample_BT.tensor_split(group.size)[group.rank].to(self.device)
        dispatch.loads_LE.zero_()
        loss = state.model.loss_sum(mine_BT, state.layers, dispatch) / sample_BT[:, 1:].numel()
        loss.backward()
        own = [loss.item(), float(self._pause.is_set()), float(self.connection.lost.is_set())]
        numbers = torch.cat([torch.tensor(own), dispatch.loads_LE.cpu().flatten().float()]).to(self.device)
        numbers = self._synchroniser.dense(list(state.model.parameters()), numbers).cpu()
        self._at("allreduce")
        self._synchroniser.experts(state.experts)
        self._report = {
            "type": "step",
            "step": step,
            "loss": float(numbers[0]),
            "loads": numbers[3:].long().view(self.preset.num_layers, -1).tolist(),
            "members": group.size,
        }
        self._prepared = True
        self._at("vote")
        group.vote()
        self._at("apply")
        self._apply()
        if group.rank == 0:
            seconds = time.perf_counter() - start
            self.connection.send({**self._report, "seconds": seconds})
        return "controller" if numbers[2] else "pause" if numbers[1] else ""

    def _apply(self) -> None:
        state, _ = self._live()
        state.apply()
        self._prepared = False

    def _write_checkpoint(self) -> None:
        state, group = self._live()
        self._at("checkpoint")
        checkpoint.write_part(self.folder, state.applied, group.rank, state.named(self._written, dense=group.rank == 0))
        saved = {"type": "saved", "attempt": self._attempt, "step": state.applied, "part": group.rank}
        self.connection.send(saved)

    def _end_alone(self) -> None:
        """Some rank has lost the controller: write a checkpoint of this step."""
        state, group = self._live()
        self._write_checkpoint()
        group.vote()  # every part is there
        if group.rank == 0 and self.connection.lost.is_set():
            checkpoint.publish(self.folder, state.applied)

    def _live(self) -> tuple[ModelShard, Group]:
        if self.state is None or self.group is None:
            raise RuntimeError("a worker has state and a group from its first plan on")
        return self.state, self.group

    # Injected faults

    def _at(self, point: str, step: int | None = None) -> None:
        """Kill or stop the whole node if a fault is set for this point."""
        for when, where, kind in self._faults:
            now = self._live()[0].applied if step is None else step
            # Also at later steps: not every step migrates, and a node that joins may miss the fault's step.
            if where == point and now >= when:
                if point == "vote":
                    self._live()[1].vote(only=(self._live()[1].size - 1) // 2)
                    time.sleep(0.05)
                self.connection.send({"type": "fault", "kind": kind, "point": point, "at": time.time()})
                time.sleep(0.01)
                os.killpg(0, signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
