"""Public names of a package, imported when they are first used (PEP 562): a simulator does not wait for torch."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Door = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def lazy(package: str, file: str) -> Door:
    """`__getattr__`, `__dir__` and `__all__` of `package`, whose `__init__` is `file`.

    The names are those that `file` imports under `if TYPE_CHECKING:`, for type checkers and editors: each stands once.
    """
    module_of = public_names(file)

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if (module := module_of[name]) == package:  # a module of the package itself
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return __getattr__, __dir__, sorted(module_of)


def public_names(file: str) -> dict[str, str]:
    """Name -> module of every import under `if TYPE_CHECKING:` in `file`."""
    guarded = [
        statement
        for node in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
    ]
    return {alias.name: str(statement.module) for statement in guarded for alias in statement.names}
