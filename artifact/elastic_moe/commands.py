"""The command line of elastic MoE training: `python -m artifact place`, `train-moe` and `simulate-moe`."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.elastic_moe.placement.methods import METHODS

MOST_NODES, MOST_SLOTS = 10_000, 1_000_000  # of a placement: its recovery is counted in minutes
MOST_LOAD = 1e300  # sums of loads are floats
MOST_HEARTBEAT_S = 3600

Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    app.command(name="place")(place_experts)
    app.command(name="train-moe")(train_model)
    app.command(name="simulate-moe")(simulate_training)


def place_experts(
    nodes: Annotated[int, typer.Option(help="number of nodes")],
    slots: Annotated[str, typer.Option(help="experts that a node holds: one number, or one a node (4,4,2)")],
    replicas: Annotated[str | None, typer.Option(help="copies of each expert (2,2,3)")] = None,
    loads: Annotated[str | None, typer.Option(help="load of each expert, to allocate replicas first")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="f, with --loads [default: 1]")] = None,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "mro",
    failures: Annotated[int | None, typer.Option(help="what --method best maximises: recovery from so many")] = None,
    failure_probability: Annotated[float, typer.Option(help="or else: from failures of this chance a node")] = 0.1,
    seed: Annotated[int, typer.Option(help="of --method random and best")] = 0,
    as_json: Json = False,
) -> None:
    """Place the replicas of one layer's experts on nodes, and say from which failures they recover."""
    from artifact.elastic_moe.placement.allocation import allocate
    from artifact.elastic_moe.placement.methods import place
    from artifact.elastic_moe.placement.probability import recovery

    if (replicas is None) == (loads is None):
        raise ValueError("give either --replicas or --loads, got " + ("neither" if loads is None else "both"))
    if replicas is not None and min_replicas is not None:
        raise ValueError(f"--min-replicas goes with --loads, got {min_replicas} and --replicas")
    if nodes < 1:
        raise ValueError(f"--nodes must be at least 1, got {nodes}")
    if nodes > MOST_NODES:
        raise ValueError(f"--nodes must be at most {MOST_NODES}, got {nodes}")
    if not 0 <= failure_probability <= 1:
        raise ValueError(f"--failure-probability must be in [0, 1], got {failure_probability}")
    if failures is not None and not 0 <= failures <= nodes:
        raise ValueError(f"--failures must be in [0, {nodes}], the number of nodes, got {failures}")
    _not_negative(seed)
    each = _numbers("--slots", slots, int)
    if len(each) not in (1, nodes):
        raise ValueError(f"--slots must be one number or one for each of {nodes} nodes, got {len(each)}")
    if min(each) < 1:
        raise ValueError(f"--slots must be at least 1 on every node, got {min(each)}")
    slots_N = each * nodes if len(each) == 1 else each
    if sum(slots_N) > MOST_SLOTS:
        raise ValueError(f"--slots must be at most {MOST_SLOTS} on all nodes together, got {sum(slots_N)}")
    load_E = None if loads is None else _numbers("--loads", loads, _exact)
    if load_E is None:
        copies_E = _numbers("--replicas", str(replicas), int)
    else:
        if beyond := [load for load in load_E if MOST_LOAD < abs(load) < math.inf]:
            raise ValueError(f"--loads must be at most {MOST_LOAD:g}, got {str(beyond[0])[:40]}")
        copies_E = allocate(load_E, sum(slots_N), 1 if min_replicas is None else min_replicas)
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


def train_model(
    nodes: Annotated[int, typer.Option(help="processes to begin with")],
    steps: Annotated[int, typer.Option(help="steps of the global batch")],
    preset: Annotated[str, typer.Option(help="tiny, small, GPT-S, GPT-M or GPT-L")] = "tiny",
    system: Annotated[str, typer.Option(help="lazarus, ds or ds-ft")] = "lazarus",
    kill: Annotated[list[str] | None, typer.Option(metavar="NODE@STEP[:POINT]", help="SIGKILL; repeatable")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="NODE@STEP[:POINT]", help="SIGSTOP; repeatable")] = None,
    join: Annotated[list[int] | None, typer.Option(metavar="STEP", help="one more node; repeatable")] = None,
    trace: Annotated[str | None, typer.Option(help="failures and joins of p3 or infinitehbd, a minute a step")] = None,
    seed: Annotated[int, typer.Option(help="of weights and data")] = 0,
    method: Annotated[str, typer.Option(help="placement: " + ", ".join(METHODS))] = "mro",
    checkpoint_interval: Annotated[int, typer.Option(help="steps between checkpoints")] = 50,
    rebalance_interval: Annotated[int, typer.Option(help="steps between new placements")] = 200,
    heartbeat: Annotated[float, typer.Option(help="seconds of silence after which a node is lost")] = 2.0,
    checkpoints: Annotated[Path | None, typer.Option(help="folder to keep them in")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in that folder")] = False,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="wait there for nodes, start none")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train a mixture of experts on real processes that fail and join, and say what each failure cost."""
    from artifact.elastic_moe import failures
    from artifact.elastic_moe.training.run import train
    from artifact.elastic_moe.training.wire import address_of

    _not_negative(seed)
    for option, value in (("--checkpoint-interval", checkpoint_interval), ("--rebalance-interval", rebalance_interval)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if not 0.1 <= heartbeat <= MOST_HEARTBEAT_S:
        raise ValueError(f"--heartbeat must be in [0.1, {MOST_HEARTBEAT_S}] seconds, got {heartbeat:g}")
    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and listen is None:
        import torch

        if (devices := torch.cuda.device_count()) < nodes:  # nccl takes one a process
            raise ValueError(f"--device cuda must have a device for each of {nodes} nodes, found {devices}")
    if resume and checkpoints is None:
        raise ValueError("--resume goes with --checkpoints, got no folder")
    traces = {"p3": failures.spot_failures, "infinitehbd": failures.infinitehbd_failures}
    if trace is not None and trace not in traces:
        raise ValueError(f"--trace must be one of {', '.join(traces)}, got {trace!r}")

    def show(event: dict[str, Any]) -> None:
        shown = {name: value for name, value in event.items() if name not in ("event", "placements", "at_s")}
        print(event["event"], json.dumps(shown), file=sys.stderr, flush=True)

    result = train(
        nodes=nodes,
        steps=steps,
        preset=preset,
        system=system,
        kills=[_fault("--kill", text) for text in kill or ()],
        stops=[_fault("--stop", text) for text in stop or ()],
        joins=join or (),
        trace=None if trace is None else traces[trace](cap=nodes),
        folder=checkpoints,
        listen=None if listen is None else address_of(listen),
        progress=show,
        seed=seed,
        method=method,
        checkpoint_interval=checkpoint_interval,
        rebalance_interval=rebalance_interval,
        heartbeat_s=heartbeat,
        resume=resume,
        device=device,
    )
    print(json.dumps(vars(result), indent=None if as_json else 1))
    if result.ended != "finished":
        raise typer.Exit(1)


def simulate_training(
    model: Annotated[str, typer.Option(help="GPT-S, GPT-M, GPT-L, DeepSeek-V3, tiny or small")],
    system: Annotated[str, typer.Option(help="lazarus, ds, ds-ft, tutel or tutel-ft")],
    failures: Annotated[str, typer.Option(help="every:5min, trace:p3, trace:infinitehbd or rate:0.05 (an hour)")],
    nodes: Annotated[int, typer.Option(help="number of nodes; of a trace, at most so many are used")],
    minutes: Annotated[float, typer.Option(help="how long to train")],
    testbed: Annotated[str, typer.Option(help="paper-gpu, a10g or h200-deepseek-v3")] = "paper-gpu",
    checkpoint_steps: Annotated[int | None, typer.Option(help="steps between checkpoints [default: system's]")] = None,
    seed: Annotated[int, typer.Option(help="of the failures")] = 0,
    as_json: Json = False,
) -> None:
    """Simulate training on nodes that fail and join, and say what comes of it."""
    from artifact.elastic_moe import SIMULATED_SYSTEMS, TESTBEDS, WORKLOADS, parse_failures, simulate

    for option, name, known in (
        ("--model", model, WORKLOADS),
        ("--system", system, SIMULATED_SYSTEMS),
        ("--testbed", testbed, TESTBEDS),
    ):
        if name not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}")
    if nodes < 1:
        raise ValueError(f"--nodes must be at least 1, got {nodes}")
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be positive and finite, got {minutes:g}")
    if checkpoint_steps is not None and checkpoint_steps < 1:
        raise ValueError(f"--checkpoint-steps must be at least 1, got {checkpoint_steps}")
    _not_negative(seed)
    trace = parse_failures(failures, nodes, minutes, seed)
    start = time.perf_counter()
    result = simulate(model, system, trace, testbed, minutes, checkpoint_steps=checkpoint_steps or "own")
    seconds = time.perf_counter() - start
    totals = {
        "samples": result.samples,
        "steps": result.steps,
        "samples_per_s": result.samples_per_s,
        "lost_samples": result.lost_samples,
        "lost_steps": result.lost_steps,
        "restarts": result.restarts,
        "reconfigurations": result.reconfigurations,
        "rebalances": result.rebalances,
        "moved_states": result.moved_states,
    }
    if as_json:
        given = {"model": model, "system": system, "failures": trace.name, "testbed": testbed, "minutes": minutes}
        state_seconds = {"state_seconds": result.seconds, "timeline": [vars(each) for each in result.segments]}
        print(json.dumps({**given, **totals, **state_seconds, "seconds": seconds}))
        return
    for name, value in totals.items():
        print(f"{name:<18}{value:,.2f}" if isinstance(value, float) else f"{name:<18}{value:,}")
    print(f"\n{'state':<18}{'s':>10}{'%':>8}")
    for state, spent in result.seconds.items():
        print(f"{state:<18}{spent:>10.1f}{100 * spent / result.total_s:>8.2f}")
    print(f"\nfailures: {trace.name}; simulated in {seconds:.2f} s")


def _fault(option: str, text: str) -> tuple[int, int, str]:
    """NODE@STEP[:POINT]"""
    found = re.fullmatch(r"(\d+)@(\d+)(?::(\w+))?", text)
    if found is None:
        raise ValueError(f"{option} must be NODE@STEP or NODE@STEP:POINT, got {text!r}")
    return int(found[1]), int(found[2]), found[3] or "backward"


def _not_negative(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers with commas between them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _exact(text: str) -> int | float:
    """An integer of any size as it is."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
