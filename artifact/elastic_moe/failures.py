"""Nodes that fail and join over time: availability traces and failure processes, as one type of event.

Nodes are numbers. A node that returns, or takes the place of another one, joins without any state.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from artifact import datasets

SPOT_TRACES = {"p3": "spot-p3"}
"""Names of spot traces, and of their data sets."""
INFINITEHBD_NODES = 400
_KNOWN = "every:<minutes>min, trace:p3, trace:infinitehbd or rate:<probability in an hour>"

_Change = tuple[int, Literal["fail", "join"], int]  # minute, kind, node


@dataclass(frozen=True)
class FailureEvent:
    """Nodes that fail, or join, at the same time."""

    time_s: float
    kind: Literal["fail", "join"]
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class FailureTrace:
    """The nodes present at time 0, and all events after it.

    Raises: ValueError if times decrease, a node fails that is absent, or one joins that is present
    """

    name: str  # prefixed "synthetic-" if a generator replaced data that were not available
    initial: tuple[int, ...]
    events: tuple[FailureEvent, ...]

    def __post_init__(self) -> None:
        present, time_s = set(self.initial), 0.0
        for event in self.events:
            if event.time_s < time_s:
                raise ValueError(f"events must be in order of time, got {event.time_s} s after {time_s} s")
            time_s, fails = event.time_s, event.kind == "fail"
            if wrong := [node for node in event.nodes if (node in present) != fails]:
                rule = "present" if fails else "absent"
                raise ValueError(f"nodes that {event.kind} must be {rule}, got {wrong} at {time_s} s")
            (present.difference_update if fails else present.update)(event.nodes)

    def nodes_at(self, time_s: float) -> tuple[int, ...]:
        """Nodes present after all events up to and including `time_s`, ascending."""
        present = set(self.initial)
        for event in self.events:
            if event.time_s <= time_s:
                (present.difference_update if event.kind == "fail" else present.update)(event.nodes)
        return tuple(sorted(present))


def spot_failures(
    name: str = "p3",
    *,
    cap: int | None = None,
    minutes: float | None = None,
    start_minute: float = 0,
    stride: int = 1,
) -> FailureTrace:
    """Preemptions and returns of spot instances. Lazarus replays 80 minutes of p3 with a cap of 10 nodes (figure 9).

    At most `cap` nodes are used, in the order of their arrival; the others wait. If a used node is preempted, the node
    that has waited longest joins in the same minute. The changes of one minute are one event per kind, failures first.
    Node numbers are those of the file, from 0.
    Lazarus loses four nodes at once at minute 34. The trace loses four too, but of its 32 nodes: only one of them is
    among the first ten. With stride 2 all four are in use; no other rule was found that reproduces the paper's loss.

    stride:  keep every stride-th machine of the file by number, as a smaller market would
    minutes: length of the trace, None for all; start_minute: time 0 in the file, after the changes of that minute
    Raises:  ValueError if the name is unknown, cap < 1, minutes <= 0, start_minute < 0 or stride < 1
    """
    if name not in SPOT_TRACES:
        raise ValueError(f"spot trace must be one of {', '.join(SPOT_TRACES)}, got {name!r}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    file = datasets.path_or_none(SPOT_TRACES[name])
    if file is None:
        kept = (change for change in _spot_like() if change[2] % stride == 0)
        return _used(f"synthetic-{name}", kept, cap, minutes, start_minute)
    with file.open(encoding="utf-8") as stream:
        changes: list[_Change] = [
            (int(ms) // 60_000, "join" if kind == "add" else "fail", int(node.removeprefix("node")) - 1)
            for ms, kind, node in csv.reader(stream)
        ]
    kept = (change for change in changes if change[2] % stride == 0)
    return _used(name, kept, cap, minutes, start_minute)


def infinitehbd_failures(
    *, cap: int | None = None, minutes: float | None = None, start_minute: float = 0
) -> FailureTrace:
    """Faults of 400 servers over 348 days: a server fails when a fault starts and joins when its last fault ends.

    Servers are numbered in the order of their first fault; 169 never have one. The cap, the grouping by minutes and
    the errors are those of `spot_failures`.
    """
    changes: list[_Change] = [(0, "join", node) for node in range(INFINITEHBD_NODES)]
    file = datasets.path_or_none("infinitehbd")
    if file is None:
        hours = 348 * 24
        made = poisson_failures(584 / INFINITEHBD_NODES / hours, INFINITEHBD_NODES, hours, repair_hours=133, seed=0)
        changes += [(int(event.time_s // 60), event.kind, node) for event in made.events for node in event.nodes]
        return _used("synthetic-infinitehbd", changes, cap, minutes, start_minute)
    number_of: dict[str, int] = {}
    faults: Counter[int] = Counter()  # that a server has now
    for entry in json.loads(file.read_text(encoding="utf-8")):
        node, minute = number_of.setdefault(entry["node_id"], len(number_of)), int(entry["event_time"] * 24 * 60)
        starts = entry["event_type"] == "fault_start"
        if faults[node] == (0 if starts else 1):
            changes.append((minute, "fail" if starts else "join", node))
        faults[node] += 1 if starts else -1
    return _used("infinitehbd", changes, cap, minutes, start_minute)


def periodic_failures(minutes: float, num_nodes: int, until_nodes: int | None = None, seed: int = 0) -> FailureTrace:
    """One random node fails every `minutes` minutes until `until_nodes` are left, by default half (Lazarus, figure 6).

    Raises: ValueError if minutes <= 0, num_nodes < 1, or until_nodes is not in [0, num_nodes]
    """
    left = (num_nodes + 1) // 2 if until_nodes is None else until_nodes
    _check(minutes, num_nodes)
    if not 0 <= left <= num_nodes:
        raise ValueError(f"until_nodes must be in [0, {num_nodes}], got {until_nodes}")
    order = np.random.default_rng(seed).permutation(num_nodes)[: num_nodes - left].tolist()
    events = (FailureEvent(60.0 * minutes * step, "fail", (node,)) for step, node in enumerate(order, start=1))
    return FailureTrace(f"every:{minutes:g}min", tuple(range(num_nodes)), tuple(events))


def poisson_failures(
    rate_per_node_hour: float, num_nodes: int, hours: float, repair_hours: float | None = None, seed: int = 0
) -> FailureTrace:
    """Each node fails at a constant rate, independently of the others, and joins `repair_hours` later (None: never).

    Raises: ValueError if the rate is negative, num_nodes < 1, hours <= 0 or repair_hours <= 0
    """
    _check(hours * 60, num_nodes)
    if rate_per_node_hour < 0:
        raise ValueError(f"rate_per_node_hour must not be negative, got {rate_per_node_hour}")
    if repair_hours is not None and repair_hours <= 0:
        raise ValueError(f"repair_hours must be positive, got {repair_hours}")
    events: list[FailureEvent] = []
    for node in range(num_nodes if rate_per_node_hour else 0):
        rng, now = np.random.default_rng([seed, node]), 0.0
        while (now := now + rng.exponential(1 / rate_per_node_hour)) < hours:
            events.append(FailureEvent(3600 * now, "fail", (node,)))
            now += math.inf if repair_hours is None else repair_hours
            if now < hours:
                events.append(FailureEvent(3600 * now, "join", (node,)))
    events.sort(key=lambda event: event.time_s)
    return FailureTrace(f"poisson:{rate_per_node_hour:g}/h", tuple(range(num_nodes)), tuple(events))


def parse_failures(text: str, num_nodes: int, minutes: float, seed: int = 0) -> FailureTrace:
    """The failures that a text of the command line names, over the first `minutes` minutes.

    every:5min  one random node fails every 5 minutes until half are left
    trace:p3    the trace from its start, with at most num_nodes nodes in use; also trace:infinitehbd
    rate:0.05   a node fails within the next hour with probability 0.05 and does not return. Lazarus's p (figure 13)
                means the same in Bamboo's simulator, which it uses; time is continuous here, so that the rate per hour
                is -ln(1 - p)

    Raises: ValueError for any other text, naming it, if num_nodes < 1 or minutes <= 0
    """
    _check(minutes, num_nodes)
    kind, _, value = text.partition(":")
    if text == "trace:infinitehbd":
        return infinitehbd_failures(cap=num_nodes, minutes=minutes)
    if kind == "trace" and value in SPOT_TRACES:
        return spot_failures(value, cap=num_nodes, minutes=minutes)
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(min)?", value)
    amount, in_minutes = (float(number[1]), bool(number[2])) if number else (0.0, False)
    if kind == "every" and in_minutes and amount > 0:
        made = periodic_failures(amount, num_nodes, seed=seed)
        return FailureTrace(
            made.name, made.initial, tuple(event for event in made.events if event.time_s < 60 * minutes)
        )
    if kind == "rate" and number and not in_minutes and amount < 1:
        made = poisson_failures(-math.log1p(-amount), num_nodes, minutes / 60, seed=seed)
        return FailureTrace(text, made.initial, made.events)
    raise ValueError(f"failures must be {_KNOWN} (below 1), got {text!r}")


def _check(minutes: float, num_nodes: int) -> None:
    if not minutes > 0:
        raise ValueError(f"time must be positive, got {minutes} minutes")
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, got {num_nodes}")


def _used(
    name: str, changes: Iterable[_Change], cap: int | None, minutes: float | None, start_minute: float
) -> FailureTrace:
    """The trace of the used nodes, see `spot_failures`, from all changes in order of time."""
    if cap is not None and cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    if start_minute < 0:
        raise ValueError(f"start_minute must not be negative, got {start_minute}")
    end = math.inf if minutes is None else start_minute + minutes
    waiting: dict[int, None] = {}  # in the order of their arrival
    used: dict[int, None] = {}
    initial: tuple[int, ...] | None = None
    events: list[FailureEvent] = []

    def fill() -> tuple[int, ...]:
        taken = list(waiting)[: None if cap is None else cap - len(used)]
        for node in taken:
            used[node] = waiting.pop(node)
        return tuple(taken)

    for minute, group in groupby(changes, key=lambda change: change[0]):
        if minute >= end:
            break
        if initial is None and minute > start_minute:
            initial = fill()
        failed = []
        for _, kind, node in group:
            if kind == "join":
                waiting[node] = None
            elif node in used:
                failed.append(node)
                del used[node]
            else:
                del waiting[node]
        if initial is None:
            continue
        time_s = 60.0 * (minute - start_minute)
        if failed:
            events.append(FailureEvent(time_s, "fail", tuple(failed)))
        if joined := fill():
            events.append(FailureEvent(time_s, "join", joined))
    return FailureTrace(name, fill() if initial is None else initial, tuple(events))


def _spot_like() -> Iterator[_Change]:
    """Changes like those of p3: 11.4 hours, 18 nodes at first, at most 32, up to 6 lost or added in a minute."""
    rng = np.random.default_rng(0)
    present = list(range(18))
    new = len(present)
    yield from ((0, "join", node) for node in present)
    for minute in range(1, 684):
        chance, size = rng.random(), min(int(rng.geometric(0.4)), 6)
        if chance < 0.1:
            for _ in range(min(size, len(present))):
                yield minute, "fail", present.pop(int(rng.integers(len(present))))
        elif chance < 0.25:
            for _ in range(min(size, 32 - len(present))):
                present.append(new)
                yield minute, "join", new
                new += 1
