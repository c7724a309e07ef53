"""The commands of the prefix cache: `python -m artifact prefix replay`, `serve` and `conformance`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from artifact import cli
from artifact.cli import GB, MB

Papers = Literal["marconi-7b", "transformer-7b", "mamba-7b"]
Published = Literal["nemotron-h-8b", "jamba-1.5-mini", "granite-4.0-h-small", "qwen3-next-80b-a3b", "falcon-h1-7b"]
Spec = Literal[Papers, Published]
Simulated = Literal["marconi", "sglang+", "vllm+", "none", "infinite"]
Served = Literal["marconi", "sglang+", "vllm+"]

FIDELITY = "corrected, or published (the authors' simulator, also artifact); then +B3 or -B3 switches a correction"
MODEL = "a preset such as granite-tiny, a checkpoint's folder, or an id of the hub"
KEPT = "keys, values and checkpoints together"
SECOND_TIER = "second tier in host memory, for what the first evicts"

TraceName = Annotated[str, Argument(metavar="TRACE", help="a trace of the registry, or a file of JSON lines")]
Alpha = Annotated[float | None, Option(min=0, help="Marconi's alpha, fixed; without it, the tuner chooses it on line")]
BlockSize = Annotated[int, Option(help="tokens in a block of vllm+")]
Checkpoints = Annotated[str, Option(help="tokens with a checkpoint: branch, end, chunk:TOKENS or every:TOKENS")]
Placement = Annotated[str | None, Option(hidden=True, help="old name of --checkpoints")]
SessionsPerS = Annotated[float | None, cli.positive("sessions that start in a second (traces of the registry)")]
Device = Annotated[cli.Device | None, Option(help="device of the model; without it, cuda if there is any")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    cli.add_system(
        app,
        "prefix",
        "Marconi: prefix caching for hybrid language models.",
        {"replay": replay, "serve": serve, "conformance": conformance},
        {"replay": replay, "serve-trace": serve, "conformance": conformance},
        """
        replay requests.jsonl --system marconi --capacity-gb 3 --spec nemotron-h-8b --json
        serve sharegpt --model granite-tiny --capacity-mb 2 --host-capacity-mb 8 --requests 50
        conformance granite-tiny
        """,
    )


def replay(
    trace: TraceName,
    system: Annotated[Simulated, Option(help="cache to simulate")] = "marconi",
    capacity_gb: Annotated[float | None, cli.capacity(GB, KEPT)] = None,
    host_capacity_gb: Annotated[float | None, cli.capacity(GB, SECOND_TIER)] = None,
    alpha: Alpha = None,
    block_size: BlockSize = 32,
    bootstrap_multiplier: Annotated[int, Option(help="tuner's window over requests before the first eviction")] = 5,
    fidelity: Annotated[str, Option(help=FIDELITY)] = "corrected",
    spec: Annotated[Spec, cli.named(Spec, "sizes of the model")] = "marconi-7b",
    checkpoints: Checkpoints = "branch",
    placement: Placement = None,
    sessions_per_s: SessionsPerS = None,
    as_json: cli.AsJson = False,
) -> None:
    """Simulate a trace on a cache and print what the cache saves."""
    from artifact.prefix_cache.index.admission import parse_checkpoint_policy
    from artifact.prefix_cache.index.fidelity import Fidelity, fidelity_label
    from artifact.prefix_cache.presets import preset
    from artifact.prefix_cache.simulation import SIMULATED_SYSTEMS, replay as replay_trace

    if capacity_gb is None and system not in ("none", "infinite"):
        raise ValueError(f"--capacity-gb must be given for {system}")
    corrections, placed = Fidelity.parse(fidelity), parse_checkpoint_policy(placement or checkpoints)
    loaded = _load(trace, sessions_per_s)
    result = replay_trace(
        loaded,
        preset(spec),
        system=SIMULATED_SYSTEMS[system],
        capacity_bytes=_bytes(capacity_gb, GB),
        host_capacity_bytes=_bytes(host_capacity_gb, GB),
        alpha=alpha,
        block_size=block_size,
        bootstrap_multiplier=bootstrap_multiplier,
        fidelity=corrections,
        checkpoints=placed,
    )
    settings = {"trace": loaded.name, "spec": spec, "fidelity": fidelity_label(fidelity), "capacity_gb": capacity_gb}
    if host_capacity_gb is not None:
        settings["host_capacity_gb"] = host_capacity_gb
    cli.show({**settings, **result.summary()}, as_json)


def serve(
    trace: TraceName,
    capacity_mb: Annotated[float, cli.capacity(MB, KEPT)],
    host_capacity_mb: Annotated[float | None, cli.capacity(MB, SECOND_TIER)] = None,
    model: Annotated[str, Option(help=MODEL)] = "granite-tiny",
    system: Annotated[Served, Option(help="cache to serve with")] = "marconi",
    alpha: Alpha = None,
    block_size: BlockSize = 32,
    checkpoints: Checkpoints = "branch",
    placement: Placement = None,
    requests: Annotated[int | None, Option(min=1, help="serve only the first requests of the trace")] = None,
    sessions_per_s: SessionsPerS = None,
    device: Device = None,
    seed: Annotated[int, cli.seed("a preset's random weights")] = 0,
    save: Annotated[Path | None, Option(dir_okay=False, help="write the cache to this file at the end")] = None,
    restore: Annotated[Path | None, Option(help="start from the cache saved in this file")] = None,
    debug: Annotated[bool, Option(help="compare index and tensors after every operation")] = False,
    as_json: cli.AsJson = False,
) -> None:
    """Serve a trace with a real model and its cache; time each request with and without the cache."""
    from artifact.prefix_cache.index.admission import parse_checkpoint_policy
    from artifact.prefix_cache.serving.hybrid_models import build_model
    from artifact.prefix_cache.serving.trace_server import System, per_request, serve as serve_requests, summary
    from artifact.prefix_cache.simulation import SIMULATED_SYSTEMS

    placement = placement or checkpoints
    capacity, host_capacity = round(capacity_mb * MB), _bytes(host_capacity_mb, MB)
    chosen = System(
        SIMULATED_SYSTEMS[system], capacity, host_capacity, alpha, block_size, parse_checkpoint_policy(placement)
    )
    loaded = _load(trace, sessions_per_s)
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
    table = serve_requests(loaded, {chosen.label: engine})
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
    cli.show(report, as_json)
    if save is not None:  # last: the report is out already if the disk is full
        engine.save(save)


def conformance(
    model: Annotated[str, Argument(help=MODEL)],
    device: Device = None,
    seed: Annotated[int, cli.seed("random weights and tokens")] = 0,
    as_json: cli.AsJson = False,
) -> None:
    """Compare prefills resumed from a model's states with cold ones; exit status 1 if they differ."""
    from artifact.prefix_cache.serving import resume_cases as suite
    from artifact.prefix_cache.serving.hybrid_models import build_model
    from artifact.prefix_cache.serving.model_states import DoesNotResume, ModelStates

    built = build_model(model, device=device, seed=seed)
    try:
        states = ModelStates(built)
    except DoesNotResume as error:
        cli.show({"model": model, "resumes": False, "reason": f"{error}"}, as_json)
        raise typer.Exit(1) from error
    table = suite.conformance(built, states=states, seed=seed)
    report = {"model": model, **suite.summary(table, built, states)}
    if as_json:
        report["per_case"] = table.to_dict("records")
    else:
        for row in table.to_dict("records"):
            verdict = "holds" if row["holds"] else "differs"
            print(f"{row['case']:<45} {row['difference']:.1e}  control {row['difference_of_control']:.1e}  {verdict}")
    cli.show(report, as_json)
    if not report["resumes"]:
        raise typer.Exit(1)


def _bytes(amount: float | None, unit: int) -> int | None:
    return None if amount is None else round(amount * unit)


def _load(trace: str, sessions_per_s: float | None) -> Any:
    from artifact.prefix_cache import load_trace

    options: dict[str, Any] = {} if sessions_per_s is None else {"sessions_per_s": sessions_per_s}
    return load_trace(trace, **options)
