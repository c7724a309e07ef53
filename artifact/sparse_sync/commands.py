"""The command line of sparse synchronisation: `python -m artifact sync` and `partition`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

METHODS = ("hierarchical", "counting", "bijection", "modulo", "contiguous", "strawman")

Input = Annotated[Path, typer.Argument(metavar="INPUT.npz", help="sparse gradients, one a worker")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    app.command()(sync)
    app.command(name="partition")(partition)


def sync(
    path: Input,
    scheme: Annotated[str, typer.Option(help="a scheme, or all")] = "all",
    workers: Annotated[int | None, typer.Option(help="workers 0 to N-1 of the file; all without it")] = None,
    seed: Annotated[int, typer.Option(help="of the hash, and of values that the file lacks")] = 0,
    bandwidth_gbps: Annotated[float, typer.Option(help="of a link, 10^9 bits a second")] = 25.0,
    as_json: Json = False,
) -> None:
    """Synchronise the gradients of a file and print what each scheme sends."""
    from artifact.sparse_sync.links.accounting import synchronise
    from artifact.sparse_sync.schemes import COMPARED, SCHEMES
    from artifact.sparse_sync.tensors.input_file import read_gradients

    if scheme != "all" and scheme not in SCHEMES:
        raise ValueError(f"--scheme must be all or one of {', '.join(SCHEMES)}, got {scheme!r}")
    _not_negative(seed)
    if not bandwidth_gbps > 0:
        raise ValueError(f"--bandwidth-gbps must be positive, got {bandwidth_gbps}")
    tensors = read_gradients(path, workers, seed)
    reports = {
        name: synchronise(name, tensors, bandwidth_gbps=bandwidth_gbps, seed=seed).as_dict()
        for name in (COMPARED if scheme == "all" else (scheme,))
    }
    if as_json:
        print(json.dumps(reports if scheme == "all" else reports[scheme]))
        return
    import pandas as pd

    columns = [column for column in reports[next(iter(reports))] if column not in ("label", "workers")]
    print(pd.DataFrame(reports.values())[columns].round(4).to_string(index=False))


def partition(
    path: Input,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "counting",
    partitions: Annotated[int, typer.Option(help="parts, one a server")] = 16,
    seed: Annotated[int, typer.Option(help="of the hash")] = 0,
    hashes: Annotated[int, typer.Option(help="k, second-level hashes (hierarchical)")] = 3,
    slots_per_index: Annotated[float, typer.Option(help="r1 / |I| (hierarchical, strawman)")] = 2.0,
    as_json: Json = False,
) -> None:
    """Share the indices of a file out to partitions and print how evenly, and how fast."""
    from artifact.sparse_sync.tensors.grouping import measure_grouping
    from artifact.sparse_sync.tensors.input_file import read_gradients

    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 1 <= partitions <= 1 << 16:
        raise ValueError(f"--partitions must be in [1, 65536], got {partitions}")
    _not_negative(seed)
    measured: dict[str, Any] = measure_grouping(
        read_gradients(path), method, partitions, seed=seed, num_hashes=hashes, slots_per_index=slots_per_index
    )
    if as_json:
        print(json.dumps(measured))
        return
    for name, value in measured.items():
        print(f"{name:<28} {value}")


def _not_negative(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
