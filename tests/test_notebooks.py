"""The committed notebooks: executed top to bottom in quick, tidy, without a trace of the machine."""

import ast
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
import yaml

from figures import calls, paths

NAMES = calls.names()
each_notebook = pytest.mark.parametrize("name", NAMES)
MAX_LINES = 15
MACHINE_PATH = re.compile(
    "|".join(
        [
            *(re.escape(f"{place}/") for place in {paths.ROOT, Path.home(), Path(tempfile.gettempdir())}),
            r"/(home|root|Users|tmp|mnt|private|workspace)/\w",
            r"\b[A-Z]:\\\\?\w",
            "site-packages",
        ]
    )
)


def read(name):
    return nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def outputs(name):
    return [output for cell in code_cells(name) for output in cell.outputs]


def texts(output):
    """All text of an output; of images none."""
    data = {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}
    return [str(value) for value in (output.get("text", ""), *data.values(), *output.get("traceback", []))]


def python(cell):
    """The cell's code as a tree, without the lines that only IPython reads."""
    lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return ast.parse("\n".join(lines))


def strip_options():
    """The options of nbstripout in the Makefile."""
    text = re.sub(r"\s*\\\n\s*", " ", (paths.ROOT / "Makefile").read_text())
    return shlex.split(re.search(r"^STRIP := (.*)$", text, flags=re.MULTILINE).group(1))


def test_there_are_notebooks():
    assert NAMES


@each_notebook
def test_a_notebook_was_executed_in_order(name):
    counts = [cell.execution_count for cell in code_cells(name) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "make refresh"


@each_notebook
def test_no_output_is_an_error_or_a_warning(name):
    for output in outputs(name):
        assert output.output_type != "error", output.get("evalue")
        assert output.get("name") != "stderr", output.get("text")


@each_notebook
def test_no_path_of_the_machine_is_in_a_notebook(name):
    shown = [text for output in outputs(name) for text in texts(output)]
    for text in (*shown, *(cell.source for cell in read(name).cells)):
        found = MACHINE_PATH.search(text)
        assert found is None, found.group()


def test_the_pattern_for_paths_finds_them():
    for text in (
        f"{paths.ROOT}/data",
        f"in {Path.home()}/.cache",
        "/home/a/b",
        f"{tempfile.gettempdir()}/x",
        r"C:\Users",
        "C:\\\\data",
    ):
        assert MACHINE_PATH.search(text), text
    for text in ("notebooks/full/10_x.yaml", "hits / tokens", "https://data.example/home", "ratio: 3"):
        assert not MACHINE_PATH.search(text), text


def test_metadata_of_the_run_is_stripped():
    files = [str(paths.notebooks() / f"{name}.ipynb") for name in NAMES]
    command = [sys.executable, "-m", "nbstripout", "--verify", *strip_options(), *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"make refresh: {done.stdout}{done.stderr}"


def test_the_hook_strips_as_make_does():
    config = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())
    (entry,) = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"] if hook["id"] == "nbstripout"]
    assert shlex.split(entry)[1:] == strip_options()


@each_notebook
def test_the_parameters_cell_is_the_quick_profile(name):
    tagged = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert 'profile = "quick"' in tagged[0].source.splitlines()
    for statement in python(tagged[0]).body:  # an annotated parameter is one that papermill does not see
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)


@each_notebook
def test_the_full_profile_sets_parameters_that_the_notebook_has(name):
    assert calls.overrides(name, "full")["profile"] == "full"


def test_every_file_of_overrides_is_of_a_notebook():
    files = list((paths.notebooks() / "full").glob("*"))
    assert {file.suffix for file in files} <= {".yaml"}
    assert {file.stem for file in files} <= set(NAMES)


@each_notebook
def test_code_cells_are_short(name):
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_idea")])
def test_an_experiment_notebook_defines_nothing(name):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_cells(name):
        assert not [node.name for node in ast.walk(python(cell)) if isinstance(node, definitions)]
