"""Where things lie, from any working directory: results, figures, notebooks, the data cache."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("quick", "full", "reference")


def results(profile: str) -> Path:
    """Directory of the tables of `profile`; `reference` is committed, the others are generated.

    Raises: ValueError if `profile` is not one of PROFILES
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    return ROOT / "results" / profile


def figures() -> Path:
    """Directory of the committed figures, drawn from the reference tables."""
    return ROOT / "figures"


def notebooks() -> Path:
    """Directory of the notebooks; `full/` inside holds one YAML of overrides for each."""
    return ROOT / "notebooks"


def data_cache() -> Path:
    """Directory for downloaded data: `ARTIFACT_CACHE`, else the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ARTIFACT_CACHE") or Path(base) / "artifact")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it on success and removed on any error.

    A reader sees the old file or the new one, never half of one. The suffix is kept, as writers choose by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
