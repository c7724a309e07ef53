"""What `artifact.elastic_moe` exports: every name resolves and is documented, and no simulator waits for torch."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import artifact.elastic_moe as door


def public_names(module) -> dict[str, str | None]:
    """Public names that the module defines at its top, with their docstrings."""
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    found: dict[str, str | None] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            document = text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else None
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = document
    return {name: document for name, document in found.items() if not name.startswith("_")}


MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(door.__path__, door.__name__ + ".")]
DEFINED = {module.__name__: public_names(module) for module in MODULES}


@pytest.mark.parametrize("name", door.__all__)
def test_every_name_of_the_door_resolves_and_is_documented(name: str) -> None:
    value = getattr(door, name)
    assert name in dir(door)
    documents = [names[name] for names in DEFINED.values() if name in names]
    assert len(documents) == 1, f"{name} is defined in {len(documents)} modules"
    assert documents[0]
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name


def test_the_door_lists_each_name_once_and_refuses_others() -> None:
    assert len(set(door.__all__)) == len(door.__all__)
    assert {
        "allocate",
        "place",
        "Placement",
        "recovery",
        "train",
        "simulate",
        "FailureTrace",
        "LoadTrace",
        "Preset",
    } <= (set(door.__all__))
    with pytest.raises(AttributeError, match=r"artifact\.elastic_moe.*'nowhere'"):
        _ = door.nowhere


def test_no_function_or_class_has_the_name_of_a_module() -> None:
    modules = {module.__name__.rpartition(".")[2] for module in MODULES}
    assert not {(module, name) for module, names in DEFINED.items() for name in names if name in modules}


USES_NO_TORCH = """
import sys
from artifact.elastic_moe import periodic_failures, place, recovery, simulate
recovery(place("best", [2, 2, 3], [3, 2, 2]))
simulate("tiny", "lazarus", periodic_failures(5, 4), "a10g", 10)
assert "torch" not in sys.modules
"""


def test_placement_and_simulation_import_no_torch() -> None:
    subprocess.run([sys.executable, "-c", USES_NO_TORCH], check=True)
