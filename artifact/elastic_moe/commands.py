"""The command line of elastic MoE training: `python -m artifact place`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from artifact.elastic_moe.placement import METHODS

Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    app.command(name="place")(place_experts)


def place_experts(
    nodes: Annotated[int, typer.Option(help="number of nodes")],
    slots: Annotated[str, typer.Option(help="experts that a node holds: one number, or one a node (4,4,2)")],
    replicas: Annotated[str | None, typer.Option(help="copies of each expert (2,2,3)")] = None,
    loads: Annotated[str | None, typer.Option(help="load of each expert, to allocate replicas first")] = None,
    min_replicas: Annotated[int, typer.Option(help="f, with --loads")] = 1,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "mro",
    failures: Annotated[int | None, typer.Option(help="what --method best maximises: recovery from so many")] = None,
    failure_probability: Annotated[float, typer.Option(help="or else: from failures of this chance a node")] = 0.1,
    seed: Annotated[int, typer.Option(help="of --method random and best")] = 0,
    as_json: Json = False,
) -> None:
    """Place the replicas of one layer's experts on nodes, and say from which failures they recover."""
    from artifact.elastic_moe.allocation import allocate
    from artifact.elastic_moe.placement import place
    from artifact.elastic_moe.recovery import recovery

    if (replicas is None) == (loads is None):
        raise ValueError("give either --replicas or --loads, got " + ("neither" if loads is None else "both"))
    if nodes < 1:
        raise ValueError(f"--nodes must be at least 1, got {nodes}")
    if not 0 <= failure_probability <= 1:
        raise ValueError(f"--failure-probability must be in [0, 1], got {failure_probability}")
    if failures is not None and not 0 <= failures <= nodes:
        raise ValueError(f"--failures must be in [0, {nodes}], the number of nodes, got {failures}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    each = _numbers("--slots", slots, int)
    if len(each) not in (1, nodes):
        raise ValueError(f"--slots must be one number or one for each of {nodes} nodes, got {len(each)}")
    if min(each) < 1:
        raise ValueError(f"--slots must be at least 1 on every node, got {min(each)}")
    slots_N = each * nodes if len(each) == 1 else each
    load_E = None if loads is None else _numbers("--loads", loads, _exact)
    copies_E = (
        _numbers("--replicas", str(replicas), int) if load_E is None else allocate(load_E, sum(slots_N), min_replicas)
    )
    if method == "best":
        place(method, [1, 1], [1, 1])  # what is compiled at its first use does not count
    start = time.perf_counter()
    placement = place(
        method,
        copies_E,
        slots_N,
        loads=load_E,
        failures=failures,
        failure_probability=failure_probability,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    survival = recovery(placement)
    if as_json:
        print(
            json.dumps(
                {
                    "replicas": copies_E,
                    "placement": placement.nodes,
                    "recovery_probability": survival.probability,
                    "exact": survival.exact,
                    "seconds": seconds,
                    "max_load_ratio": placement.max_load_ratio(load_E),
                }
            )
        )
        return
    print(f"replicas  {' '.join(map(str, copies_E))}")
    for number, held in enumerate(placement.nodes):
        print(f"node {number:<4} {' '.join(map(str, held))}")
    print(f"\nload      {placement.max_load_ratio(load_E):.4f}, largest over mean of the nodes")
    print(f"seconds   {seconds:.6f}")
    print("\nfailures  recovery probability" + ("" if survival.exact else ", sampled (95 % interval)"))
    for k, (chance, half) in enumerate(zip(survival.probability, survival.half_width, strict=True)):
        print(f"{k:<9} {chance:.6f}" + ("" if survival.exact else f" +- {half:.6f}"))


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers with commas between them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _exact(text: str) -> int | float:
    """An integer of any size as it is."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
