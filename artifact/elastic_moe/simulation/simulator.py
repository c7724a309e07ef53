"""Training under failures, event by event: what a cluster does at each time, and what comes of it.

Between two events nothing is random, so that a run depends on its trace of failures only. Steps are whole: a failure
discards the one that it interrupts. Times are in s from the start.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from artifact.elastic_moe.failures import FailureTrace
from artifact.elastic_moe.routing import LoadTrace, drifting_loads, smartmoe_loads, top_experts
from artifact.elastic_moe.simulation import layouts
from artifact.elastic_moe.simulation.layouts import GroupLayout, Layout
from artifact.elastic_moe.simulation.step_time import TESTBEDS, WORKLOADS, TimeModel, Workload

Phase = Literal["training", "checkpointing", "rebalancing", "reconfiguring", "restarting", "stalled"]
_T = TypeVar("_T")
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What a simulated cluster can be doing; stalled: it waits for nodes that hold every expert."""


@dataclass(frozen=True)
class SimulatedSystem:
    """How a system trains, and what it does when a node in use fails.

    replicates_experts: by load, on all nodes (Lazarus); else nodes form groups that hold every expert once, and only
                        whole groups train
    recovers_in_place:  survivors that hold every expert fetch from one another what they lack; otherwise all restart
                        from the last checkpoint
    """

    label: str
    replicates_experts: bool
    recovers_in_place: bool
    checkpoint_steps: int


SIMULATED_SYSTEMS = {
    "lazarus": SimulatedSystem("Lazarus", replicates_experts=True, recovers_in_place=True, checkpoint_steps=250),
    "ds": SimulatedSystem("DS", replicates_experts=False, recovers_in_place=False, checkpoint_steps=50),
    "ds-ft": SimulatedSystem("DS(FT)", replicates_experts=False, recovers_in_place=True, checkpoint_steps=250),
    "tutel": SimulatedSystem("Tutel", replicates_experts=False, recovers_in_place=False, checkpoint_steps=50),
    "tutel-ft": SimulatedSystem("Tutel(FT)", replicates_experts=False, recovers_in_place=True, checkpoint_steps=250),
}
"""With the checkpoint intervals of Lazarus's evaluation. Tutel is modelled as DeepSpeed: it too gives every expert the
room of the most loaded one, and checkpoints and groups are those of the framework around it."""


@dataclass(frozen=True)
class Segment:
    """A stretch of time in one state.

    nodes:         that are there, waiting ones included; used: that train, or of which survivors go on after this
    samples:       of the steps finished in it
    samples_per_s: while training, else 0
    """

    start_s: float
    end_s: float
    state: Phase
    nodes: int
    used: int
    samples: int
    samples_per_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class SimulationResult:
    """What came of a run.

    samples, steps:           that count in the end; lost_samples, lost_steps: done, and undone by a restart
    restarts:                 from a checkpoint, or from the start; reconfigurations, rebalances: finished ones
    moved_states:             expert states that nodes fetched from one another
    """

    system: str
    segments: tuple[Segment, ...]
    samples: int
    steps: int
    lost_samples: int
    lost_steps: int
    restarts: int
    reconfigurations: int
    rebalances: int
    moved_states: int

    @cached_property
    def seconds(self) -> dict[Phase, float]:
        """Of each state; together they are the time that was simulated."""
        spent: Counter[Phase] = Counter()
        for segment in self.segments:
            spent[segment.state] += segment.seconds  # type: ignore[assignment]
        return {state: float(spent[state]) for state in PHASES}

    @property
    def total_s(self) -> float:
        return self.segments[-1].end_s if self.segments else 0.0

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.total_s if self.total_s else 0.0


@dataclass
class LayoutCache:
    """The layouts of one workload and load trace; the last ones used are kept. Runs that share them are faster."""

    work: Workload
    loads: LoadTrace
    kept: int = 128
    _found: OrderedDict[tuple[bool, int, int], Layout] = field(default_factory=OrderedDict)
    _shares: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def record(self, step: int) -> int:
        """Which loads rule at the step after so many: the last recorded by then; the trace's end stays."""
        return max(0, bisect_right(self.loads.iterations, step + 1) - 1)

    def next_change(self, step: int) -> float:
        """The first step count at which other loads rule."""
        following = self.record(step) + 1
        return self.loads.iterations[following] - 1 if following < len(self.loads.iterations) else math.inf

    def share_LE(self, record: int) -> NDArray[np.float64]:
        if record not in self._shares:
            loads_LE = np.maximum(self.loads.counts_ILE[record], 1e-9)
            self._shares[record] = loads_LE / loads_LE.sum(axis=1, keepdims=True)
        return self._shares[record]

    def of(self, system: SimulatedSystem, num_nodes: int, record: int) -> Layout | None:
        """The layout for as many of the nodes as can be used; None if they do not hold every expert."""
        work = self.work
        if system.replicates_experts:
            if num_nodes * work.slots < work.num_experts:
                return None
            return self._get((True, num_nodes, record))
        groups = num_nodes // work.group_nodes
        return self._get((False, groups, 0)) if groups else None

    def _get(self, key: tuple[bool, int, int]) -> Layout:
        if key not in self._found:
            replicates_experts, size, record = key
            work, loads_LE = self.work, self.loads.counts_ILE[record]
            self._found[key] = (
                layouts.replicated_layout(loads_LE, size, work.slots, work.min_replicas)
                if replicates_experts
                else GroupLayout(size, work.group_nodes, *loads_LE.shape)
            )
            if len(self._found) > self.kept:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key]


def default_loads(work: Workload) -> LoadTrace:
    """The loads that Lazarus replays: of the hottest experts of SmartMoE's first layers.

    Its trace has 32 experts. More are generated, as Lazarus's loads of DeepSeek-V3 are not published: eight layers that
    stand for all, by Zipf's law with exponent 0.3, so that the hottest of 256 experts has 3.7 times the mean, as in
    DeepSeek-V2-Lite on the task where it routes most evenly; every 100 steps loads drift.
    """
    if work.num_experts <= 32:
        return top_experts(smartmoe_loads(), work.num_layers, work.num_experts)
    made = drifting_loads(8, work.num_experts, 20, skew=0.3, drift=0.2, seed=0)
    return LoadTrace("synthetic-zipf", made.counts_ILE, tuple(range(1, 2001, 100)))


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
    """Train for so long on the nodes of a trace, whose events come when they come.

    model, testbed:   by name (WORKLOADS, TESTBEDS) or as they are
    loads:            tokens of each expert over the iterations, `default_loads` if None; fewer layers stand for all
    checkpoint_steps: steps from one to the next, None for never, by default the system's own
    rebalance_steps:  Lazarus allocates anew after so many
    until_samples:    stop once so many are done

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
    return run.result()


def _named(what: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return known[name]


class _Interrupted(Exception):
    """A node in use has failed."""


class _Ended(Exception):
    """The time is over, or enough samples are done."""


class _Run:
    """One run. Each phase spends time, during which events happen; a failure of a member ends it early."""

    def __init__(
        self,
        work: Workload,
        system: str,
        trace: FailureTrace,
        clock: TimeModel,
        end_s: float,
        loads: LayoutCache,
        checkpoint_steps: int | None,
        rebalance_steps: int,
        until_samples: int | None,
    ) -> None:
        self.work, self.system, self.clock, self.loads = work, system, clock, loads
        self.kind = SIMULATED_SYSTEMS[system]
        self.checkpoint_steps, self.rebalance_steps = checkpoint_steps, rebalance_steps
        self.end_s, self.until_samples = end_s, until_samples
        self.events, self.next_event, self.now = trace.events, 0, 0.0
        self.segments: list[Segment] = []

        # next_join_s[i]: when nodes next join, from event i on
        self.next_join_s = [math.inf]
        for event in reversed(trace.events):
            self.next_join_s.append(event.time_s if event.kind == "join" else self.next_join_s[-1])
        self.next_join_s.reverse()

        self.layout: Layout | None = None
        self.used: list[int] = []  # the node of each row of held_NW
        self.held_NW = np.zeros((0, 1), dtype=np.uint64)
        self.idle: dict[int, None] = dict.fromkeys(trace.initial)  # hold nothing of use
        self.waiting: dict[int, None] = {}
        self.due_s = math.inf  # when the waiting nodes are taken in
        self.members: frozenset[int] = frozenset()  # whose failure interrupts
        self.step_s = 0.0
        self.timed: tuple[Layout | None, int] = (None, 0)  # the layout and loads that step_s is of

        self.step = self.samples = self.saved_step = self.saved_samples = 0
        self.rebalanced_step = 0
        self.lost_steps = self.lost_samples = 0
        self.restarts = self.reconfigurations = self.rebalances = self.moved_states = 0

    def result(self) -> SimulationResult:
        try:
            self._recovering(self._start)
            while True:
                self._recovering(self._train)
        except _Ended:
            pass
        return SimulationResult(
            self.system,
            tuple(self.segments),
            self.samples,
            self.step,
            self.lost_samples,
            self.lost_steps,
            self.restarts,
            self.reconfigurations,
            self.rebalances,
            self.moved_states,
        )

    # What is done

    def _start(self) -> None:
        """At time 0 every node has what it needs."""
        layout = self.loads.of(self.kind, len(self.idle), self.loads.record(0))
        if layout is None:
            self._restart(failed=False)
        else:
            self._use(sorted(self.idle)[: layout.num_nodes], layout)

    def _train(self) -> None:
        """Whatever is due, then steps until something may be."""
        if self.now >= self.due_s:
            self._admit_waiting()
        if self.checkpoint_steps and self.step % self.checkpoint_steps == 0 and self.step != self.saved_step:
            self._save()
        if self.kind.replicates_experts and self.step % self.rebalance_steps == 0 and self.step != self.rebalanced_step:
            self._rebalance()
        assert self.layout is not None
        record = self.loads.record(self.step)
        if self.timed != (self.layout, record):
            share_LE = self.loads.share_LE(record)
            self.step_s = self.clock.step_s(self.work, self.system, self.layout, share_LE)
            self.timed = (self.layout, record)
        step_s = self.step_s
        batch = self.work.batch(self.layout.num_nodes)
        until = [self.loads.next_change(self.step) - self.step]
        if self.until_samples is not None:
            until.append(math.ceil((self.until_samples - self.samples) / batch))
        if self.checkpoint_steps:
            until.append(self.checkpoint_steps - self.step % self.checkpoint_steps)
        if self.kind.replicates_experts:
            until.append(self.rebalance_steps - self.step % self.rebalance_steps)
        due_s = min(self.due_s, self.next_join_s[self.next_event] + self.clock.join_wait_s)
        until.append(math.inf if due_s == math.inf else max(1, math.ceil((due_s - self.now) / step_s)))
        left = (self.end_s - self.now) // step_s + 1  # as many as end the run
        self._advance("training", steps=int(min(*until, left)), step_s=step_s)
        if self.until_samples is not None and self.samples >= self.until_samples:
            raise _Ended

    def _save(self) -> None:
        self._advance("checkpointing", self.clock.checkpoint_s(self.work, len(self.used)))
        self.saved_step, self.saved_samples = self.step, self.samples

    def _rebalance(self) -> None:
        layout = self.loads.of(self.kind, len(self.used), self.loads.record(self.step))
        assert layout is not None
        if layout is not self.layout:
            chosen_N, states_N = layouts.assign_rows(self.held_NW, layout)
            if states_N.any():
                self._advance("rebalancing", self.clock.rebalance_s(self.work, self._scaled_to_model(states_N.max())))
            self._use([self.used[row] for row in chosen_N.tolist()], layout)
            self.rebalances += 1
            self.moved_states += round(self._scaled_to_model(states_N.sum()))
        self.rebalanced_step = self.step

    def _admit_waiting(self) -> None:
        """Waiting nodes become idle, and used where that makes more of them."""
        self.idle |= self.waiting
        self.waiting, self.due_s = {}, math.inf
        layout = self.loads.of(self.kind, len(self.used) + len(self.idle), self.loads.record(self.step))
        if layout is None or layout.num_nodes == len(self.used):
            return
        if self.kind.recovers_in_place:
            self._reconfigure(layout, failed=False)
        else:
            self._save()
            self._restart(failed=False)

    def _recovering(self, act: Callable[[], None]) -> None:
        """Do it; where a member fails meanwhile, go on in place if that is possible, else restart."""
        while True:
            try:
                return act()
            except _Interrupted:
                act = self._recover

    def _recover(self) -> None:
        layout = None
        if self.kind.recovers_in_place and self.used:
            layout = self.loads.of(self.kind, len(self.used) + len(self.idle), self.loads.record(self.step))
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
        self.reconfigurations += 1
        self.moved_states += round(self._scaled_to_model(states_N.sum()))

    def _restart(self, failed: bool) -> None:
        """From the last checkpoint, with all nodes that there are once as many are there as are needed."""
        self.lost_steps += self.step - self.saved_step
        self.lost_samples += self.samples - self.saved_samples
        self.step, self.samples = self.saved_step, self.saved_samples
        self.idle |= dict.fromkeys(self.used) | self.waiting
        self.used, self.held_NW = [], self.held_NW[:0]
        self.waiting, self.due_s, self.members = {}, math.inf, frozenset()
        while (layout := self.loads.of(self.kind, len(self.idle), self.loads.record(self.step))) is None:
            self._stall()
        chosen = sorted(self.idle)[: layout.num_nodes]
        self.members = frozenset(chosen)
        seconds = self.clock.restart_s(self.work, layout) + (self.clock.detection_s if failed else 0)
        self._advance("restarting", seconds)
        self._use(chosen, layout)
        self.restarts += 1

    def _stall(self) -> None:
        """Until nodes have joined, and those that do meanwhile."""
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

    def _scaled_to_model(self, states: float) -> float:
        """Of all layers of the model, where the loads are of fewer."""
        return float(states * self.work.num_layers / self.loads.loads.counts_ILE.shape[1])

    # Time and events

    def _advance(self, state: Phase, seconds: float = 0.0, *, steps: int = 0, step_s: float = 0.0) -> None:
        """Let time pass: so many seconds, or so many steps.

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
        """The next event. Returns whether a member fails."""
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
        self.now, self.step, self.samples = end_s, self.step + steps, self.samples + segment.samples
        if segment.seconds == 0 and not steps:
            return
        if self.segments:  # what only goes on is one segment
            last = self.segments[-1]
            if replace(last, start_s=segment.start_s, end_s=end_s, samples=segment.samples) == segment:
                segment = replace(segment, start_s=last.start_s, samples=last.samples + segment.samples)
                self.segments.pop()
        self.segments.append(segment)
