"""Entries of registry.toml: what each data set holds, how it is made, and the public sources that it is made from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("registry.toml")


class DatasetUnavailable(Exception):
    """The data set is neither at hand nor to be had; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """Raw files of a repository at a full commit, or of PyPI packages that are taken as data."""

    files: tuple[str, ...]  # paths in the repository or the packages, in the recipe's order; `*`: any part of a name
    mb: float  # size of the download, about
    repository: str = ""
    commit: str = ""
    archive: bool = False  # the repository is downloaded as one archive, not file by file
    packages: tuple[str, ...] = ()  # requirements with exact versions, such as wordllama==0.4.0.post1
    left_out: tuple[str, ...] = ()  # what `files` matches but is not part of the data set

    @property
    def origin(self) -> str:
        """Where the files come from, for people."""
        if self.packages:
            return f"PyPI: {', '.join(self.packages).replace('==', ' ')}"
        return f"{self.repository} @ {self.commit[:8]}"


@dataclass(frozen=True)
class Dataset:
    """One file, named by its content."""

    name: str
    file: str  # path inside a mirror or the cache
    sha256: str  # of the content, see `content.sha256`
    licence: str
    redistributable: bool
    description: str
    citation: str
    sources: tuple[Source, ...]  # in the order in which they are tried
    recipe: str = "copy"  # key of `recipes.RECIPES`
    relabel: str = ""  # array of token ids, hashed with the ids numbered by first appearance
    notebooks: tuple[int, ...] = ()  # numbers of the notebooks that read it


def names() -> list[str]:
    """Names of all data sets, in the registry's order."""
    return list(_registry())


def get(name: str) -> Dataset:
    """The registry's entry. Raises: ValueError if there is none of that name."""
    if name not in _registry():
        raise ValueError(f"data set must be one of {', '.join(names())}, got {name!r}")
    return _registry()[name]


@cache
def _registry() -> dict[str, Dataset]:
    entries = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: _dataset(name, entry) for name, entry in entries.items()}


def _dataset(name: str, entry: dict[str, Any]) -> Dataset:
    entry["sources"] = [_source(**source) for source in entry["sources"]]
    return Dataset(name, **_with_tuples(entry))


def _source(*, files: list[str], each: list[str] | None = None, **fields: Any) -> Source:
    """each: names that stand for `{}` in `files`, one file a name."""
    paths = tuple(path.replace("{}", name) for path in files for name in each or [""])
    return Source(paths, **_with_tuples(fields))


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
