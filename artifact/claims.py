"""The state of each claim, computed from a table and never typed; the scorecard; its copy in REPRODUCE.md."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from artifact import paths, results
from artifact.claim_file import Claim, Rule, get, read

__all__ = [
    "CheckedClaim",
    "Claim",
    "Rule",
    "check",
    "get",
    "markdown_table",
    "number",
    "read",
    "scorecard",
    "summary",
    "write_block",
]

REPRODUCED, DIRECTION, DIFFERS, NOT_RUN = "reproduced", "direction holds", "differs", "not run"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
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


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with the value that a profile's table gives (None if it cannot) and the state that follows."""

    claim: Claim
    value: float | None
    state: str


def check(claim: Claim | str, profile: str) -> CheckedClaim:
    """Compute the claim from its table of `profile`.

    `not run` means that the table is missing, or that the metric is NaN: the profile lacks the rows it needs.

    Raises: ValueError naming the claim, if its metric cannot be computed from the table
    """
    if isinstance(claim, str):
        claim = get(claim)
    if claim.needs is not None:
        return CheckedClaim(claim, None, f"needs {claim.needs}")
    assert claim.table is not None and claim.reproduced is not None
    try:
        table = results.load(claim.table, profile)
    except FileNotFoundError:
        return CheckedClaim(claim, None, NOT_RUN)
    metric = claim.compute()
    try:
        value = float(metric(table))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"claim {claim.id}: {claim.metric} failed on {claim.table} ({profile}): {told}") from error
    if math.isnan(value):
        return CheckedClaim(claim, None, NOT_RUN)
    if claim.reproduced.holds(value, claim.paper):
        return CheckedClaim(claim, value, REPRODUCED)
    if claim.direction is not None and claim.direction.holds(value, claim.paper):
        return CheckedClaim(claim, value, DIRECTION)
    return CheckedClaim(claim, value, DIFFERS)


def scorecard(profile: str = "reference", notebook: str | None = None) -> pd.DataFrame:
    """One row a claim, in the order of claims.toml; with `notebook`, the claims of that notebook only.

    Raises: ValueError on an unknown profile, or as `check`
    """
    paths.results(profile)  # refuses an unknown profile, even where no claim has a table yet
    rows = []
    for claim in read():
        if notebook not in (None, claim.notebook):
            continue
        checked = check(claim, profile)
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
                "reason": "" if checked.state in (REPRODUCED, NOT_RUN) else claim.reason,
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
    minutes = {claim.id: claim.minutes for claim in read()}
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
            f"{minutes[row['id']].quick:g} / {minutes[row['id']].full:g}",
        )
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    reasons = [f"- `{row['id']}` ({row['state']}): {' '.join(row['reason'].split())}" for row in rows if row["reason"]]
    return "\n".join([*lines, *(["", *reasons] if reasons else [])])


def number(value: float, unit: str = "") -> str:
    """Four significant digits with the unit; a dash for no value."""
    if pd.isna(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{text} {unit}".strip()


def replace_block(text: str, table: str) -> str:
    """`text` with `table` between the claims markers. Raises: ValueError unless each marker is there once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must hold {BEGIN} and then {END}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def write_block(path: Path | None = None) -> Path:
    """Bring the claims table of REPRODUCE.md up to date with the reference tables."""
    path = path or paths.ROOT / "REPRODUCE.md"
    text = replace_block(path.read_text(encoding="utf-8"), markdown_table("reference"))
    with paths.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
