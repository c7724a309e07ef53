"""Commands on data sets: `python -m artifact data ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from artifact import datasets, paths
from artifact.datasets import Dataset, DatasetUnavailable
from artifact.datasets.sources import offline

data = typer.Typer(help="Data sets: what is at hand, downloads, and rebuilding from raw files.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="data sets")]


@data.command("list")
def data_list() -> None:
    """List the data sets: whether each is at hand, or where it would come from, and its licence."""
    for name in datasets.names():
        file, dataset = datasets.found(name), datasets.get(name)
        if file is None:
            state = "offline" if offline() else "can be fetched"
        else:
            state = "in the cache" if file.is_relative_to(paths.data_cache()) else "in the mirror"
        print(_line(dataset, state))


@data.command("fetch")
def data_fetch(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="every data set that can be had")] = False,
) -> None:
    """Bring data sets to this machine, made from their public sources; the sha256 of the content is checked."""
    if bool(names) == everything:
        raise ValueError("data fetch takes either NAME or --all")
    _each(datasets.names() if everything else names or [], datasets.path)


@data.command("verify")
def data_verify(names: Names = None) -> None:
    """Hash the content of data sets that are at hand again, by default of all."""
    _each(names or filter(datasets.available, datasets.names()), datasets.verify)


@data.command("build")
def data_build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="data set")],
    source: Annotated[Path, typer.Option(help="clone, unpacked archive or archive; for PyPI packages, where they lie")],
) -> None:
    """Make a data set from raw files that are on this machine."""
    print(f"{name:<23} {datasets.build(name, source)}")


@data.command("prepare")
def data_prepare(
    notebooks: Annotated[list[int] | None, typer.Argument(metavar="NUMBER", help="notebooks; by default all")] = None,
) -> None:
    """Fetch what the notebooks read, and go on without what cannot be had."""
    absent = []
    for dataset, state in datasets.prepare(notebooks or ()):
        had = state in ("at hand", "fetched")
        absent += [] if had else [(dataset, state)]
        print(_line(dataset, state if had else "not to be had"), flush=True)
    for dataset, why in absent:
        numbers = ", ".join(f"{number:02}" for number in dataset.notebooks)
        print(f"\n{dataset.name}, read in {numbers}, is not to be had: {why}")


def _each(names: Iterable[str], get: Callable[[str], Path]) -> None:
    """Print the file of each; what fails is a line on stderr, and exit status 2 at the end."""
    status = 0
    for name in names:
        try:
            print(f"{name:<23} {get(name)}", flush=True)
        except (DatasetUnavailable, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    raise typer.Exit(status)


def _line(dataset: Dataset, state: str) -> str:
    source = dataset.sources[0]
    return f"{dataset.name:<23} {state:<15} {source.mb:6.2f} MB  {source.origin:<65}  {dataset.licence}"
