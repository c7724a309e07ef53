"""The state of each claim, computed from a table and never typed; the scorecard; its copy in CLAIMS.md."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd

from artifact.paths import replacing
from figures import calls, paths, results
from figures.claim_file import Claim, Rule, get, paper, read

__all__ = [
    "CheckedClaim",
    "Claim",
    "Rule",
    "check",
    "get",
    "markdown_table",
    "number",
    "paper",
    "read",
    "scorecard",
    "summary",
    "write_page",
]

REPRODUCED, DIRECTION, DIFFERS, NOT_RUN = "reproduced", "direction holds", "differs", "not run"
OTHER_PARAMETERS, ERROR = "other parameters", "error"
COLUMNS = (
    "id",
    "system",
    "figure",
    "claim",
    "paper",
    "here",
    "unit",
    "state",
    "evidence",
    "notebook",
    "reason",
)


JudgedTable = tuple[pd.DataFrame | None, str, str]


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with the value that a profile's table gives (None if it cannot) and the state that follows.

    reason: why, where the state is not `reproduced`
    """

    claim: Claim
    value: float | None
    state: str
    reason: str = ""


def check(claim: Claim | str, profile: str) -> CheckedClaim:
    """Compute the claim from its table of `profile`.

    `not run`: the table is missing, or the value is NaN, as the profile lacks the rows it needs.
    `other parameters`: the table was made with other parameters than the profile's; nothing is computed from it.
    `error`: the value cannot be computed from the table.
    """
    claim = get(claim) if isinstance(claim, str) else claim
    return _check(claim, _judged_table(claim.table, profile))


def _check(claim: Claim, read_table: JudgedTable) -> CheckedClaim:
    if claim.needs is not None:
        return CheckedClaim(claim, None, f"needs {claim.needs}", claim.reason)
    assert claim.reproduced is not None
    table, state, reason = read_table
    if table is None:
        return CheckedClaim(claim, None, state, reason)
    try:
        value = float(claim.metric()(table))
    except Exception as error:
        return CheckedClaim(claim, None, ERROR, f"{type(error).__name__}: {error}")
    if math.isnan(value):
        return CheckedClaim(claim, None, NOT_RUN)
    if claim.reproduced.holds(value, claim.paper):
        return CheckedClaim(claim, value, REPRODUCED)
    holds = claim.direction is not None and claim.direction.holds(value, claim.paper)
    return CheckedClaim(claim, value, DIRECTION if holds else DIFFERS, claim.reason)


def _judged_table(name: str, profile: str) -> JudgedTable:
    """The table if claims may be judged on it; otherwise their state, and why. A damaged file is an `error` too."""
    try:
        if others := calls.other_parameters(name, profile, results.provenance(name, profile)):
            return None, OTHER_PARAMETERS, f"made with {others}"
        return results.load(name, profile), "", ""
    except FileNotFoundError:
        return None, NOT_RUN, ""
    except Exception as error:
        return None, ERROR, f"{type(error).__name__}: {error}"


def scorecard(profile: str = "reference", notebook: str | None = None) -> pd.DataFrame:
    """One row a claim, in the order of claims.toml; with `notebook`, the claims of that notebook only.

    Raises: ValueError on an unknown profile, or a claims.toml that is not valid
    """
    paths.results(profile)  # refuses an unknown profile, even where no claim has a table yet
    read_table = cache(partial(_judged_table, profile=profile))
    rows = []
    for claim in read():
        if notebook not in (None, claim.notebook):
            continue
        checked = _check(claim, read_table(claim.table))
        rows.append(
            {
                "id": claim.id,
                "system": claim.system,
                "figure": claim.figure,
                "claim": claim.sentence,
                "paper": claim.paper,
                "here": checked.value,
                "unit": claim.unit,
                "state": checked.state,
                "evidence": claim.evidence,
                "notebook": claim.notebook,
                "reason": checked.reason,
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"paper": "float64", "here": "float64"})


def summary(card: pd.DataFrame) -> str:
    """How many claims of a scorecard are in each state, in one line."""
    states = Counter(card["state"])
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return f"{states.total()} claims: {counted}" if states else "0 claims"


def markdown_table(profile: str = "reference") -> str:
    """The scorecard as Markdown: a summary, a row a claim, and the reasons for what is not reproduced."""
    card = scorecard(profile)
    tables = {claim.id: claim.table for claim in read()}
    lines = [
        f"{summary(card)}.",
        "",
        "| Claim | Figure | What the paper says | Paper | Here | State | Evidence | Notebook | Minutes |",
        "|---|---|---|--:|--:|---|---|---|--:|",
    ]
    rows = card.to_dict("records")
    for row in rows:
        cells = (
            f"`{row['id']}`",
            f"{row['system']}, {row['figure']}",
            row["claim"],
            number(row["paper"], row["unit"]),
            number(row["here"], row["unit"]),
            row["state"],
            row["evidence"],
            f"[{row['notebook']}](notebooks/{row['notebook']}.ipynb)",
            _minutes(tables[row["id"]], profile),
        )
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    reasons = [f"- `{row['id']}` ({row['state']}): {' '.join(row['reason'].split())}" for row in rows if row["reason"]]
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def _minutes(table: str, profile: str) -> str:
    """Wall time of the run that made the table, in minutes; a dash if it has not been run."""
    try:
        return f"{results.provenance(table, profile)['wall_seconds'] / 60:.1f}"
    except FileNotFoundError:
        return "–"


def number(value: float, unit: str = "") -> str:
    """Four significant digits with the unit; a dash for no value."""
    if pd.isna(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


HEAD = """# Claims

Every claim of the papers that is checked here, from [claims.toml](claims.toml), with the state that the committed
tables of `results/reference` give it. `Minutes` is the wall time of the experiment that made the table in that run, on
2 cores. Written by `python -m artifact scorecard --write`; do not edit.

"""


def write_page(path: Path | None = None) -> Path:
    """Bring CLAIMS.md up to date with the reference tables."""
    path = path or paths.ROOT / "CLAIMS.md"
    with replacing(path) as temporary:
        temporary.write_text(page(), encoding="utf-8")
    return path


def page() -> str:
    """The text of CLAIMS.md."""
    return f"{HEAD}{markdown_table('reference')}\n"
