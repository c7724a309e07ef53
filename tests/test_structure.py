"""How the tree is built: thin modules, and no name that stands for two things."""

import ast

import pytest

from figures import paths

MODULES = [file for part in ("artifact", "figures") for file in sorted((paths.ROOT / part).rglob("*.py"))]
MAX_LINES = 500


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(paths.ROOT)))
def test_a_module_is_at_most_500_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(paths.ROOT)))
def test_a_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("system", ["prefix_cache", "elastic_moe", "sparse_sync"])
def test_no_function_shares_its_name_with_a_module_of_its_system(system):
    root = paths.ROOT / "artifact" / system
    names = {path.stem for path in root.rglob("*") if path.suffix == ".py" or path.is_dir()}
    for file in root.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in names, file
