"""The command line of the prefix cache: `python -m artifact replay`, `serve-trace` and `conformance`."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from artifact.prefix_cache.presets import PRESETS

Gigabytes = Annotated[float | None, typer.Option("--capacity-gb", help="KV and checkpoints together, 10^9 bytes")]
HostGigabytes = Annotated[
    float | None, typer.Option("--host-capacity-gb", help="of a second tier, which takes what the first evicts")
]
TraceName = Annotated[str, typer.Argument(help="a trace of the registry, or a file of JSON lines")]
Alpha = Annotated[float | None, typer.Option(help="fix Marconi's alpha; without it the tuner runs")]
BlockSize = Annotated[int, typer.Option(help="tokens in a block of vllm+")]
SessionsPerS = Annotated[float | None, typer.Option(help="start of sessions of a registry trace (1 without it)")]
Placements = Annotated[
    str, typer.Option("--placement", help="checkpoints of a request: branch, end, chunk:TOKENS or every:TOKENS")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    app.command()(replay)
    app.command(name="serve-trace")(serve_trace)
    app.command()(conformance)


def _bytes(option: str, amount: float | None, unit: int, *, needed_by: str | None = None) -> int | None:
    if amount is None:
        if needed_by is not None:
            raise ValueError(f"{option} must be given for {needed_by}")
        return None
    if not amount > 0:
        raise ValueError(f"{option} must be positive, got {amount}")
    if not amount * unit < 1e18 or round(amount * unit) < 1:
        raise ValueError(f"{option} must be from 1 byte to 10^18 bytes, got {amount}")
    return round(amount * unit)


def _check_device(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must lie within [0, 2**63), got {seed}")


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        print(f"{name:<31} {value:,}" if number else f"{name:<31} {value}")


def replay(
    trace: TraceName,
    system: Annotated[str, typer.Option(help="marconi, sglang+, vllm+, none or infinite")] = "marconi",
    capacity_gb: Gigabytes = None,
    host_capacity_gb: HostGigabytes = None,
    alpha: Alpha = None,
    block_size: BlockSize = 32,
    bootstrap_multiplier: Annotated[
        int, typer.Option(help="the tuner's window, in requests before the first eviction")
    ] = 5,
    fidelity: Annotated[
        str,
        typer.Option(help="corrected, or published (the authors' simulator); +B3 and -B3 switch one correction"),
    ] = "corrected",
    spec: Annotated[str, typer.Option(help=f"the model: {', '.join(PRESETS)}")] = "marconi-7b",
    placement: Placements = "branch",
    sessions_per_s: SessionsPerS = None,
    as_json: AsJson = False,
) -> None:
    """Run a trace through a cache and print what it saves."""
    from artifact.prefix_cache.index.admission import parse_checkpoint_policy
    from artifact.prefix_cache.index.fidelity import Fidelity, fidelity_label
    from artifact.prefix_cache.presets import preset
    from artifact.prefix_cache.simulation import GB, SIMULATED_SYSTEMS
    from artifact.prefix_cache.simulation import replay as replay_trace
    from artifact.prefix_cache.workloads.importers import load_trace

    if system not in SIMULATED_SYSTEMS:
        raise ValueError(f"--system must be one of {', '.join(SIMULATED_SYSTEMS)}, got {system!r}")
    needed_by = None if system in ("none", "infinite") else system
    capacity = _bytes("--capacity-gb", capacity_gb, GB, needed_by=needed_by)
    host_capacity = _bytes("--host-capacity-gb", host_capacity_gb, GB)
    chosen, corrections, placed = preset(spec), Fidelity.parse(fidelity), parse_checkpoint_policy(placement)
    options: dict[str, Any] = {} if sessions_per_s is None else {"sessions_per_s": sessions_per_s}
    loaded = load_trace(trace, **options)
    result = replay_trace(
        loaded,
        chosen,
        system=SIMULATED_SYSTEMS[system],
        capacity_bytes=capacity,
        host_capacity_bytes=host_capacity,
        alpha=alpha,
        block_size=block_size,
        bootstrap_multiplier=bootstrap_multiplier,
        fidelity=corrections,
        checkpoints=placed,
    )
    settings = {
        "trace": loaded.name,
        "spec": chosen.name,
        "fidelity": fidelity_label(fidelity),
        "capacity_gb": capacity_gb,
    }
    if host_capacity_gb is not None:
        settings["host_capacity_gb"] = host_capacity_gb
    _print({**settings, **result.summary()}, as_json)


def serve_trace(
    trace: TraceName,
    model: Annotated[str, typer.Option(help="a preset, a checkpoint's folder or an id of the hub")] = "granite-tiny",
    system: Annotated[str, typer.Option(help="marconi, sglang+ or vllm+")] = "marconi",
    capacity_mb: Annotated[float | None, typer.Option(help="KV and checkpoints together, 10^6 bytes")] = None,
    host_capacity_mb: Annotated[
        float | None, typer.Option(help="of a second tier in host memory, which takes what the first evicts")
    ] = None,
    alpha: Alpha = None,
    block_size: BlockSize = 32,
    placement: Placements = "branch",
    requests: Annotated[int | None, typer.Option(help="serve only the first of the trace")] = None,
    sessions_per_s: SessionsPerS = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; without it the one that is there")] = None,
    seed: Annotated[int, typer.Option(help="of a preset's random weights")] = 0,
    save: Annotated[str | None, typer.Option(help="write the cache to this file at the end")] = None,
    restore: Annotated[str | None, typer.Option(help="start from a saved cache")] = None,
    debug: Annotated[bool, typer.Option(help="compare index and tensors after every operation")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a trace by a real model and its cache; time each request, and a prefill of it without a cache."""
    from artifact.prefix_cache.index.admission import parse_checkpoint_policy
    from artifact.prefix_cache.serving.hybrid_models import build_model
    from artifact.prefix_cache.serving.trace_server import MB, System, per_request, serve, summary
    from artifact.prefix_cache.simulation import SIMULATED_SYSTEMS
    from artifact.prefix_cache.workloads.importers import load_trace

    served = {name: label for name, label in SIMULATED_SYSTEMS.items() if name not in ("none", "infinite")}
    if system not in served:
        raise ValueError(f"--system must be one of {', '.join(served)}, got {system!r}")
    capacity = _bytes("--capacity-mb", capacity_mb, MB, needed_by=system)
    assert capacity is not None
    host_capacity = _bytes("--host-capacity-mb", host_capacity_mb, MB)
    _check_device(device)
    _check_seed(seed)
    if save is not None and (not save or os.path.isdir(save)):
        raise ValueError(f"--save must be a file to write, got {save!r}")
    if requests is not None and requests < 1:
        raise ValueError(f"--requests must be positive, got {requests}")
    chosen = System(served[system], capacity, host_capacity, alpha, block_size, parse_checkpoint_policy(placement))
    options: dict[str, Any] = {} if sessions_per_s is None else {"sessions_per_s": sessions_per_s}
    loaded = load_trace(trace, **options)
    if requests is not None:
        loaded = loaded.head(requests)
    built = build_model(model, device=device, seed=seed)
    engine = chosen.engine(built, debug=debug)
    restored = False
    if restore is not None:
        try:
            engine.load(restore)
            restored = True
        except ValueError as error:
            print(f"error: {error}; the cache starts empty", file=sys.stderr)
    table = serve(loaded, {chosen.label: engine})
    simulated = None if restored else chosen.simulated_hits(loaded, built)
    report = {
        "trace": loaded.name,
        "model": model,
        "device": str(engine.states.device),
        "capacity_mb": capacity_mb,
        "host_capacity_mb": host_capacity_mb,
        "placement": placement,
        **summary(table, chosen.label, engine, simulated),
    }
    if as_json:
        report["per_request"] = per_request(table, chosen.label)
    _print(report, as_json)
    if save is not None:  # last: what was measured is out already if the disk is full
        try:
            engine.save(save)
        except OSError as error:
            raise ValueError(f"--save must be a file that can be written, got {save!r}: {error}") from error


def conformance(
    model: Annotated[str, typer.Argument(help="a preset, a checkpoint's folder or an id of the hub")],
    device: Annotated[str | None, typer.Option(help="cpu or cuda; without it the one that is there")] = None,
    seed: Annotated[int, typer.Option(help="of random weights and tokens")] = 0,
    as_json: AsJson = False,
) -> None:
    """Hold prefills resumed from a model's states against cold ones; exit status 1 if they differ."""
    from artifact.prefix_cache.serving import resume_cases as suite
    from artifact.prefix_cache.serving.hybrid_models import build_model
    from artifact.prefix_cache.serving.model_states import DoesNotResume, ModelStates

    _check_device(device)
    _check_seed(seed)
    built = build_model(model, device=device, seed=seed)
    try:
        states = ModelStates(built)
    except DoesNotResume as error:
        _print({"model": model, "resumes": False, "reason": f"{error}"}, as_json)
        raise typer.Exit(1) from error
    table = suite.conformance(built, states=states, seed=seed)
    report = {"model": model, **suite.summary(table, built, states)}
    if as_json:
        report["per_case"] = table.to_dict("records")
    else:
        for row in table.to_dict("records"):
            verdict = "holds" if row["holds"] else "differs"
            print(f"{row['case']:<45} {row['difference']:.1e}  control {row['difference_of_control']:.1e}  {verdict}")
    _print(report, as_json)
    if not report["resumes"]:
        raise typer.Exit(1)
