"""The evaluation under failures, simulated: controlled failures, the spot trace, larger clusters."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from artifact.elastic_moe import (
    PHASES,
    PRESETS,
    SIMULATED_SYSTEMS,
    TESTBEDS,
    WORKLOADS,
    FailureEvent,
    FailureTrace,
    LayoutCache,
    SimulationResult,
    default_loads,
    gpt_workload,
    periodic_failures,
    poisson_failures,
    simulate,
    spot_failures,
)
from artifact.elastic_moe.simulation.layouts import GroupLayout, replicated_layout

NODES = 10
GPUS_A_NODE = 8
EVERY_MINUTES = {5.0: {"lazarus": None, "ds": 50, "ds-ft": 250}, 40.0: {"lazarus": None, "ds": 200, "ds-ft": 1000}}
"""Steps between checkpoints, by the interval of the failures (Lazarus, section 6.2)."""


def controlled_failures(
    *, models: Sequence[str], intervals_min: Sequence[float], seeds: int, idle_first: bool = False
) -> pd.DataFrame:
    """Ten nodes, of which one fails each so many minutes until half are left; six intervals in all (figures 6, 7).

    idle_first: the node of the highest number fails, which is one that DS leaves idle where there is one (figure 14)
    One row per (model, interval_min, system, seed).
    """
    rows = []
    for model in models:
        layouts = LayoutCache(WORKLOADS[model], default_loads(WORKLOADS[model]))
        for interval in intervals_min:
            for seed in range(seeds):
                trace = _last_first(interval, NODES) if idle_first else periodic_failures(interval, NODES, seed=seed)
                for system, steps in EVERY_MINUTES[interval].items():
                    result = simulate(
                        model, system, trace, "paper-gpu", 6 * interval, loads=layouts, checkpoint_steps=steps
                    )
                    rows.append(_row(result, loads=layouts.loads.name, model=model, interval_min=interval, seed=seed))
    return pd.DataFrame(rows)


def without_failures(*, models: Sequence[str], minutes: float) -> pd.DataFrame:
    """The same systems while nothing fails and nothing is saved. One row per (model, system)."""
    rows = []
    for model in models:
        layouts, trace = (
            LayoutCache(WORKLOADS[model], default_loads(WORKLOADS[model])),
            FailureTrace("none", tuple(range(NODES)), ()),
        )
        for system in ("lazarus", "ds"):
            result = simulate(model, system, trace, "paper-gpu", minutes, loads=layouts, checkpoint_steps=None)
            training = sum(segment.samples for segment in result.segments) / result.seconds["training"]
            row = _row(result, loads=layouts.loads.name, model=model)
            rows.append(row | {"training_samples_per_s": training})
    return pd.DataFrame(rows)


def timeline(
    *,
    models: Sequence[str],
    interval_min: float | None,
    minutes: float | None = None,
    stride: int = 1,
    window_s: float = 10.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Samples a second in each window of one run of each system.

    interval_min: as in `controlled_failures`; None for the spot trace, for so many minutes, with this stride
    One row per (model, system, minute): the window's middle, the nodes at its start.
    """
    rows = []
    for model in models:
        layouts = LayoutCache(WORKLOADS[model], default_loads(WORKLOADS[model]))
        for system in ("lazarus", "ds", "ds-ft"):
            if interval_min is None:
                assert minutes is not None
                trace, total_min = spot_failures(cap=NODES, minutes=minutes, stride=stride), minutes
                steps: int | None = SIMULATED_SYSTEMS[system].checkpoint_steps
            else:
                trace, total_min = periodic_failures(interval_min, NODES, seed=seed), 6 * interval_min
                steps = EVERY_MINUTES[interval_min][system]
            result = simulate(model, system, trace, "paper-gpu", total_min, loads=layouts, checkpoint_steps=steps)
            for start_s, samples in _windows(result, window_s):
                nodes = len(trace.nodes_at(start_s))
                row = {"trace": trace.name, "model": model, "system": SIMULATED_SYSTEMS[system].label}
                minute = (start_s + window_s / 2) / 60
                rows.append({**row, "minute": minute, "samples_per_s": samples / window_s, "nodes": nodes})
    return pd.DataFrame(rows)


def load_ratio(*, ratios: Sequence[float], num_nodes: int = NODES) -> pd.DataFrame:
    """A step of one layer of 8 experts, dim 1024, one of which is so many times as hot as the others (figure 10a).

    The embedding is left out. Groups of 2 nodes. layer_ms leaves out the gradients' reduction.
    One row per (ratio, system).
    """
    work = gpt_workload(replace(PRESETS["GPT-M"], name="one layer", num_layers=1, num_experts=8, vocabulary=0))
    testbed = TESTBEDS["paper-gpu"]
    rows = []
    for ratio in ratios:
        loads_LE = np.array([[round(1000 * ratio)] + 7 * [1000]])
        lazarus = replicated_layout(loads_LE, num_nodes, work.slots, work.min_replicas)
        for system, layout in (("Lazarus", lazarus), ("DS", GroupLayout(num_nodes // 2, 2, 1, 8))):
            parts = testbed.parts(work, layout, loads_LE / loads_LE.sum())
            row = {"ratio": ratio, "system": system, "samples_per_s": work.batch(num_nodes) / parts.total_s}
            rows.append(row | {"layer_ms": 1000 * (parts.compute_s + parts.exchange_s)})
    return pd.DataFrame(rows)


def spot_trace(*, models: Sequence[str], minutes: Sequence[float], strides: Sequence[int]) -> pd.DataFrame:
    """The trace p3 at a cap of ten nodes, each system with its checkpoints of section 6.3 (figures 9 and 11).

    strides: see `spot_failures`; 1 is the trace as it is
    One row per (trace, model, minutes, stride, system).
    """
    rows = []
    for model in models:
        layouts = LayoutCache(WORKLOADS[model], default_loads(WORKLOADS[model]))
        for length in minutes:
            for stride in strides:
                trace = spot_failures(cap=NODES, minutes=length, stride=stride)
                lost = [len(event.nodes) for event in trace.events if event.kind == "fail"]
                for system in ("lazarus", "ds", "ds-ft"):
                    result = simulate(model, system, trace, "paper-gpu", length, loads=layouts)
                    row = {"trace": trace.name, "loads": layouts.loads.name, "model": model, "minutes": length}
                    row |= {"stride": stride, "losses": len(lost), "most_lost": max(lost, default=0)}
                    rows.append(_row(result, **row))
    return pd.DataFrame(rows)


def sixteen_nodes(*, models: Sequence[str], seeds: int, micro_batches: int = 20) -> pd.DataFrame:
    """16 g5.2xlarge, gradients accumulated, a node fails each 5 minutes until half are left, 45 minutes (figure 12).

    Checkpoints and rebalances come after as many micro-batches as elsewhere, so that their steps are divided.
    One row per (model, system, seed).
    """
    rows = []
    for model in models:
        work = gpt_workload(PRESETS[model], micro_batches=micro_batches)
        layouts = LayoutCache(work, default_loads(work))
        for seed in range(seeds):
            trace = periodic_failures(5, 16, seed=seed)
            for system, steps in {"lazarus": None, "tutel": 50, "tutel-ft": 250}.items():
                result = simulate(
                    work,
                    system,
                    trace,
                    "a10g",
                    45,
                    loads=layouts,
                    checkpoint_steps=steps and math.ceil(steps / micro_batches),
                    rebalance_steps=math.ceil(200 / micro_batches),
                )
                rows.append(_row(result, loads=layouts.loads.name, model=model, seed=seed))
    return pd.DataFrame(rows)


def deepseek_v3(
    *, cases: Sequence[tuple[int, float]], trials: int, samples: int, most_hours: float = 400
) -> pd.DataFrame:
    """DeepSeek-V3 on nodes of 8 H200, each of which fails within an hour with probability p (figure 13).

    A node that fails comes back an hour later. DS checkpoints as often as pays (Young: the square root of twice the
    time of a checkpoint times the time between failures), the others, as in the smaller runs, a fifth as often.
    cases: (GPUs, p); a run ends after so many samples, or at most_hours
    One row per (gpus, p, trial, system); hours are those that so many samples take at the run's mean throughput.
    """
    work, testbed = WORKLOADS["DeepSeek-V3"], TESTBEDS["h200-deepseek-v3"]
    layouts = LayoutCache(work, default_loads(work))
    rows = []
    for gpus, chance in cases:
        nodes = gpus // GPUS_A_NODE
        rate = -math.log1p(-chance)
        pays_s = math.sqrt(2 * testbed.checkpoint_s(work, nodes) * 3600 / (nodes * rate))
        for trial in range(trials):
            trace = poisson_failures(rate, nodes, most_hours, repair_hours=1, seed=trial)
            for system, factor in (("lazarus", 5), ("ds", 1), ("ds-ft", 5)):
                layout = layouts.of(SIMULATED_SYSTEMS[system], nodes, 0)
                assert layout is not None
                step_s = testbed.step_s(work, system, layout, layouts.share_LE(0))
                result = simulate(
                    work,
                    system,
                    trace,
                    testbed,
                    60 * most_hours,
                    loads=layouts,
                    checkpoint_steps=max(1, round(factor * pays_s / step_s)),
                    until_samples=samples,
                )
                hours = samples / result.samples_per_s / 3600 if result.samples else math.inf
                rows.append(_row(result, gpus=gpus, p=chance, trial=trial) | {"hours": hours})
    return pd.DataFrame(rows)


def large_cluster(*, cases: Sequence[tuple[int, float]], rate_per_hour: float, seed: int = 0) -> pd.DataFrame:
    """How long the simulator itself takes: GPT-L, nodes that fail at a rate and come back after an hour.

    A store for checkpoints grows with the cluster: 1 Gb/s a node. cases: (nodes, hours)
    One row per (nodes, hours, system), `seconds` being wall time.
    """
    rows = []
    for nodes, hours in cases:
        testbed = replace(TESTBEDS["paper-gpu"], storage_gbps=nodes)
        trace = poisson_failures(rate_per_hour, nodes, hours, repair_hours=1, seed=seed)
        for system in ("lazarus", "ds", "ds-ft"):
            start = time.perf_counter()
            result = simulate("GPT-L", system, trace, testbed, 60 * hours)
            seconds = time.perf_counter() - start
            rows.append(_row(result, nodes=nodes, hours=hours, events=len(trace.events)) | {"seconds": seconds})
    return pd.DataFrame(rows)


def _row(result: SimulationResult, **dimensions: Any) -> dict[str, Any]:
    spent: Mapping[str, float] = {f"{state}_s": result.seconds[state] for state in PHASES}
    return {
        **dimensions,
        "system": SIMULATED_SYSTEMS[result.system].label,
        "samples": result.samples,
        "samples_per_s": result.samples_per_s,
        "steps": result.steps,
        "lost_steps": result.lost_steps,
        "restarts": result.restarts,
        "reconfigurations": result.reconfigurations,
        **spent,
    }


def _windows(result: SimulationResult, window_s: float) -> list[tuple[float, float]]:
    """Start of each whole window, and the samples done in it: those of a segment are spread evenly over it."""
    edges = [0.0] + [segment.end_s for segment in result.segments]
    done = np.cumsum([0] + [segment.samples for segment in result.segments])
    starts = np.arange(0, result.total_s - window_s + 1e-6, window_s)
    return list(zip(starts.tolist(), np.diff(np.interp([*starts, starts[-1] + window_s], edges, done)), strict=True))


def _last_first(interval_min: float, num_nodes: int) -> FailureTrace:
    """As `every`, the highest number first: groups are formed of the lowest ones, so that idle nodes come first."""
    fallen = range(num_nodes - 1, (num_nodes + 1) // 2 - 1, -1)
    events = [FailureEvent(60 * interval_min * turn, "fail", (node,)) for turn, node in enumerate(fallen, start=1)]
    return FailureTrace("idle first", tuple(range(num_nodes)), tuple(events))
