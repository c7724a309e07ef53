"""The three systems, by name only: the shared core imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

from artifact import paths

SYSTEMS = ("prefix_cache", "elastic_moe", "sparse_sync")


def commands() -> Iterator[ModuleType]:
    """The commands of each system and, in a checkout, those of the evaluation."""
    for system in SYSTEMS:
        yield importlib.import_module(f"artifact.{system}.commands")
    if (paths.ROOT / "figures" / "commands.py").exists():
        yield importlib.import_module("figures.commands")
