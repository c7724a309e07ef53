"""Named data sets: a local file for each, its sha256 checked against data/registry.toml."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from artifact import paths


@dataclass(frozen=True)
class Dataset:
    """One file of the registry."""

    name: str
    file: str
    """Path inside a mirror or the cache."""
    size_bytes: int
    sha256: str
    licence: str
    redistributable: bool
    description: str
    citation: str
    url: str | None = None
    """Where the same bytes can be downloaded; None where they cannot."""
    how: str = ""
    """How the file comes to be, where there is no download."""


class DatasetUnavailable(Exception):
    """The data set is neither here nor to be downloaded; the message says why and what to do."""


def names() -> list[str]:
    """Names of all data sets, in the registry's order."""
    return list(_registry())


def get(name: str) -> Dataset:
    """The registry's entry. Raises: ValueError if there is none of that name."""
    if name not in _registry():
        raise ValueError(f"data set must be one of {', '.join(names())}, got {name!r}")
    return _registry()[name]


def path(name: str) -> Path:
    """A local file with the registered content: in the mirror, else the cache, else downloaded to the cache.

    The mirror is the directory ARTIFACT_DATA_MIRROR, else `shared/data` beside the checkout if there is one.

    Raises: DatasetUnavailable if there is no such file and no way to download it
            ValueError if the name is unknown, or if the file that is there has another sha256
    """
    dataset = get(name)
    for candidate in _places(dataset):
        if candidate.is_file():
            _check(dataset, candidate)
            return candidate
    if dataset.url is None:
        raise DatasetUnavailable(f"data set {name} has no public download. {dataset.how} {_remedy(dataset)}")
    return _download(dataset)


def path_or_none(name: str) -> Path | None:
    """As `path`, but None where the data set is unavailable: the caller generates its own and says so."""
    try:
        return path(name)
    except DatasetUnavailable:
        return None


def available(name: str) -> bool:
    """Whether a file is at hand without a download (its content is checked by `path`)."""
    return any(candidate.is_file() for candidate in _places(get(name)))


def mirror() -> Path | None:
    """The mirror directory that is looked at first, if there is one.

    Raises: ValueError if ARTIFACT_DATA_MIRROR is set but no directory: nothing else is silently taken for it
    """
    if named := os.environ.get("ARTIFACT_DATA_MIRROR"):
        if not Path(named).is_dir():
            raise ValueError(f"ARTIFACT_DATA_MIRROR must be a directory, got {named!r}")
        return Path(named)
    sibling = paths.ROOT.parent / "shared" / "data"
    return sibling if sibling.is_dir() else None


@cache
def _registry() -> dict[str, Dataset]:
    entries = tomllib.loads((paths.ROOT / "data" / "registry.toml").read_text())
    return {name: Dataset(name=name, **entry) for name, entry in entries.items()}


def _places(dataset: Dataset) -> list[Path]:
    return [base / dataset.file for base in (mirror(), paths.data_cache()) if base is not None]


def _check(dataset: Dataset, file: Path) -> None:
    """Raise ValueError on another sha256. A file is hashed again only when its size or time has changed."""
    status = file.stat()
    seen = [status.st_size, status.st_mtime_ns, dataset.sha256]
    note = paths.data_cache() / "checked" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        if json.loads(note.read_text()) == seen:
            return
    except (OSError, ValueError):
        pass
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != dataset.sha256:
        raise ValueError(f"data set {dataset.name}: sha256 of {file} must be {dataset.sha256}, got {found}")
    try:
        with paths.replacing(note) as temporary:
            temporary.write_text(json.dumps(seen))
    except OSError:
        pass  # a cache that cannot be written costs the next check some time, nothing else


def _download(dataset: Dataset) -> Path:
    import pooch

    target = paths.data_cache() / dataset.file
    try:
        pooch.retrieve(
            dataset.url,
            known_hash=f"sha256:{dataset.sha256}",
            fname=target.name,
            path=target.parent,
            progressbar=True,
        )
    except ValueError as error:
        raise ValueError(f"data set {dataset.name}: the download is not the registered file: {error}") from error
    except Exception as error:  # requests, urllib3 and the file system each have their own
        told = f"data set {dataset.name} could not be downloaded from {dataset.url} ({type(error).__name__})."
        raise DatasetUnavailable(f"{told} {_remedy(dataset)}") from error
    return target


def _remedy(dataset: Dataset) -> str:
    return f"Put the file at {dataset.file} in a directory and set ARTIFACT_DATA_MIRROR to it."
