"""claims.toml as checked objects: each claim of the papers once, with the rule that decides its state."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from artifact import paths


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Minutes(Strict):
    """Compute minutes of the claim's notebook on 2 cores."""

    quick: float = Field(ge=0)
    full: float = Field(ge=0)


class Claim(Strict):
    """One claim of a paper. The fields are described at the head of claims.toml."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    system: str
    figure: str
    sentence: str
    paper: float | None = None
    unit: str = ""
    metric: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    table: str | None = None
    reproduced: Rule | None = None
    direction: Rule | None = None
    evidence: Literal["measured", "simulated"]
    notebook: str
    minutes: Minutes
    reason: str = ""
    needs: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        computed = (self.metric, self.table, self.reproduced)
        if self.needs is None and None in computed:
            raise ValueError("metric, table and reproduced must be given, or needs instead of them")
        if self.needs is not None and any(part is not None for part in (*computed, self.direction)):
            raise ValueError("needs excludes metric, table, reproduced and direction")
        for rule in (self.reproduced, self.direction):
            if self.paper is None and rule and (rule.relative is not None or rule.absolute is not None):
                raise ValueError("relative and absolute need the paper's value in `paper`")
        return self

    def compute(self) -> Callable[[pd.DataFrame], float]:
        """The metric: a function of the table. Raises: ValueError if `metric` names none."""
        module, _, function = str(self.metric).partition(":")
        try:
            found: Callable[[pd.DataFrame], float] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"claim {self.id}: metric must name a function, got {self.metric}: {error}") from error
        return found


def read(path: Path | None = None) -> list[Claim]:
    """All claims of claims.toml, in its order. Raises: ValueError naming the claim and the wrong field."""
    path = path or paths.ROOT / "claims.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"claims.toml: {error}") from None
    if unknown := set(content) - {"claim"}:
        raise ValueError(f"claims.toml: it must hold [[claim]] tables only, got {', '.join(sorted(unknown))}")
    claims: dict[str, Claim] = {}
    for position, entry in enumerate(content.get("claim", [])):
        name = entry.get("id", f"number {position + 1}")
        try:
            claim = Claim(**entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "fields"
            raise ValueError(f"claims.toml: claim {name}: {where}: {first['msg']}") from None
        if claim.id in claims:
            raise ValueError(f"claims.toml: claim {name}: id must be unique")
        claims[claim.id] = claim
    return list(claims.values())


def get(claim_id: str) -> Claim:
    """The claim of that id. Raises: ValueError if there is none."""
    found = {claim.id: claim for claim in read()}
    if claim_id not in found:
        raise ValueError(f"claim must be one of {', '.join(found)}, got {claim_id!r}")
    return found[claim_id]
