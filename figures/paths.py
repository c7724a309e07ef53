"""Where things lie in the checkout, from any working directory: results, figures, notebooks."""

from __future__ import annotations

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
