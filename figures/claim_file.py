"""claims.toml as checked objects: each claim of the papers once, with the rule that decides its state."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, StringConstraints, ValidationError, model_validator

from figures import calls, paths
from figures.reducers import Strict, Value

SYSTEMS = ("Marconi", "Lazarus", "Zen")
Special = Annotated[str, StringConstraints(pattern=r"^[a-z_]+\.[a-z_0-9]+:[a-z_0-9]+$")]


class Rule(Strict):
    """What counts, written before the run: exactly one of these.

    `relative` (a fraction) and `absolute` are distances to the paper's value.
    """

    relative: float | None = Field(default=None, gt=0)
    absolute: float | None = Field(default=None, ge=0)
    at_least: float | None = None
    at_most: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Rule:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a rule must be exactly one of {', '.join(Rule.model_fields)}")
        if self.between is not None and self.between[0] > self.between[1]:
            raise ValueError(f"between must be [lower, upper], got {list(self.between)}")
        return self

    def holds(self, value: float, paper: float | None) -> bool:
        """Whether `value` keeps the rule; `paper` is needed by `relative` and `absolute` only."""
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        if self.between is not None:
            return self.between[0] <= value <= self.between[1]
        assert paper is not None
        slack = self.relative * abs(paper) if self.relative is not None else self.absolute
        assert slack is not None
        return abs(value - paper) <= slack * (1 + 1e-9)  # a value on the bound holds, however it is rounded


class Claim(Strict):
    """One claim of a paper. The fields are described at the head of claims.toml."""

    id: str = Field(pattern=rf"^({'|'.join(SYSTEMS).lower()})-[a-z0-9-]+$")
    table: str
    evidence: Literal["measured", "simulated"]
    figure: str
    sentence: str
    paper: float | None = None
    unit: str = ""
    value: Value | Special | None = None
    reproduced: Rule | None = None
    direction: Rule | None = None
    reason: str = ""
    needs: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        if self.needs is None and None in (self.value, self.reproduced):
            raise ValueError("value and reproduced must be given, or needs instead of them")
        if self.needs is not None and any(part is not None for part in (self.value, self.reproduced, self.direction)):
            raise ValueError("needs excludes value, reproduced and direction")
        for rule in (self.reproduced, self.direction):
            if self.paper is None and rule and (rule.relative is not None or rule.absolute is not None):
                raise ValueError("relative and absolute need the paper's value in `paper`")
        return self

    @property
    def system(self) -> str:
        """Marconi, Lazarus or Zen, from the id."""
        return next(name for name in SYSTEMS if self.id.startswith(f"{name.lower()}-"))

    @property
    def notebook(self) -> str:
        """The notebook that makes the claim's table; empty if none does."""
        return calls.tables().get(self.table, "")

    def metric(self) -> Callable[[pd.DataFrame], float]:
        """The claim's value as a function of its table. Raises: ValueError if `value` names no function"""
        assert self.value is not None
        if isinstance(self.value, Value):
            return self.value
        module, _, function = self.value.partition(":")
        try:
            found: Callable[[pd.DataFrame], float] = getattr(importlib.import_module(f"figures.{module}"), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"value must name a function of figures/, got {self.value}: {error}") from error
        return found


def read(path: Path | None = None) -> list[Claim]:
    """All claims of claims.toml, in its order. Raises: ValueError naming the claim and the wrong field."""
    path = path or paths.ROOT / "claims.toml"
    return list(_read(path.read_text(encoding="utf-8")))


@cache
def _read(text: str) -> tuple[Claim, ...]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"claims.toml: {error}") from None
    claims: dict[str, Claim] = {}
    for table, group in content.items():
        if not isinstance(group, dict):
            raise ValueError(f"claims.toml: {table} must be a table of claims, got {group!r}")
        shared = {field: entry for field, entry in group.items() if not isinstance(entry, dict)}
        for name, entry in group.items():
            if isinstance(entry, dict):
                if name in claims:
                    raise ValueError(f"claims.toml: claim {name}: id must be unique")
                claims[name] = _claim(name, {"table": table, "id": name, **shared, **entry})
    return tuple(claims.values())


def _claim(name: str, fields: dict[str, Any]) -> Claim:
    try:
        return Claim(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "fields"
        raise ValueError(f"claims.toml: claim {name}: {where}: {first['msg']}") from None


def get(claim_id: str) -> Claim:
    """The claim of that id. Raises: ValueError if there is none."""
    found = {claim.id: claim for claim in read()}
    if claim_id not in found:
        raise ValueError(f"claim must be one of {', '.join(found)}, got {claim_id!r}")
    return found[claim_id]


def paper(claim_id: str) -> float:
    """The paper's value of that claim, for the mark in a figure. Raises: ValueError if it states none."""
    value = get(claim_id).paper
    if value is None:
        raise ValueError(f"claim {claim_id} states no value of the paper")
    return value
