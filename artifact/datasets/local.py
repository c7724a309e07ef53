"""Data sets on this machine: the mirror, the user's cache, and what is brought into it. No other place is read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from artifact import paths
from artifact.datasets import content, sources
from artifact.datasets.recipes import RECIPES
from artifact.datasets.registry import Dataset, DatasetUnavailable, Source, get, names


def path(name: str) -> Path:
    """A local file with the registered content: in the mirror, else the cache, else made from its public source.

    Raises: DatasetUnavailable if there is no such file and none can be had
            ValueError if the name is unknown, or if the file that is there has other content
    """
    dataset, file = get(name), found(name)
    if file is None:
        return _fetch(dataset)
    _check(dataset, file)
    return file


def path_or_none(name: str) -> Path | None:
    """`path`, or None if the data set is unavailable: the caller generates its own and says so."""
    try:
        return path(name)
    except DatasetUnavailable:
        return None


def available(name: str) -> bool:
    """Whether a file is at hand without a download (its content is checked by `path`)."""
    return found(name) is not None


def found(name: str) -> Path | None:
    """The file in the mirror or the cache, its content unchecked; None where neither has it."""
    places = [base / get(name).file for base in (mirror(), paths.data_cache()) if base is not None]
    return next((place for place in places if os.path.isfile(place)), None)


def mirror() -> Path | None:
    """The directory that ARTIFACT_DATA_MIRROR names, which is looked at first.

    Raises: ValueError if it is set but no directory: nothing else is silently taken for it
    """
    named = os.environ.get("ARTIFACT_DATA_MIRROR")
    if named and not Path(named).is_dir():
        raise ValueError(f"ARTIFACT_DATA_MIRROR must be a directory, got {named!r}")
    return Path(named) if named else None


def build(name: str, source: Path) -> Path:
    """Make a data set in the cache from raw files that are here: a clone, an archive, or downloaded packages.

    Raises: ValueError if there is no such place, a file is missing in it, or the content is not the registered one
    """
    dataset = get(name)
    if not source.exists():
        raise ValueError(f"--source must be a directory or an archive, got {str(source)!r}")
    with _locked_cache():
        return _make(dataset, dataset.sources[0], source)


def verify(name: str) -> Path:
    """The file that is at hand, its content hashed again.

    Raises: DatasetUnavailable if none is at hand; ValueError if it has other content
    """
    dataset, file = get(name), found(name)
    if file is None:
        raise DatasetUnavailable(f"data set {name} is not at hand")
    _compare(dataset, file, str(file))
    return file


def prepare(notebooks: Sequence[int] = ()) -> Iterator[tuple[Dataset, str]]:
    """Fetch what these notebooks read, by default all of them, and go on without what cannot be had.

    Yields: each data set and its state: at hand, fetched, or why it is not to be had
    """
    for name in names():
        dataset = get(name)
        if not (set(notebooks) & set(dataset.notebooks) if notebooks else dataset.notebooks):
            continue
        state = "at hand" if available(name) else "fetched"
        try:
            path(name)
        except (DatasetUnavailable, ValueError) as error:
            state = str(error)
        yield dataset, state


def _fetch(dataset: Dataset) -> Path:
    """Make a data set of its public sources. Raises: DatasetUnavailable, or ValueError if it has other content."""
    problems = []
    for source in dataset.sources:
        if sources.offline():
            problems.append(f"ARTIFACT_OFFLINE forbids downloading {source.mb:g} MB from {source.origin}")
            continue
        shared = f"{source.repository.replace('/', '+')}@{source.commit}" if source.archive else dataset.name
        directory = paths.data_cache() / "sources" / shared
        try:
            with _locked_cache():
                if available(dataset.name):  # another process has made it meanwhile
                    return path(dataset.name)
                keep = False
                try:
                    file = _make(dataset, source, sources.download(source, directory))
                    keep = _needed_by_others(source)
                finally:
                    if not keep:
                        shutil.rmtree(directory, ignore_errors=True)
                return file
        except DatasetUnavailable as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{directory}: {error.strerror or error}")
    raise DatasetUnavailable(
        f"data set {dataset.name} is not at hand: {'; '.join(problems)}. Raw files or a mirror of your own: "
        f"python -m artifact data build {dataset.name} --source DIR, or ARTIFACT_DATA_MIRROR=DIR"
    )


def _make(dataset: Dataset, source: Source, place: Path) -> Path:
    cache = paths.data_cache()
    with sources.raw_files(source, place, cache / "sources") as raw, paths.replacing(cache / dataset.file) as new:
        try:
            made = RECIPES[dataset.recipe](raw)
        except Exception as error:  # whatever files of another form make a recipe raise
            raise ValueError(f"data set {dataset.name}: {place} must hold {source.origin}, got {error!r}") from error
        content.write(new, made)
        _compare(dataset, new, f"what is made of {place}")
    return cache / dataset.file


def _needed_by_others(source: Source) -> bool:
    """Whether a data set that is not at hand is made from the same archive."""
    missing = [get(name) for name in names() if not available(name)]
    return source.archive and any(
        other.archive and other.commit == source.commit for dataset in missing for other in dataset.sources
    )


@contextmanager
def _locked_cache() -> Iterator[None]:
    """One process at a time writes to the cache.

    Raises: DatasetUnavailable if nothing can be written there
    """
    cache = paths.data_cache()
    try:
        (cache / "sources").mkdir(parents=True, exist_ok=True)
        lock = (cache / "sources" / ".lock").open("w")
    except OSError as error:
        raise DatasetUnavailable(
            f"the cache {cache} cannot be written ({error.strerror}); ARTIFACT_CACHE names another directory"
        ) from error
    with lock:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check(dataset: Dataset, file: Path) -> None:
    """`_compare`, except that a file is hashed again only when its size or time has changed."""
    status = file.stat()
    seen = [status.st_size, status.st_mtime_ns, dataset.sha256]
    note = paths.data_cache() / "checked" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError):
        if json.loads(note.read_text()) == seen:
            return
    _compare(dataset, file, str(file))
    with suppress(OSError):  # a cache that cannot be written costs the next check some time, nothing else
        with paths.replacing(note) as temporary:
            temporary.write_text(json.dumps(seen))


def _compare(dataset: Dataset, file: Path, label: str) -> None:
    """Raise ValueError if the file, which the message calls `label`, has other content than the registry names."""
    sha256 = content.sha256(file, dataset.relabel)
    if sha256 != dataset.sha256:
        raise ValueError(f"data set {dataset.name}: sha256 of {label} must be {dataset.sha256}, got {sha256}")
