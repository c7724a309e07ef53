"""Training under failures, simulated event by event.

Nothing is random between two events, so that a run depends on its trace of failures only. Steps are whole: a failure
discards the step that it interrupts. Times are in s from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from artifact.elastic_moe.failures import FailureTrace
from artifact.elastic_moe.routing import LoadTrace
from artifact.elastic_moe.simulation import layouts
from artifact.elastic_moe.simulation.layouts import Layout
from artifact.elastic_moe.simulation.step_time import TESTBEDS, WORKLOADS, TimeModel, Workload
from artifact.elastic_moe.simulation.systems import SIMULATED_SYSTEMS, LayoutCache, default_loads
from artifact.elastic_moe.simulation.timeline import Phase, Segment, SimulationResult

_T = TypeVar("_T")


def simulate(
    model: str | Workload,
    system: str,
    trace: FailureTrace,
    testbed: str | TimeModel,
    minutes: float,
    *,
    loads: LoadTrace | LayoutCache | None = None,
    checkpoint_steps: int | Literal["own"] | None = "own",
    rebalance_steps: int = 200,
    until_samples: int | None = None,
) -> SimulationResult:
    """Simulate `minutes` of training on the nodes of a trace.

    model, testbed:   names in WORKLOADS and TESTBEDS, or the objects
    system:           a name in SIMULATED_SYSTEMS
    loads:            tokens of each expert over the iterations, `default_loads` if None; fewer layers stand for all
    checkpoint_steps: steps between checkpoints; None for no checkpoints, "own" for the system's interval
    rebalance_steps:  steps between new allocations of Lazarus
    until_samples:    end the run once this many samples are done

    A failure of a node in use interrupts the current phase; the failure of an idle node has no effect. Nodes that join
    wait for `TimeModel.join_wait_s` or the next restart; systems in groups use them once they complete another group,
    DS after a checkpoint and a restart. A failure during a reconfiguration or restart begins it anew; what it was to
    move counts as not moved.

    Raises: ValueError for an unknown name, minutes that are not positive and finite, a step count < 1, or loads of
            another number of experts
    """
    work = _named("model", model, WORKLOADS) if isinstance(model, str) else model
    clock: TimeModel = _named("testbed", testbed, TESTBEDS) if isinstance(testbed, str) else testbed
    kind = _named("system", system, SIMULATED_SYSTEMS)
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes must be positive and finite, got {minutes}")
    interval = kind.checkpoint_steps if checkpoint_steps == "own" else checkpoint_steps
    for name, steps in (("checkpoint_steps", interval), ("rebalance_steps", rebalance_steps)):
        if steps is not None and steps < 1:
            raise ValueError(f"{name} must be at least 1, got {steps}")
    if not isinstance(loads, LayoutCache):
        loads = LayoutCache(work, default_loads(work) if loads is None else loads)
    if loads.loads.counts_ILE.shape[2] != work.num_experts:
        rule = f"loads must be of {work.num_experts} experts"
        raise ValueError(f"{rule}, got {loads.loads.counts_ILE.shape[2]}")
    run = _Run(work, system, trace, clock, 60.0 * minutes, loads, interval, rebalance_steps, until_samples)
    return run.run()


def _named(what: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return known[name]


class _Interrupted(Exception):
    """A node in use has failed."""


class _Ended(Exception):
    """The simulated time is over, or enough samples are done."""


@dataclass
class _Run:
    """One run. Each phase takes time, during which events happen; the failure of a member interrupts it."""

    work: Workload
    system: str
    trace: FailureTrace
    clock: TimeModel
    end_s: float
    loads: LayoutCache
    checkpoint_steps: int | None
    rebalance_steps: int
    until_samples: int | None

    def __post_init__(self) -> None:
        self.kind, self.total = SIMULATED_SYSTEMS[self.system], SimulationResult(self.system)
        self.events, self.next_event, self.now = self.trace.events, 0, 0.0
        # next_join_s[i]: when nodes next join, from event i on
        self.next_join_s = [math.inf]
        for event in reversed(self.events):
            self.next_join_s.append(event.time_s if event.kind == "join" else self.next_join_s[-1])
        self.next_join_s.reverse()

        self.layout: Layout | None = None
        self.used: list[int] = []  # the node of each row of held_NW
        self.held_NW = np.zeros((0, 1), dtype=np.uint64)
        self.idle: dict[int, None] = dict.fromkeys(self.trace.initial)  # present, and without a part in training
        self.waiting: dict[int, None] = {}
        self.due_s = math.inf  # when the waiting nodes are admitted
        self.members: frozenset[int] = frozenset()  # whose failure interrupts
        self.step_s = 0.0
        self.timed: tuple[Layout | None, int] = (None, 0)  # the layout and load record that step_s is of
        self.saved_step = self.saved_samples = self.rebalanced_step = 0

    def run(self) -> SimulationResult:
        try:
            self._recovering(self._start)
            while True:
                self._recovering(self._train)
        except _Ended:
            return self.total

    # Phases

    def _start(self) -> None:
        """Start without delay: at time 0 every node holds its experts."""
        layout = self._layout_of(len(self.idle))
        if layout is None:
            self._restart(failed=False)
        else:
            self._use(sorted(self.idle)[: layout.num_nodes], layout)

    def _train(self) -> None:
        """What is due, then steps until something may be due again."""
        if self.now >= self.due_s:
            self._admit_waiting()
        done = self.total.steps
        if self.checkpoint_steps and done % self.checkpoint_steps == 0 and done != self.saved_step:
            self._save()
        if self.kind.replicates_experts and done % self.rebalance_steps == 0 and done != self.rebalanced_step:
            self._rebalance()
        assert self.layout is not None
        record = self.loads.record(done)
        if self.timed != (self.layout, record):
            self.step_s = self.clock.step_s(self.work, self.system, self.layout, self.loads.share_LE(record))
            self.timed = (self.layout, record)
        until = [self.loads.next_change(done) - done, (self.end_s - self.now) // self.step_s + 1]
        if self.until_samples is not None:
            until.append(math.ceil((self.until_samples - self.total.samples) / self.work.batch(self.layout.num_nodes)))
        if self.checkpoint_steps:
            until.append(self.checkpoint_steps - done % self.checkpoint_steps)
        if self.kind.replicates_experts:
            until.append(self.rebalance_steps - done % self.rebalance_steps)
        due_s = min(self.due_s, self.next_join_s[self.next_event] + self.clock.join_wait_s)
        until.append(math.inf if due_s == math.inf else max(1, math.ceil((due_s - self.now) / self.step_s)))
        self._advance("training", steps=int(min(until)), step_s=self.step_s)
        if self.until_samples is not None and self.total.samples >= self.until_samples:
            raise _Ended

    def _save(self) -> None:
        self._advance("checkpointing", self.clock.checkpoint_s(self.work, len(self.used)))
        self.saved_step, self.saved_samples = self.total.steps, self.total.samples

    def _rebalance(self) -> None:
        layout = self._layout_of(len(self.used))
        assert layout is not None
        if layout is not self.layout:
            chosen_N, states_N = layouts.assign_rows(self.held_NW, layout)
            if states_N.any():
                self._advance("rebalancing", self.clock.rebalance_s(self.work, self._scaled_to_model(states_N.max())))
            self._use([self.used[row] for row in chosen_N.tolist()], layout)
            self.total.rebalances += 1
            self.total.moved_states += round(self._scaled_to_model(states_N.sum()))
        self.rebalanced_step = self.total.steps

    def _admit_waiting(self) -> None:
        """Waiting nodes become idle; a layout of more nodes then uses them."""
        self.idle |= self.waiting
        self.waiting, self.due_s = {}, math.inf
        layout = self._layout_of(len(self.used) + len(self.idle))
        if layout is None or layout.num_nodes == len(self.used):
            return
        if self.kind.recovers_in_place:
            self._reconfigure(layout, failed=False)
        else:
            self._save()
            self._restart(failed=False)

    def _recovering(self, act: Callable[[], None]) -> None:
        """Run `act`; recover after each failure of a member, until an attempt is not interrupted."""
        while True:
            try:
                return act()
            except _Interrupted:
                act = self._recover

    def _recover(self) -> None:
        """In place if the system can and the survivors hold every expert, otherwise by a restart."""
        in_place = self.kind.recovers_in_place and self.used
        layout = self._layout_of(len(self.used) + len(self.idle)) if in_place else None
        if layout is None or layouts.has_lost_experts(self.held_NW, layout):
            self._restart(failed=True)
        else:
            self._reconfigure(layout, failed=True)

    def _reconfigure(self, layout: Layout, failed: bool) -> None:
        nodes = self.used + sorted(self.idle)
        held_CW = np.zeros((len(nodes), self.held_NW.shape[1]), dtype=np.uint64)
        held_CW[: len(self.used)] = self.held_NW
        chosen_N, states_N = layouts.assign_rows(held_CW, layout)
        states = self._scaled_to_model(states_N.max())
        self.members = frozenset(nodes)
        if failed:
            self._advance("reconfiguring", self.clock.detection_s + self.clock.reconfigure_s(self.work, states))
        else:
            self._advance("reconfiguring", self.clock.join_s(self.work, states))
        self._use([nodes[row] for row in chosen_N.tolist()], layout)
        self.total.reconfigurations += 1
        self.total.moved_states += round(self._scaled_to_model(states_N.sum()))

    def _restart(self, failed: bool) -> None:
        """Restart from the last checkpoint, with all nodes present, as soon as they suffice for a layout."""
        self.total.lost_steps += self.total.steps - self.saved_step
        self.total.lost_samples += self.total.samples - self.saved_samples
        self.total.steps, self.total.samples = self.saved_step, self.saved_samples
        self.idle |= dict.fromkeys(self.used) | self.waiting
        self.used, self.held_NW = [], self.held_NW[:0]
        self.waiting, self.due_s, self.members = {}, math.inf, frozenset()
        while (layout := self._layout_of(len(self.idle))) is None:
            self._stall()
        chosen = sorted(self.idle)[: layout.num_nodes]
        self.members = frozenset(chosen)
        seconds = self.clock.restart_s(self.work, layout) + (self.clock.detection_s if failed else 0)
        self._advance("restarting", seconds)
        self._use(chosen, layout)
        self.total.restarts += 1

    def _stall(self) -> None:
        """Wait until nodes have joined, and for the nodes that join during this wait."""
        while self.now < self.due_s:
            joins_s = self.next_join_s[self.next_event]
            self._advance("stalled", max(min(self.due_s, joins_s) - self.now, 0.0))
            if self.now >= joins_s:
                self._apply_next_event()
        self.idle |= self.waiting
        self.waiting, self.due_s = {}, math.inf

    def _use(self, nodes: list[int], layout: Layout) -> None:
        there = dict.fromkeys(self.used) | self.idle
        self.layout, self.used, self.held_NW = layout, nodes, layout.held_NW
        self.members = frozenset(nodes)
        self.idle = {node: None for node in there if node not in self.members}

    def _layout_of(self, num_nodes: int) -> Layout | None:
        """The layout of the system on these nodes, for the loads in force."""
        return self.loads.of(self.kind, num_nodes, self.loads.record(self.total.steps))

    def _scaled_to_model(self, states: float) -> float:
        """Expert states of all layers of the model, from those of the layers in the loads."""
        return float(states * self.work.num_layers / self.loads.loads.counts_ILE.shape[1])

    # Time and events

    def _advance(self, state: Phase, seconds: float = 0.0, *, steps: int = 0, step_s: float = 0.0) -> None:
        """Let `seconds` pass, or `steps` of `step_s` each, and apply the events in between.

        Raises: _Interrupted when a member fails; _Ended at the end of the time
        """
        start_s, finished = self.now, 0
        until_s = start_s + (steps * step_s if steps else seconds)
        stop_s = min(until_s, self.end_s)
        while True:
            event_s = self.events[self.next_event].time_s if self.next_event < len(self.events) else math.inf
            at_s = max(min(event_s, stop_s), self.now)
            done = steps if at_s >= until_s or not steps else math.floor((at_s - start_s) / step_s + 1e-9)
            self._record(state, at_s, done - finished, step_s)
            finished = done
            if event_s >= stop_s:
                break
            if self._apply_next_event():
                raise _Interrupted
        if stop_s >= self.end_s:
            raise _Ended

    def _apply_next_event(self) -> bool:
        """Returns whether a member fails."""
        event = self.events[self.next_event]
        self.next_event += 1
        if event.kind == "join":
            if not self.waiting:
                self.due_s = event.time_s + self.clock.join_wait_s
            self.waiting |= dict.fromkeys(event.nodes)
            return False
        gone = frozenset(event.nodes)
        for away in gone:
            self.idle.pop(away, None)
            self.waiting.pop(away, None)
        if not self.waiting:
            self.due_s = math.inf
        if not gone.isdisjoint(self.used):
            kept = [row for row, node in enumerate(self.used) if node not in gone]
            self.used, self.held_NW = [self.used[row] for row in kept], self.held_NW[kept]
        return not gone.isdisjoint(self.members)

    def _record(self, state: Phase, end_s: float, steps: int, step_s: float) -> None:
        batch = self.work.batch(len(self.used)) if state == "training" else 0
        segment = Segment(
            self.now,
            end_s,
            state,
            len(self.used) + len(self.idle) + len(self.waiting),
            len(self.used),
            steps * batch,
            batch / step_s if step_s else 0.0,
        )
        self.now = end_s
        self.total.steps += steps
        self.total.samples += segment.samples
        if segment.seconds == 0 and not steps:
            return
        if self.total.segments:  # merge with the one before if only the time differs
            last = self.total.segments[-1]
            if replace(last, start_s=segment.start_s, end_s=end_s, samples=segment.samples) == segment:
                segment = replace(segment, start_s=last.start_s, samples=last.samples + segment.samples)
                self.total.segments.pop()
        self.total.segments.append(segment)
