"""The door: every public name is there, documented and found without torch; no name means a module and a function."""

import ast
import importlib
import inspect
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from artifact import sparse_sync

MODULE_OF = {name: module for module, names in sparse_sync._NAMES.items() for name in names}


def documented_constants(module):
    """Names that a string follows, as an attribute's docstring does."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(following, ast.Expr):
            target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            yield target.id


@pytest.mark.parametrize("name", sparse_sync.__all__)
def test_a_public_name_is_found_and_has_a_docstring_of_its_own(name):
    value = getattr(sparse_sync, name)
    module = importlib.import_module(f"{sparse_sync.__name__}.{MODULE_OF[name]}")
    assert getattr(module, name) is value and name in dir(sparse_sync)
    if inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value):
        assert len(value.__doc__) > 15
        assert not value.__doc__.startswith(f"{name}(")  # the one that a dataclass makes
    else:
        assert name in documented_constants(module)


def test_a_name_that_is_not_public_is_refused():
    assert set(MODULE_OF) == set(sparse_sync.__all__)
    with pytest.raises(AttributeError, match=r"module 'artifact.sparse_sync' has no attribute 'average'"):
        sparse_sync.average  # noqa: B018


def test_the_door_opens_without_torch():
    code = (
        "import sys, artifact.sparse_sync as door; dir(door), door.__all__; loaded = set(sys.modules)\n"
        "assert not loaded & {'torch', 'numba', 'numpy', 'pandas'}, loaded\n"
        "door.SparseTensor; assert 'torch' in sys.modules and 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_function_or_class_has_the_name_of_a_module():
    root = Path(sparse_sync.__file__).parent
    sources = list(root.rglob("*.py"))
    modules = {path.stem for path in sources} | {path.parent.name for path in sources}
    assert {"schemes", "accounting", "topk"} <= modules
    for path in sources:
        body = ast.parse(path.read_text()).body
        defined = {each.name for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)}
        assert not defined & modules, path
