"""The commands of the evaluation: `python -m artifact scorecard`, `figures` and `run`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

Profile = Annotated[Literal["quick", "full", "reference"], typer.Option(help="whose tables")]


def register(app: typer.Typer) -> None:
    """Add the evaluation's commands."""
    for name, command in (("scorecard", scorecard), ("figures", redraw), ("run", run)):
        app.command(name, rich_help_panel="Evaluation")(command)


def state() -> dict[str, str]:
    """What `doctor` says of the checkout."""
    from figures import calls, paths

    tables = {profile: len(list(paths.results(profile).glob("*.parquet"))) for profile in paths.PROFILES}
    return {"notebooks": f"{len(calls.names())}", **{name: f"{count} tables" for name, count in tables.items()}}


def scorecard(
    profile: Profile = "reference",
    write: Annotated[bool, typer.Option("--write", help="also bring CLAIMS.md up to date")] = False,
) -> None:
    """Print the claims of the papers with their computed states."""
    from rich.console import Console
    from rich.table import Table

    from figures import claims

    columns = ("claim", "figure", "paper", "here", "state", "evidence")
    card = claims.scorecard(profile)
    table = Table(*columns, title=f"{claims.summary(card)} (profile {profile})", title_justify="left")
    for row in card.to_dict("records"):
        paper, here = (claims.number(row[side], row["unit"]) for side in ("paper", "here"))
        table.add_row(row["id"], row["figure"], paper, here, row["state"], row["evidence"])
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if write:
        print(f"wrote {claims.write_page().name}")


def redraw() -> None:
    """Draw every figure again from the reference tables."""
    from figures.style import redraw_all

    written = redraw_all()
    print(f"drew {len(written) // 2} figures into figures/")


def run(
    notebook: Annotated[str, typer.Argument(help="a notebook's name, such as 90_scorecard")],
    profile: Annotated[Literal["quick", "full"], typer.Option(help="whose parameters")] = "quick",
) -> None:
    """Execute one notebook into results/<profile>/."""
    from figures import notebooks

    try:
        target = notebooks.run(notebook, profile)
    except notebooks.NotebookFailed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{notebook} ({profile}) is in {target.parent.parent.name}/{profile}/{target.name}")
