"""Tidy tables on disk: Parquet with the provenance of every number inside the file."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from artifact import hardware, paths

METADATA_KEY = b"artifact"
VERSIONED = ("artifact", "numpy", "pandas", "pyarrow", "scipy", "numba", "torch", "transformers", "mamba-ssm")
SOURCES = ("artifact", "notebooks", "data", "requirements.lock")


def save(
    table: pd.DataFrame,
    name: str,
    *,
    profile: str,
    parameters: Mapping[str, Any],
    seed: int | None,
    seconds: float,
) -> Path:
    """Write `table` to results/<profile>/<name>.parquet, whole or not at all, with its provenance.

    parameters: what the experiment was called with; of an absolute path only the last name is kept
    seed:       seed of the experiment, None if nothing in it is random
    seconds:    wall time of the experiment in seconds (see `timed`)
    Raises:     ValueError if the table is empty, or the name or profile is not valid
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table.empty:
        raise ValueError(f"table {name} must have rows, got none")
    record = {
        "git": _git(),
        "profile": profile,
        "parameters": _without_directories(dict(parameters)),
        "seed": seed,
        "versions": _versions(),
        "hardware": _hardware(),
        "wall_seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(record, default=_plain).encode()}
    with paths.replacing(file(name, profile)) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary, compression="zstd")
    return file(name, profile)


def load(name: str, profile: str = "reference") -> pd.DataFrame:
    """The table `name` of `profile`. Raises: FileNotFoundError if not run; ValueError as `save`."""
    return pd.read_parquet(_existing(name, profile))


def provenance(name: str, profile: str = "reference") -> dict[str, Any]:
    """What is recorded about the run behind a table. Raises: as `load`; ValueError if the file has none."""
    import pyarrow.parquet as pq

    metadata = pq.read_schema(_existing(name, profile)).metadata or {}
    if METADATA_KEY not in metadata:
        raise ValueError(f"table {name} ({profile}) must carry provenance, got none: write it with results.save")
    return dict(json.loads(metadata[METADATA_KEY]))


def file(name: str, profile: str) -> Path:
    """Where the table lies, whether it exists or not."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"a table's name must be letters, digits, - and _, got {name!r}")
    return paths.results(profile) / f"{name}.parquet"


@dataclass
class Clock:
    """Wall time of a `timed` block, known once the block has ended."""

    seconds: float = float("nan")


@contextmanager
def timed() -> Iterator[Clock]:
    """`with timed() as clock: ...`, then `clock.seconds`: wall time of the block in seconds."""
    clock, start = Clock(), time.perf_counter()
    try:
        yield clock
    finally:
        clock.seconds = time.perf_counter() - start


def _existing(name: str, profile: str) -> Path:
    path = file(name, profile)
    if not path.exists():
        raise FileNotFoundError(f"table {name} has not been run in profile {profile}")
    return path


def _git() -> dict[str, Any]:
    """Commit, and whether what makes the results differs from it; None where git cannot tell."""

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(paths.ROOT), *command], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", *SOURCES)
    return {"sha": git("rev-parse", "--verify", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    seen = hardware.detect()
    return {"cpu": seen.cpu, "cores": seen.cores, "memory_gib": seen.memory_gib, "gpu": seen.gpu}


def _without_directories(value: Any) -> Any:
    """`value` with every path, and every string that is an absolute path, cut to its last name."""
    if isinstance(value, Mapping):
        return {str(key): _without_directories(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_directories(each) for each in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    return value


def _plain(value: Any) -> Any:
    """JSON form of what a parameter may hold beyond JSON's own types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return repr(value)
