"""The commands of sparse synchronisation: `python -m artifact sparse sync`, `partition` and `testbed`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from artifact import cli

Elements = Literal["ring", "agsparse", "sparcml", "omnireduce", "omnireduce-cyclic", "ps", "balanced-coo", "zen"]
Rows = Literal["agsparse-row", "sparcml-row", "ps-row", "balanced-coo-row", "zen-row"]
OtherHashes = Literal["zen-bijection", "zen-bijection-row", "zen-modulo", "zen-modulo-row"]
Scheme = Literal["all", Elements, Rows, OtherHashes]
Method = Literal["hierarchical", "counting", "bijection", "modulo", "contiguous", "strawman"]

INPUT = Argument(metavar="INPUT.npz", exists=True, dir_okay=False, help="sparse gradients of all workers")
WORKLOADS = "zipf, lstm, deepfm, nmt, bert, topk-lstm or topk-transformer; lstm:8 takes batches of 8"


def register(app: typer.Typer) -> None:
    """Add this system's commands."""
    cli.add_system(
        app,
        "sparse",
        "Zen: synchronisation of sparse gradients.",
        {"sync": sync, "partition": partition, "testbed": run_testbed},
        {"sync": sync, "partition": partition},
        """
        sync gradients.npz --scheme all --workers 8 --bandwidth-gbps 1
        partition gradients.npz --method counting --partitions 16 --json
        testbed --workers 8 --rate 200mbit
        """,
    )


def sync(
    path: Annotated[Path, INPUT],
    scheme: Annotated[Scheme, cli.named(Scheme, "scheme to run (all: those that the paper compares)")] = "all",
    workers: Annotated[int | None, Option(min=1, help="take workers 0 to N-1 of the file (default: all)")] = None,
    seed: Annotated[int, cli.seed("the hash, and of values that the file does not have")] = 0,
    bandwidth_gbps: Annotated[float, cli.positive("bandwidth of a link, in 10^9 bits a second")] = 25.0,
    as_json: cli.AsJson = False,
) -> None:
    """Synchronise the gradients of a file and print what each scheme sends."""
    from artifact.sparse_sync import COMPARED, read_gradients, synchronise

    tensors = read_gradients(path, workers, seed)
    reports = {
        name: synchronise(name, tensors, bandwidth_gbps=bandwidth_gbps, seed=seed).as_dict()
        for name in (COMPARED if scheme == "all" else (scheme,))
    }
    if as_json:
        print(cli.to_json(reports if scheme == "all" else reports[scheme]))
        return
    import pandas as pd

    print(pd.DataFrame(reports.values()).drop(columns=["label", "workers"]).round(4).to_string(index=False))


def partition(
    path: Annotated[Path, INPUT],
    method: Annotated[Method, Option(help="how indices are assigned to partitions")] = "counting",
    partitions: Annotated[int, Option(min=1, max=1 << 16, help="number of partitions, one a server")] = 16,
    seed: Annotated[int, cli.seed("the hash")] = 0,
    hashes: Annotated[int, Option(min=1, help="k, second-level hashes (hierarchical)")] = 3,
    slots_per_index: Annotated[float, cli.positive("r1 / |I|, parallel slots (hierarchical, strawman)")] = 2.0,
    as_json: cli.AsJson = False,
) -> None:
    """Assign the indices of a file to partitions and print how even the partitions are, and how fast it was."""
    from artifact.sparse_sync import measure_grouping, read_gradients

    options: dict[str, Any] = {"seed": seed, "num_hashes": hashes, "slots_per_index": slots_per_index}
    cli.show(measure_grouping(read_gradients(path), method, partitions, **options), as_json)


def run_testbed(
    workers: Annotated[int, Option(min=1, max=250, help="ranks, each behind its own link")] = 8,
    rate: Annotated[str, Option(help="rate of each link, both ways: 200mbit, 1gbit")] = "200mbit",
    workload: Annotated[str, Option(help=WORKLOADS)] = "zipf",
    systems: Annotated[str | None, Option(help="schemes, torch-allreduce, torch-sparse; with commas between")] = None,
    repeats: Annotated[int, Option(min=1, help="runs of each system; their median is printed")] = 3,
) -> None:
    """Run schemes on real links of limited rate, as root on Linux; exit status 1 if a rank fails or a sum is wrong."""
    from artifact.sparse_sync.links import testbed
    from artifact.sparse_sync.workloads import workload_tensors

    possible, reason = testbed.available()
    if not possible:
        raise OSError(f"the testbed needs root: {reason}")
    testbed.rate_bps(rate)  # refused before the workload is made
    _, tensors = workload_tensors(workload, workers, 1, 0)
    chosen = testbed.SYSTEMS if systems is None else systems.split(",")
    try:
        table = testbed.measure_links(tensors, rate, systems=chosen, repeats=repeats)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    table["wire_over_counted"] = table["wire_bytes"] / table["counted_bytes"]
    columns = ["seconds", "counted_bytes", "wire_bytes", "wire_over_counted"]
    medians = table.groupby(["label", "workers", "rate_mbps"], sort=False)[columns].median()
    print(medians.round(4).to_string())
