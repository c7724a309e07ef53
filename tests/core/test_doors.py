"""The doors: every public name is there, documented, and found without importing what it does not need."""

import ast
import importlib
import inspect
import subprocess
import sys
from itertools import pairwise

import pytest

from artifact import doors

AT_LEAST = {
    "prefix_cache": "PrefixCache BlockCache TieredCache HybridSpec preset Lru FlopAware Tuned RequestTrace load_trace "
    "replay HybridEngine build_model",
    "elastic_moe": "allocate place Placement recovery train simulate FailureTrace LoadTrace Preset",
    "sparse_sync": "SparseTensor Scheme SCHEMES synchronise choose_scheme partition register_sparse_sync",
}
DOORS = {system: importlib.import_module(f"artifact.{system}") for system in AT_LEAST}
NAMES = [(system, name) for system, door in DOORS.items() for name in door.__all__]

each_door = pytest.mark.parametrize("system", DOORS)


def docstring_of_constant(module, name):
    """The string that follows an assignment to `name`, as an attribute's docstring does."""
    for statement, following in pairwise(ast.parse(inspect.getsource(module)).body):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if name in [getattr(target, "id", None) for target in targets] and isinstance(following, ast.Expr):
            return ast.literal_eval(following.value)
    return None


@each_door
def test_the_door_has_what_people_need(system):
    assert set(AT_LEAST[system].split()) <= set(DOORS[system].__all__)


@pytest.mark.parametrize(("system", "name"), NAMES)
def test_a_public_name_is_found_and_has_a_docstring_of_its_own(system, name):
    door = DOORS[system]
    module = importlib.import_module(doors.public_names(door.__file__)[name])
    value = getattr(door, name)
    assert value is getattr(module, name) and name in dir(door)
    is_code = inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value))
    documentation = value.__doc__ if is_code else docstring_of_constant(module, name)
    assert documentation, f"{name} has no docstring"
    assert not documentation.startswith(f"{name}("), "the one that a dataclass makes"


@each_door
def test_an_unknown_name_is_an_attribute_error(system):
    with pytest.raises(AttributeError, match=f"module 'artifact.{system}' has no attribute 'nowhere'"):
        DOORS[system].nowhere  # noqa: B018


def test_the_package_opens_its_parts_when_they_are_used():
    program = (
        "import sys, artifact; loaded = set(sys.modules); assert 'artifact.prefix_cache' not in loaded;"
        "assert artifact.prefix_cache.preset('marconi-7b').name == 'marconi-7b'; assert artifact.sweep.grid(a=[1]);"
        "assert {'elastic_moe', 'sparse_sync', 'datasets', 'hardware'} <= set(dir(artifact))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


WITHOUT_TORCH = {
    "prefix_cache": """
from artifact.prefix_cache import PrefixCache, load_trace, preset, replay
cache = PrefixCache(preset("marconi-7b"), capacity_bytes=10**9)
cache.insert([1, 2, 3])
assert cache.lookup([1, 2, 3, 4]) == 3
""",
    "elastic_moe": """
from artifact.elastic_moe import periodic_failures, place, recovery, simulate
recovery(place("best", [2, 2, 3], [3, 2, 2]))
simulate("tiny", "lazarus", periodic_failures(5, 4), "a10g", 10)
""",
    "sparse_sync": "",
}


@each_door
def test_what_needs_no_torch_imports_none(system):
    program = (
        f"import sys, artifact.{system} as door\n"
        "assert not {'torch', 'numba', 'numpy', 'pandas'} & set(sys.modules), 'the door itself imports nothing heavy'\n"
        f"{WITHOUT_TORCH[system]}\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
