"""Tidy tables on disk: Parquet with the provenance of every number inside the file."""

from __future__ import annotations

import inspect
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from artifact import hardware
from artifact.paths import replacing
from figures import paths

METADATA_KEY = b"artifact"
VERSIONED = ("artifact", "numpy", "pandas", "pyarrow", "scipy", "numba", "torch", "transformers", "mamba-ssm")
SOURCES = ("artifact", "figures", "notebooks", "data", "requirements.lock")


def run(name: str, experiment: Callable[..., pd.DataFrame], /, *, profile: str, **parameters: Any) -> pd.DataFrame:
    """Call `experiment(**parameters)` and keep its table as `name` of `profile`, with what was passed.

    The record holds every parameter, defaults included, the names of those left at their defaults, the seed (the
    parameter of that name, None if there is none) and the wall seconds.

    Returns: the table
    Raises:  TypeError on a parameter that the experiment does not have, before it runs; ValueError as `save`
    """
    file(name, profile)  # a wrong name or profile is refused before the experiment runs
    bound = inspect.signature(experiment).bind(**parameters)
    bound.apply_defaults()
    start = time.perf_counter()
    table = experiment(**parameters)
    seconds = time.perf_counter() - start
    save(
        table,
        name,
        profile=profile,
        parameters=bound.arguments,
        seed=bound.arguments.get("seed"),
        seconds=seconds,
        defaults=[each for each in bound.arguments if each not in parameters],
    )
    return table


def save(
    table: pd.DataFrame,
    name: str,
    *,
    profile: str,
    parameters: Mapping[str, Any],
    seed: int | None,
    seconds: float,
    defaults: Sequence[str] = (),
) -> Path:
    """Write `table` to results/<profile>/<name>.parquet, whole or not at all, with its provenance.

    parameters: what the experiment was called with; of an absolute path only the last name is kept
    seed:       seed of the experiment, None if nothing in it is random
    seconds:    wall time of the experiment in seconds
    defaults:   names of the parameters that were left at their defaults
    Raises:     ValueError if the table is empty, or the name or profile is not valid
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table.empty:
        raise ValueError(f"table {name} must have rows, got none")
    record = {
        "git": _git(),
        "profile": profile,
        "parameters": recorded(parameters),
        "defaults": sorted(defaults),
        "seed": seed,
        "versions": _versions(),
        "hardware": _hardware(),
        "wall_seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = {**(arrow.schema.metadata or {}), METADATA_KEY: json.dumps(record, allow_nan=False).encode()}
    with replacing(file(name, profile)) as temporary:
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


def recorded(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as a record holds them: JSON values, of absolute paths only the last name."""
    return {str(name): _plain(value) for name, value in parameters.items()}


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


def _plain(value: Any) -> Any:
    """JSON form of a parameter; infinity and NaN, which JSON does not have, become text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and PurePath(value).is_absolute()):
        return PurePath(value).name
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value) if isinstance(value, float) else repr(value)
