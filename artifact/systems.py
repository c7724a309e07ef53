"""The three systems, by name only: the shared core imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

SYSTEMS = ("prefix_cache", "elastic_moe", "sparse_sync")


def modules(part: str) -> Iterator[ModuleType]:
    """`artifact.<system>.<part>` of each system that has it, such as its `plots` or its `commands`."""
    for system in SYSTEMS:
        if find_spec(f"artifact.{system}") and find_spec(f"artifact.{system}.{part}"):
            yield importlib.import_module(f"artifact.{system}.{part}")
