"""The command line of the prefix cache: `python -m artifact replay`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from artifact.prefix_cache.presets import PRESETS

Gigabytes = Annotated[float | None, typer.Option("--capacity-gb", help="KV and checkpoints together, 10^9 bytes")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    app.command()(replay)


def replay(
    trace: Annotated[str, typer.Argument(help="a trace of the registry, or a file of JSON lines")],
    system: Annotated[str, typer.Option(help="marconi, sglang+, vllm+, none or infinite")] = "marconi",
    capacity_gb: Gigabytes = None,
    alpha: Annotated[float | None, typer.Option(help="fix Marconi's alpha; without it the tuner runs")] = None,
    block_size: Annotated[int, typer.Option(help="tokens in a block of vllm+")] = 32,
    bootstrap_multiplier: Annotated[
        int, typer.Option(help="the tuner's window, in requests before the first eviction")
    ] = 5,
    fidelity: Annotated[
        str,
        typer.Option(help="corrected, or artifact (the published simulator); +B3 and -B3 switch one correction"),
    ] = "corrected",
    spec: Annotated[str, typer.Option(help=f"the model: {', '.join(PRESETS)}")] = "marconi-7b",
    sessions_per_s: Annotated[
        float | None, typer.Option(help="start of sessions of a registry trace (1 without it)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Run a trace through a cache and print what it saves."""
    from artifact.prefix_cache.fidelity import Fidelity
    from artifact.prefix_cache.importers import load
    from artifact.prefix_cache.presets import preset
    from artifact.prefix_cache.replay import GB, SYSTEMS
    from artifact.prefix_cache.replay import replay as replay_trace

    if system not in SYSTEMS:
        raise ValueError(f"--system must be one of {', '.join(SYSTEMS)}, got {system!r}")
    if capacity_gb is None and system not in ("none", "infinite"):
        raise ValueError(f"--capacity-gb must be given for {system}")
    if capacity_gb is not None and not 0 < capacity_gb < 1e9:
        raise ValueError(f"--capacity-gb must be positive, got {capacity_gb}")
    chosen, corrections = preset(spec), Fidelity.parse(fidelity)
    options: dict[str, Any] = {} if sessions_per_s is None else {"sessions_per_s": sessions_per_s}
    loaded = load(trace, **options)
    result = replay_trace(
        loaded,
        chosen,
        system=SYSTEMS[system],
        capacity_bytes=None if capacity_gb is None else round(capacity_gb * GB),
        alpha=alpha,
        block_size=block_size,
        bootstrap_multiplier=bootstrap_multiplier,
        fidelity=corrections,
    )
    settings = {"trace": loaded.name, "spec": chosen.name, "fidelity": fidelity, "capacity_gb": capacity_gb}
    report = {**settings, **result.summary()}
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        print(f"{name:<23} {value:,}" if number else f"{name:<23} {value}")
