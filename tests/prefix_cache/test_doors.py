"""The public names of the prefix cache."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from itertools import pairwise

import pytest

import artifact.prefix_cache as door


def docstring_of_constant(module, name):
    """The string that follows the assignment of `name` in its module, or None."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in pairwise(body):
        names = [target.id for target in getattr(statement, "targets", []) if isinstance(target, ast.Name)]
        if name in names and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return following.value.value
    return None


@pytest.mark.parametrize("name", door.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value, module = getattr(door, name), importlib.import_module(f"{door.__name__}.{door._MODULE_OF[name]}")
    assert value is getattr(module, name) and name in dir(door)
    is_code = inspect.isclass(value) or inspect.isroutine(value)
    documented = value.__doc__ if is_code else docstring_of_constant(module, name)
    assert documented and (not is_code or not documented.startswith(f"{name}(")), f"{name} has no docstring"


def test_type_checkers_see_the_same_names():
    checked = [node for node in ast.parse(inspect.getsource(door)).body if isinstance(node, ast.If)]
    imports = [(alias.name, node.module) for node in checked[0].body for alias in node.names]
    assert dict(imports) == {name: f"{door.__name__}.{module}" for name, module in door._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'PrefixCash'"):
        door.PrefixCash  # noqa: B018


def test_the_simulator_needs_no_torch():
    program = (
        "import sys; import artifact.prefix_cache as p; assert 'numba' not in sys.modules;"
        "cache = p.PrefixCache(p.preset('marconi-7b'), capacity_bytes=10**9); cache.insert([1, 2, 3]);"
        "assert cache.lookup([1, 2, 3, 4]) == 3; p.replay, p.load_trace; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_no_function_or_class_shares_its_name_with_a_module():
    modules = [module.name for module in pkgutil.walk_packages(door.__path__, f"{door.__name__}.")]
    names = {name.rpartition(".")[2] for name in modules}
    assert len(names) > 20
    for module in map(importlib.import_module, modules):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        assert not names & {name for name in own if not name.startswith("_")}, module.__name__
