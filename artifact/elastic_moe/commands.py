"""The commands of elastic training: `python -m artifact moe place`, `train` and `simulate`."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from artifact import cli

MAX_NODES, MAX_SLOTS = 10_000, 1_000_000  # of a placement: its recovery is counted in minutes
MAX_LOAD = 1e300  # sums of loads are floats

Method = Literal["mro", "best", "spread", "compact", "random", "eplb"]
Preset = Literal["tiny", "small", "GPT-S", "GPT-M", "GPT-L"]
Trained = Literal["lazarus", "ds", "ds-ft"]
Simulated = Literal["lazarus", "ds", "ds-ft", "tutel", "tutel-ft"]
Model = Literal["GPT-S", "GPT-M", "GPT-L", "DeepSeek-V3", "tiny", "small"]
Trace = Literal["p3", "infinitehbd"]
Testbed = Literal["paper-gpu", "a10g", "h200-deepseek-v3"]

FAILURES = "every:5min, trace:p3, trace:infinitehbd, or rate:0.05 (probability in an hour)"


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    cli.add_system(
        app,
        "moe",
        "Lazarus: training of mixtures of experts that survives failures.",
        {"place": place, "train": train, "simulate": simulate},
        {"place": place, "train-moe": train, "simulate-moe": simulate},
        """
        place --loads 10,5,3,1 --min-replicas 2 --nodes 5 --slots 4 --method best --failures 2
        train --nodes 6 --steps 30 --kill 2@10 --stop 4@15 --join 20
        simulate --model GPT-L --system lazarus --failures trace:p3 --nodes 10 --minutes 80
        """,
    )


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Numbers with commas between them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between them, got {text!r}") from None


def _load(text: str) -> int | float:
    """An integer of any size as it is."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)


def _fault(text: str) -> tuple[int, int, str]:
    """Node, step and point of NODE@STEP[:POINT]."""
    found = re.fullmatch(r"(\d+)@(\d+)(?::(\w+))?", text)
    if found is None:
        raise ValueError("must be NODE@STEP or NODE@STEP:POINT")
    return int(found[1]), int(found[2]), found[3] or "backward"


def _faults(what: str) -> Any:
    return Option(parser=_fault, metavar="NODE@STEP[:POINT]", help=what)


def place(
    nodes: Annotated[int, Option(min=1, max=MAX_NODES, help="number of nodes")],
    slots: Annotated[str, Option(help="experts that a node holds: one number, or one for each node (4,4,2)")],
    replicas: Annotated[str | None, Option(help="replicas of each expert (2,2,3)")] = None,
    loads: Annotated[str | None, Option(help="load of each expert (10,5,1), by which replicas are allocated")] = None,
    min_replicas: Annotated[int | None, Option(min=1, help="f: least replicas, with --loads (default: 1)")] = None,
    method: Annotated[Method, Option(help="placement method")] = "mro",
    failures: Annotated[int | None, Option(min=0, help="failed nodes from which --method best is to recover")] = None,
    failure_probability: Annotated[float, Option(min=0, max=1, help="or else: of each node, for --method best")] = 0.1,
    seed: Annotated[int, cli.seed("--method random and best")] = 0,
    as_json: cli.AsJson = False,
) -> None:
    """Place the replicas of one layer's experts on nodes, and print from which failures they recover."""
    from artifact.elastic_moe import allocate, place, recovery

    if (replicas is None) == (loads is None):
        raise ValueError("give either --replicas or --loads, got " + ("neither" if loads is None else "both"))
    if replicas is not None and min_replicas is not None:
        raise ValueError(f"--min-replicas goes with --loads, got {min_replicas} and --replicas")
    if failures is not None and failures > nodes:
        raise ValueError(f"--failures must be in [0, {nodes}], the number of nodes, got {failures}")
    slots_N = _numbers("--slots", slots, int)
    if len(slots_N) not in (1, nodes):
        raise ValueError(f"--slots must be one number or one for each of {nodes} nodes, got {len(slots_N)}")
    if len(slots_N) == 1:
        slots_N *= nodes
    if min(slots_N) < 1 or sum(slots_N) > MAX_SLOTS:
        raise ValueError(f"--slots must be at least 1 on every node, at most {MAX_SLOTS} in all, got {slots}")
    load_E = None if loads is None else _numbers("--loads", loads, _load)
    if load_E is None:
        copies_E = _numbers("--replicas", str(replicas), int)
    else:
        if beyond := [load for load in load_E if MAX_LOAD < abs(load) < math.inf]:
            raise ValueError(f"--loads must be at most {MAX_LOAD:g}, got {str(beyond[0])[:40]}")
        copies_E = allocate(load_E, sum(slots_N), min_replicas or 1)
    if method == "best":
        place(method, [1, 1], [1, 1])  # what is compiled at its first use does not count
    start = time.perf_counter()
    objective: dict[str, Any] = {"failures": failures, "failure_probability": failure_probability}
    placement = place(method, copies_E, slots_N, loads=load_E, seed=seed, **objective)
    seconds = time.perf_counter() - start
    survival = recovery(placement)
    if as_json:
        report = {
            "replicas": copies_E,
            "placement": placement.nodes,
            "recovery_probability": survival.probability,
            "exact": survival.exact,
            "seconds": seconds,
            "max_load_ratio": placement.max_load_ratio(load_E),
        }
        print(cli.to_json(report))
        return
    print(f"replicas  {' '.join(map(str, copies_E))}")
    for number, held in enumerate(placement.nodes):
        print(f"node {number:<4} {' '.join(map(str, held))}")
    print(f"\nload      {placement.max_load_ratio(load_E):.4f}, largest over mean of the nodes")
    print(f"seconds   {seconds:.6f}")
    print("\nfailures  recovery probability" + ("" if survival.exact else ", sampled (95 % interval)"))
    for k, (chance, half) in enumerate(zip(survival.probability, survival.half_width, strict=True)):
        print(f"{k:<9} {chance:.6f}" + ("" if survival.exact else f" +- {half:.6f}"))


def train(
    nodes: Annotated[int, Option(min=1, help="processes at the start")],
    steps: Annotated[int, Option(min=1, help="training steps")],
    preset: Annotated[Preset, Option(help="sizes of the model")] = "tiny",
    system: Annotated[Trained, Option(help="what recovers from failures")] = "lazarus",
    kill: Annotated[list[Any] | None, _faults("kill a node there (SIGKILL); repeatable")] = None,
    stop: Annotated[list[Any] | None, _faults("freeze a node there (SIGSTOP); repeatable")] = None,
    join: Annotated[list[int] | None, Option(metavar="STEP", help="start one more node then; repeatable")] = None,
    trace: Annotated[Trace | None, Option(help="failures and joins of a trace, one minute a step")] = None,
    seed: Annotated[int, cli.seed("weights and data")] = 0,
    method: Annotated[Method, Option(help="placement method")] = "mro",
    checkpoint_interval: Annotated[int, Option(min=1, help="steps between checkpoints")] = 50,
    rebalance_interval: Annotated[int, Option(min=1, help="steps between new placements")] = 200,
    heartbeat: Annotated[float, Option(min=0.1, max=3600, help="seconds of silence after which a node is lost")] = 2.0,
    checkpoints: Annotated[Path | None, Option(metavar="FOLDER", help="keep the checkpoints there")] = None,
    resume: Annotated[bool, Option("--resume", help="continue from the last checkpoint in that folder")] = False,
    listen: Annotated[str | None, Option(metavar="HOST:PORT", help="wait there for nodes, start none")] = None,
    device: Annotated[cli.Device, Option(help="device of each node")] = "cpu",
    as_json: cli.AsJson = False,
) -> None:
    """Train a mixture of experts on real processes that fail and join, and print what each failure cost."""
    from artifact.elastic_moe import infinitehbd_failures, spot_failures, train
    from artifact.elastic_moe.training.wire import address_of

    if device == "cuda" and listen is None:
        import torch

        if (devices := torch.cuda.device_count()) < nodes:  # nccl takes one a process
            raise ValueError(f"--device cuda must have a device for each of {nodes} nodes, found {devices}")
    if resume and checkpoints is None:
        raise ValueError("--resume goes with --checkpoints, got no folder")
    traces = {"p3": spot_failures, "infinitehbd": infinitehbd_failures}

    def show(event: dict[str, Any]) -> None:
        shown = {name: value for name, value in event.items() if name not in ("event", "placements", "at_s")}
        print(event["event"], cli.to_json(shown), file=sys.stderr, flush=True)

    result = train(
        nodes=nodes,
        steps=steps,
        preset=preset,
        system=system,
        kills=kill or (),
        stops=stop or (),
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
    print(cli.to_json(vars(result), indent=None if as_json else 1))
    if result.ended != "finished":
        raise typer.Exit(1)


def simulate(
    model: Annotated[Model, Option(help="model to train")],
    system: Annotated[Simulated, Option(help="what recovers from failures")],
    failures: Annotated[str, Option(help=FAILURES)],
    nodes: Annotated[int, Option(min=1, help="number of nodes; of a trace, the most that are used")],
    minutes: Annotated[float, cli.positive("simulated time")],
    testbed: Annotated[Testbed, Option(help="machines whose step times are used")] = "paper-gpu",
    checkpoint_steps: Annotated[int | None, Option(min=1, help="steps between checkpoints (default: system's)")] = None,
    seed: Annotated[int, cli.seed("the failures")] = 0,
    as_json: cli.AsJson = False,
) -> None:
    """Simulate training on nodes that fail and join, and print throughput, losses and where the time goes."""
    from artifact.elastic_moe import parse_failures, simulate

    trace = parse_failures(failures, nodes, minutes, seed)
    start = time.perf_counter()
    result = simulate(model, system, trace, testbed, minutes, checkpoint_steps=checkpoint_steps or "own")
    seconds = time.perf_counter() - start
    counts = {name: value for name, value in vars(result).items() if isinstance(value, int)}
    if as_json:
        given = {"model": model, "system": system, "failures": trace.name, "testbed": testbed, "minutes": minutes}
        spent = {"state_seconds": result.seconds, "timeline": [vars(segment) for segment in result.segments]}
        cli.show({**given, **counts, "samples_per_s": result.samples_per_s, **spent, "seconds": seconds}, as_json)
        return
    cli.show({**counts, "samples_per_s": round(result.samples_per_s, 2)}, as_json)
    print(f"\n{'state':<31} {'s':>10}{'%':>8}")
    for state, spent_s in result.seconds.items():
        print(f"{state:<31} {spent_s:>10.1f}{100 * spent_s / result.total_s:>8.2f}")
    print(f"\nfailures: {trace.name}; simulated in {seconds:.2f} s")
