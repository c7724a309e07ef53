"""What is traded for what: racks that fail as one, balance against survival, rebalancing against migration.

Shape legend: I = recorded iterations, L = layers, N = nodes, E = experts, K = numbers of failed nodes
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom, poisson

from artifact.elastic_moe import (
    PRESETS,
    LoadTrace,
    Placement,
    allocate,
    assign_nodes,
    domain_recovery,
    failures,
    holdings_of,
    place,
    recovery,
    routing,
    transfers,
)
from figures.lazarus.alignment import align
from figures.lazarus.balance import allocate_balanced

LABELS = {"mro": "MRO", "eplb": "EPLB"}  # of placements; the others are labelled by their names
SYSTEMS: dict[str, tuple[Callable[[Sequence[int], int, int], list[int]], str]] = {
    "Lazarus": (allocate, "mro"),
    "best": (allocate, "best"),
    "spread": (allocate, "spread"),
    "EPLB": (allocate_balanced, "eplb"),
    "EPLB + best": (allocate_balanced, "best"),
}
"""How replicas are counted and placed: by equation 1 or for balance alone; EPLB packs for balance, too."""

STEP = 201  # the iteration at which the paper's replicas of step 200 are worked out
# hidden size times that of an expert, three matrices
EXPERT_PARAMETERS = {"DeepSeek-V2-Lite": 3 * 2048 * 1408, "OLMoE": 3 * 2048 * 1024}
P3_HOURS, INFINITEHBD_HOURS = 684 / 60, 348.0 * 24


def rack_failures(
    *, clusters: Sequence[tuple[str, int, int, int]], methods: Sequence[str], min_replicas: int = 2, seeds: int = 10
) -> pd.DataFrame:
    """Recovery when whole racks fail, their nodes being adjacent in the placement's order or strided.

    clusters: (model, nodes, slots, nodes of a rack); seeds: of the random placement
    One row per (model, nodes, layers, system, seed, racks, failed_racks): `scattered` is the recovery when as many
    nodes fail, anywhere.
    """
    rows = []
    for model, num_nodes, slots, rack_nodes in clusters:
        loads = loads_of(model)
        num_racks = num_nodes // rack_nodes
        racks = {
            "adjacent": [range(start, start + rack_nodes) for start in range(0, num_nodes, rack_nodes)],
            "strided": [range(start, num_nodes, num_racks) for start in range(num_racks)],
        }
        for num_layers, method in ((num, method) for num in (1, len(loads.counts_ILE[0])) for method in methods):
            for seed in range(seeds if method == "random" else 1):
                layers = [
                    place(
                        method, allocate(load, num_nodes * slots, min_replicas), [slots] * num_nodes, loads=load, seed=s
                    )
                    for s, load in enumerate(loads.counts_ILE[0, :num_layers].tolist(), start=1000 * seed)
                ]
                scattered = recovery(layers).probability[::rack_nodes]
                for name, domains in racks.items():
                    for failed, probability in enumerate(domain_recovery(layers, domains)):
                        row = {"loads": loads.name, "model": model, "nodes": num_nodes, "layers": num_layers}
                        row |= {
                            "system": LABELS.get(method, method),
                            "seed": seed,
                            "racks": name,
                            "failed_racks": failed,
                        }
                        rows.append({**row, "recovery": probability, "scattered": scattered[failed]})
    return pd.DataFrame(rows)


def losses_at_once(*, caps: Sequence[int | None] = (None, 10)) -> pd.DataFrame:
    """How many nodes the traces lose in one minute, beside what as many losses would give if they came independently.

    caps: of the spot trace p3, all of whose nodes are used without one
    One row per (trace, nodes_lost).
    """
    kept = {"InfiniteHBD, 400 servers": (failures.infinitehbd_failures(), INFINITEHBD_HOURS)}
    for cap in caps:
        label = "p3, all instances" if cap is None else f"p3, {cap} in use"
        kept[label] = (failures.spot_failures(cap=cap), P3_HOURS)
    rows = []
    for label, (trace, hours) in kept.items():
        instants = _instants(trace)
        minutes, losses = 60 * hours, sum(size * count for size, count in instants.items())
        for size in range(1, max(instants) + 1):
            row = {"trace": trace.name, "label": label, "nodes_lost": size, "instants": instants[size]}
            rows.append({**row, "independent": minutes * poisson.pmf(size, losses / minutes)})
    return pd.DataFrame(rows)


def choosing_f(
    *,
    clusters: Sequence[tuple[str, int, int]],
    systems: Sequence[str],
    min_replicas: Sequence[int],
    rates_per_hour: Sequence[float],
    window_s: float = 60.0,
) -> pd.DataFrame:
    """Balance and survival of whole models, all layers placed and aligned, by f; f above what fits is left out.

    Nodes that fail before the last failure is dealt with fail at once. Processes: `independent`, each node at a rate,
    what fails within `window_s` being at once; `p3`, the spot trace at a cap of as many nodes; `infinitehbd`, the
    cluster being so many of its 400 servers drawn at random.
    clusters: (model, nodes, slots)
    One row per (model, nodes, slots, system, min_replicas, process, rate_per_hour): loss is the probability that an
    expert is lost at one time at which nodes may fail, and hours the mean time until that.
    """
    rows = []
    for model, num_nodes, slots in clusters:
        loads = loads_of(model)
        loads_LE = loads.counts_ILE[0].tolist()
        losses: dict[tuple[Placement, ...], NDArray[np.float64]] = {}  # systems often place alike
        for floor in min_replicas:
            if floor * len(loads_LE[0]) > num_nodes * slots:
                continue
            for system in systems:
                layers = tuple(_placed(system, load, num_nodes, slots, floor) for load in loads_LE)
                ratio = np.mean([layer.max_load_ratio(load) for layer, load in zip(layers, loads_LE, strict=True)])
                if layers not in losses:
                    losses[layers] = _loss_by_failures(align(layers, failure_probability=0.01))
                loss_K = losses[layers]
                for process, rate, per_hour, chance_K in _processes(num_nodes, rates_per_hour, window_s):
                    loss = math.fsum(chance_K * loss_K)
                    row = {"loads": loads.name, "model": model, "nodes": num_nodes, "slots": slots, "system": system}
                    row |= {"min_replicas": floor, "process": process, "rate_per_hour": rate, "max_load_ratio": ratio}
                    hours = 1 / (per_hour * loss) if loss else math.inf
                    rows.append({**row, "survives_one": 1 - loss_K[1], "loss": loss, "hours": hours})
    return pd.DataFrame(rows)


def drift(
    *, traces: Mapping[str, Sequence[float]], systems: Sequence[str] = ("Lazarus", "EPLB"), failed: int = 2
) -> pd.DataFrame:
    """Balance and recovery of a model that is placed anew at intervals, by the loads at that time.

    traces: name -> intervals in iterations, math.inf being once only
    One row per (trace, system, interval, iteration): `own` values are those of a placement by the iteration's loads,
    ratios are means over the layers, and recovery is that of the model after so many failures.
    """
    rows = []
    for name, intervals in traces.items():
        job = job_of(name)
        for system in systems:
            own = [job.planned(system, index) for index in range(len(job.loads.iterations))]
            own_recovery = [recovery(plan.layers).probability[failed] for plan in own]
            for interval in intervals:
                for index, iteration in enumerate(job.loads.iterations):
                    at = job.placed_at(index, interval)
                    row = {"trace": job.loads.name, "name": name, "system": system, "interval": interval}
                    row |= {"iteration": iteration, "max_load_ratio": own[at].ratio(job.loads.counts_ILE[index])}
                    row |= {"own_ratio": own[index].ratio(job.loads.counts_ILE[index]), "recovery": own_recovery[at]}
                    rows.append(row | {"own_recovery": own_recovery[index]})
    return pd.DataFrame(rows)


def rebalances(*, traces: Mapping[str, Sequence[float]], systems: Sequence[str] = ("Lazarus", "EPLB")) -> pd.DataFrame:
    """What each rebalance of the same jobs sends, by how nodes are mapped to those of the new placement.

    Mapping `none`: node i becomes node i of the plan, as by a planner that knows nothing of the last plan. A state is
    that of one expert of one layer with its optimizer.
    One row per (trace, system, interval, iteration, mapping): busiest_gb is the most that one node sends or receives.
    """
    rows = []
    for name, intervals in traces.items():
        job = job_of(name)
        for system, interval in ((system, interval) for system in systems for interval in intervals):
            due = [index for index in range(len(job.loads.iterations)) if job.placed_at(index, interval) == index]
            plans = [job.planned(system, index).layers for index in due]
            nodes = range(job.num_nodes)
            order = {"none": list(nodes), "greedy": list(nodes), "optimal": list(nodes)}
            for before, after, index in zip(plans, plans[1:], due[1:], strict=False):
                for mapping in order:
                    holdings = holdings_of(before, order[mapping])
                    chosen = list(nodes) if mapping == "none" else assign_nodes(holdings, after, mapping)  # type: ignore[arg-type]
                    moved = transfers(holdings, after, chosen, job.state_bytes)
                    ends = [Counter(each.source for each in moved), Counter(each.target for each in moved)]
                    busiest = max(max(end.values(), default=0) for end in ends)
                    order[mapping] = chosen
                    held = sum(len(states) for states in holdings_of(after, chosen))
                    row = {"trace": job.loads.name, "name": name, "system": system, "interval": interval}
                    row |= {"iteration": job.loads.iterations[index], "mapping": mapping, "held_states": held}
                    row |= {"moved_states": len(moved), "moved_gb": len(moved) * job.state_bytes / 1e9}
                    rows.append(row | {"busiest_gb": busiest * job.state_bytes / 1e9})
    return pd.DataFrame(rows)


def loads_of(model: str) -> LoadTrace:
    """One iteration of loads: GPTs at the paper's step 200, the others over all that was recorded.

    Raises: ValueError if the model is unknown
    """
    if model not in PRESETS and model not in EXPERT_PARAMETERS:
        raise ValueError(f"a model must be one of {', '.join([*PRESETS, *EXPERT_PARAMETERS])}, got {model!r}")
    if model in PRESETS:
        trace = routing.top_experts(routing.smartmoe_loads(), 12, PRESETS[model].num_experts, iteration=STEP)
        return LoadTrace(trace.name, trace.at(STEP)[None], (STEP,))
    trace = routing.esft_loads() if model == "DeepSeek-V2-Lite" else routing.olmoe_loads()
    return LoadTrace(trace.name, trace.counts_ILE.sum(axis=0, keepdims=True), (0,))


@dataclass(frozen=True, eq=False)
class Planned:
    """A model's placements, one a layer."""

    layers: list[Placement]

    @cached_property
    def _part_LNE(self) -> NDArray[np.float64]:
        """Of an expert's load that of each node, over what a node has on average."""
        counts_LNE = np.stack([layer.counts_NE for layer in self.layers])
        return counts_LNE * counts_LNE.shape[1] / counts_LNE.sum(axis=1, keepdims=True)

    def ratio(self, loads_LE: NDArray[np.int64]) -> float:
        """Largest over mean load of the nodes, the mean over the layers."""
        share_LE = loads_LE / loads_LE.sum(axis=1, keepdims=True)
        return float((self._part_LNE @ share_LE[:, :, None]).max(axis=1).mean())


@dataclass(frozen=True)
class Job:
    """Loads over time, and the cluster that trains under them, with f = 2."""

    loads: LoadTrace
    num_nodes: int
    slots: int
    state_bytes: int

    def planned(self, system: str, index: int) -> Planned:
        """The placements by the loads of one recorded iteration."""
        floor = 2 if system != "EPLB" else 1
        loads_LE = self.loads.counts_ILE[index].tolist()
        return Planned([_placed(system, load, self.num_nodes, self.slots, floor) for load in loads_LE])

    def placed_at(self, index: int, interval: float) -> int:
        """The recorded iteration whose loads the placement in force at another one is made by."""
        first, now = self.loads.iterations[0], self.loads.iterations[index]
        start = first if math.isinf(interval) else first + (now - first) // interval * interval
        return int(np.searchsorted(self.loads.iterations, start))


def job_of(name: str) -> Job:
    """SmartMoE: GPT-L by its trace; Generated: the same with drifting loads; DeepSeek-V2-Lite: four tasks in turn."""
    if name == "DeepSeek-V2-Lite":
        return Job(routing.esft_loads(), 16, 12, 14 * EXPERT_PARAMETERS[name])
    gpt = PRESETS["GPT-L"]
    recorded = routing.smartmoe_loads()
    if name == "SmartMoE":
        loads = routing.top_experts(recorded, gpt.num_layers, gpt.num_experts)
    elif name == "Generated":
        made = routing.drifting_loads(
            gpt.num_layers, gpt.num_experts, len(recorded.iterations), skew=1, drift=0.1, seed=0
        )
        loads = LoadTrace(made.name, made.counts_ILE, recorded.iterations)
    else:
        raise ValueError(f"a trace must be SmartMoE, Generated or DeepSeek-V2-Lite, got {name!r}")
    return Job(loads, 10, 6, 14 * gpt.expert_parameters)


def _placed(system: str, load: Sequence[int], num_nodes: int, slots: int, min_replicas: int) -> Placement:
    counts, method = SYSTEMS[system]
    replicas = counts(load, num_nodes * slots, min_replicas)
    return place(method, replicas, [slots] * num_nodes, loads=load, failure_probability=0.01)


def _loss_by_failures(layers: Sequence[Placement]) -> NDArray[np.float64]:
    """[N + 1], probability that k failures lose an expert; without the rounding of one less a probability."""
    found = recovery(layers)
    if found.good is None:
        return 1 - np.array(found.probability)
    every = (math.comb(layers[0].num_nodes, failed) for failed in range(layers[0].num_nodes + 1))
    return np.array([(whole - good) / whole for whole, good in zip(every, found.good, strict=True)])


def _processes(
    num_nodes: int, rates_per_hour: Sequence[float], window_s: float
) -> Iterator[tuple[str, float, float, NDArray[np.float64]]]:
    """Name, rate of a node, times an hour at which nodes may fail, and the chances of 0..N failures at such a time."""
    failed_K = np.arange(num_nodes + 1)
    for rate in rates_per_hour:
        chance_K = binom.pmf(failed_K, num_nodes, -math.expm1(-rate * window_s / 3600))
        yield "independent", rate, 3600 / window_s, chance_K
    spot = _instants(failures.spot_failures(cap=num_nodes))
    total = sum(spot.values())
    lost = sum(size * count for size, count in spot.items())
    chance_K = np.array([spot[failed] / total for failed in range(num_nodes + 1)])
    yield "p3", lost / num_nodes / P3_HOURS, total / P3_HOURS, chance_K
    servers = _instants(failures.infinitehbd_failures())
    total = sum(servers.values())
    lost = sum(size * count for size, count in servers.items())
    hit_K = sum(
        count / total * hypergeom.pmf(failed_K, failures.INFINITEHBD_NODES, size, num_nodes)
        for size, count in servers.items()
    )
    yield (
        "infinitehbd",
        lost / failures.INFINITEHBD_NODES / INFINITEHBD_HOURS,
        total / INFINITEHBD_HOURS,
        np.asarray(hit_K),
    )


def _instants(trace: failures.FailureTrace) -> Counter[int]:
    """Minutes in which so many nodes fail."""
    return Counter(len(event.nodes) for event in trace.events if event.kind == "fail")
