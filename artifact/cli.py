"""What the commands share: their options, and how reports and errors are printed. Typer itself guards the values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import typer

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Commands = Mapping[str, Callable[..., None]]
Device = Literal["cpu", "cuda"]

MB, GB = 10**6, 10**9

# A wrong command, option or value. Typer has this class but exports only its subclasses.
UsageError: Any = typer.BadParameter.__base__


def add_system(app: typer.Typer, name: str, title: str, commands: Commands, old: Commands, examples: str) -> None:
    """Add a system's commands to `app` as a group, with a line for each example, and their old names, hidden."""
    lines = "\n\n".join(f"python -m artifact {name} {line.strip()}" for line in examples.strip().splitlines())
    group = typer.Typer(help=title, epilog=f"Examples:\n\n{lines}", no_args_is_help=True)
    for command, function in commands.items():
        group.command(command)(function)
    for command, function in old.items():
        app.command(command, hidden=True)(function)
    app.add_typer(group, name=name, rich_help_panel="Systems")


def named(choices: Any, what: str) -> Any:
    """An option for a choice among many names, which the help lists."""
    return typer.Option(metavar="NAME", help=f"{what}: {', '.join(get_args(choices))}")


def seed(what: str) -> Any:
    """The option `--seed`."""
    return typer.Option(min=0, max=2**63 - 1, help=f"seed of {what}")


def capacity(unit_bytes: int, what: str) -> Any:
    """An option for an amount of memory in units of `unit_bytes` (a power of 10), from 1 byte to 10^18 bytes."""
    unit = f"10^{len(str(unit_bytes)) - 1} bytes"
    return typer.Option(min=1 / unit_bytes, max=10**18 // unit_bytes, help=f"{what}, in units of {unit}")


def positive(what: str) -> Any:
    """An option for a finite number above 0."""
    return typer.Option(parser=_positive, metavar="FLOAT", help=what)


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise ValueError("must be positive and finite")
    return number


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON, which has no word for numbers that are not finite: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(report: dict[str, Any], as_json: bool) -> None:
    """Print a report as one JSON object, or a line a value."""
    if as_json:
        print(to_json(report))
        return
    for name, value in report.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        print(f"{name:<31} {value:,}" if number else f"{name:<31} {value}")


def problem(error: Any) -> str:
    """What is wrong with a command line, on one line: "--nodes must be at least 1, got 0"."""
    errors = getattr(error.__cause__, "errors", None)  # of pydantic, which reads the values for typer
    if errors is None:
        return " ".join(error.format_message().split())
    found = errors()[0]
    option, text = error.param.get_error_hint().replace("'", ""), f"{found['input']}"
    rule = found["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if choices := re.search(r" is not one of (.*)\.$", rule):
        rule = f"must be one of {choices[1]}".replace("'", "")
    if ", got " not in rule:
        rule += f", got {text}" if re.fullmatch(r"[-+\d.e]+|[-+]?(nan|inf)", text) else f", got {text!r}"
    return f"{option} {rule}" if rule.startswith("must ") else f"{option}: {rule}"
