"""What each notebook passes to `results.run`, read from its cells without running them.

A notebook is the definition of its profiles: its parameters cell is quick, full/NAME.yaml changes that for full. A call
`results.run("13_policies", policies.sweep, profile=profile, seed=0, capacities_gb=capacities_gb)` then says which
parameters the table of a profile must have been made with.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import yaml

from figures import paths, results

Cells = tuple[tuple[bool, ast.Module], ...]


def names() -> list[str]:
    """Names of all notebooks, without the suffix, in order."""
    return sorted(file.stem for file in paths.notebooks().glob("[0-9][0-9]_*.ipynb"))


def parameters(name: str, profile: str) -> dict[str, Any]:
    """The notebook's parameters in `profile`: those of its parameters cell, and what full changes.

    Raises: ValueError as `overrides`, or on a parameters cell that holds other than `name = literal`
    """
    values: dict[str, Any] = {}
    for tagged, tree in _cells(name):
        if tagged:
            for statement in tree.body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=parameter)]):
                        values[parameter] = ast.literal_eval(statement.value)
                    case _:
                        raise ValueError(f"notebook {name}: a parameter must be `name = literal`")
    return {**values, **(overrides(name, profile, known=list(values)) if profile != "quick" else {})}


def overrides(name: str, profile: str, known: list[str] | None = None) -> dict[str, Any]:
    """What `profile` sets over the notebook's parameters cell: nothing in quick, full/NAME.yaml in full.

    Raises: ValueError on a key that the parameters cell does not have, or a YAML without `profile: full`
    """
    if name not in names():
        raise ValueError(f"notebook must be one of {', '.join(names()) or 'none'}, got {name!r}")
    if profile == "quick":
        return {}
    if profile != "full":
        raise ValueError(f"a notebook runs in profile quick or full, got {profile!r}")
    known = list(parameters(name, "quick")) if known is None else known
    file = paths.notebooks() / "full" / f"{name}.yaml"
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {"profile": "full"}
    except yaml.YAMLError as error:
        raise ValueError(f"full/{name}.yaml: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or values.get("profile") != "full":
        raise ValueError(f"full/{name}.yaml must be a mapping with `profile: full`, got {values!r}")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"full/{name}.yaml: {key} is not a parameter of notebook {name}: {hint}")
    return values


def tables() -> dict[str, str]:
    """Table -> the notebook that makes it: the first by name, as somebody's copy of a notebook makes its tables too."""
    return {table: name for name in reversed(names()) for table in tables_of(name)}


def tables_of(name: str) -> tuple[str, ...]:
    """Tables that a notebook makes."""
    return _tables(*_version(name))


def notebook_of(table: str) -> str:
    """The notebook that makes `table`. Raises: ValueError if none does."""
    made = tables()
    if table not in made:
        raise ValueError(f"a notebook must make table {table}, none calls results.run({table!r}, ...)")
    return made[table]


def passed(table: str, profile: str) -> dict[str, Any]:
    """The parameters that the notebook's call for `table` passes in `profile`, as a record holds them.

    Raises: ValueError on a call whose parameters are not literals or made of parameters of the notebook
    """
    name = notebook_of(table)
    known = parameters(name, "quick" if profile == "quick" else "full")
    for statement in (statement for tagged, tree in _cells(name) if not tagged for statement in tree.body):
        for called, keywords in _runs(statement):
            if called == table:
                return results.recorded(_evaluated(name, keywords, known))
        _assign(statement, known)
    raise AssertionError(f"notebook {name} makes table {table}")


def other_parameters(table: str, profile: str, record: Mapping[str, Any]) -> str:
    """In which parameters the run behind a table differs from its profile's, in words; empty if in none."""
    expected, found = passed(table, profile), record["parameters"]
    differ = [
        f"{name} = {found.get(name)!r} ({profile}: {value!r})"
        for name, value in expected.items()
        if name not in found or found[name] != value
    ]
    defaults = record.get("defaults", [])
    differ += [
        f"{name} = {value!r} ({profile}: its default)"
        for name, value in found.items()
        if name not in expected and name not in defaults
    ]
    return ", ".join(differ)


def _cells(name: str) -> Cells:
    return _parsed(*_version(name))


def _version(name: str) -> tuple[str, int]:
    file = paths.notebooks() / f"{name}.ipynb"
    return str(file), file.stat().st_mtime_ns


@lru_cache(maxsize=256)
def _tables(file: str, modified_ns: int) -> tuple[str, ...]:
    """Tables that a notebook makes; none if the file is no notebook, so that a broken one concerns its own alone."""
    try:
        cells = _parsed(file, modified_ns)
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(table for _, tree in cells for table, _ in _runs(tree))


@lru_cache(maxsize=256)
def _parsed(file: str, modified_ns: int) -> Cells:
    """(whether it is the parameters cell, its code) of each code cell that is Python, without IPython's own lines."""
    with open(file, encoding="utf-8") as opened:
        cells = json.load(opened)["cells"]
    parsed = []
    for cell in cells:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            code = "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)
            with suppress(SyntaxError):  # `%%bash`, `name?`: no call that could be read
                parsed.append(("parameters" in cell["metadata"].get("tags", []), ast.parse(code)))
    return tuple(parsed)


def _runs(tree: ast.AST) -> list[tuple[str, list[ast.keyword]]]:
    """Table and keywords of each `results.run(table, experiment, ...)`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="results"), attr="run"),
                args=[ast.Constant(value=str(table)), *_],
                keywords=keywords,
            ):
                found.append((table, keywords))
    return found


def _evaluated(name: str, keywords: list[ast.keyword], known: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for keyword in keywords:
        try:
            value = _literal(keyword.value, known)
        except ValueError as error:
            raise ValueError(f"notebook {name}: {ast.unparse(keyword)}: {error}") from None
        values.update(value if keyword.arg is None else {keyword.arg: value})
    values.pop("profile", None)
    return values


def _assign(statement: ast.stmt, known: dict[str, Any]) -> None:
    """Add a name that is assigned a literal or what is known; another assignment takes the name away."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)]):
            try:
                known[target] = _literal(statement.value, known)
            except ValueError:
                known.pop(target, None)


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, known) for item in items]
        case ast.Dict(keys=keys, values=items):
            merged: dict[Any, Any] = {}
            for key, item in zip(keys, items, strict=True):
                merged |= _literal(item, known) if key is None else {_literal(key, known): _literal(item, known)}
            return merged
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError("it must be a literal, or made of parameters of the notebook") from None
