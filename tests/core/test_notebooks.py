"""Running a notebook: the last good result survives whatever happens, and a failure says where it failed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from figures import calls, notebooks

GOOD = ['profile = "quick"\ncount = 2', "print(profile, count)"]


@pytest.fixture
def project(root):
    (root / "notebooks" / "full").mkdir(parents=True)
    return root


def write(project, cells, name="10_tiny"):
    parameters, *rest = cells
    nodes = [
        new_markdown_cell("# Tiny"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, rest),
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=nodes, metadata={"kernelspec": spec}), project / "notebooks" / f"{name}.ipynb")


def overrides(project, text, name="10_tiny"):
    (project / "notebooks" / "full" / f"{name}.yaml").write_text(text)


def printed(file):
    outputs = [out for cell in nbformat.read(file, 4).cells if cell.cell_type == "code" for out in cell.outputs]
    return "".join(out.get("text", "") for out in outputs)


def files(project, profile="quick"):
    return sorted(file.name for file in (project / "results" / profile).iterdir())


def test_full_runs_the_same_notebook_with_its_overrides(project):
    write(project, GOOD)
    overrides(project, "profile: full\ncount: 30\n")
    assert printed(notebooks.run("10_tiny", "full")) == "full 30\n"
    assert files(project, "full") == ["10_tiny.ipynb"]


def test_a_failure_keeps_the_last_good_result_and_the_failed_output_until_a_run_ends_well(project):
    write(project, GOOD)
    good = notebooks.run("10_tiny", "quick")
    before = good.read_bytes()
    assert printed(good) == "quick 2\n" and files(project) == ["10_tiny.ipynb"]

    write(project, [GOOD[0], 'print("reached")', 'capacity = 0\nprint("cell 3")\n1 / capacity'])
    with pytest.raises(notebooks.NotebookFailed) as told:
        notebooks.run("10_tiny", "quick")
    assert str(told.value).splitlines() == [
        "notebook 10_tiny (quick) failed in cell 3 (`capacity = 0`): ZeroDivisionError: division by zero",
        "its output is kept in results/quick/10_tiny.failed.ipynb",
    ]
    assert good.read_bytes() == before
    assert printed(project / "results" / "quick" / "10_tiny.failed.ipynb") == "reached\ncell 3\n"
    assert files(project) == ["10_tiny.failed.ipynb", "10_tiny.ipynb"]

    write(project, [GOOD[0], 'print("mended")'])
    assert printed(notebooks.run("10_tiny", "quick")) == "mended\n"
    assert files(project) == ["10_tiny.ipynb"]


def test_a_kernel_that_dies_is_told_with_notebook_and_cell(project):
    write(project, [GOOD[0], "import os\nos._exit(1)", 'print("not reached")'])
    with pytest.raises(notebooks.NotebookFailed, match=r"notebook 10_tiny \(quick\) failed in cell 2 \(`import os`\)"):
        notebooks.run("10_tiny", "quick")
    assert files(project) == ["10_tiny.failed.ipynb"]


def test_a_failure_before_the_first_cell_names_no_output_that_is_not_there(project, monkeypatch):
    write(project, GOOD)
    monkeypatch.setattr(papermill, "execute_notebook", lambda *arguments, **options: 1 / 0)
    with pytest.raises(notebooks.NotebookFailed) as told:
        notebooks.run("10_tiny", "quick")
    assert str(told.value) == "notebook 10_tiny (quick) failed: ZeroDivisionError: division by zero"
    assert files(project) == []


def test_an_interrupt_leaves_nothing_behind(project):
    write(project, [GOOD[0], "import time\ntime.sleep(60)"])
    program = f"""
        from pathlib import Path
        from figures import notebooks, paths
        paths.ROOT = Path({str(project)!r})
        notebooks.run("10_tiny", "quick")
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.PIPE, text=True, process_group=0
    )
    running = project / "results" / "quick" / "10_tiny.running.ipynb"
    deadline = time.monotonic() + 60
    while child.poll() is None and not (running.exists() and "time.sleep" in running.read_text()):
        assert time.monotonic() < deadline, "the notebook did not start"
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert files(project) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "profile: full\ncuont: 30\n",
            "full/10_tiny.yaml: cuont is not a parameter of notebook 10_tiny: did you mean count",
        ),
        ("profile: full\nzzz: 1\n", "zzz is not a parameter of notebook 10_tiny: it has profile, count"),
        ("count: 30\n", "full/10_tiny.yaml must be a mapping with `profile: full`"),
        ("profile: quick\n", "full/10_tiny.yaml must be a mapping with `profile: full`"),
        ("", "full/10_tiny.yaml must be a mapping with `profile: full`"),
        ("profile: full\ncount: [1\n", r"full/10_tiny.yaml: .*line 3"),
    ],
)
def test_a_mistyped_override_is_refused_before_anything_runs(project, text, told):
    write(project, GOOD)
    overrides(project, text)
    with pytest.raises(ValueError, match=told):
        notebooks.run("10_tiny", "full")
    assert not (project / "results").exists()


@pytest.mark.parametrize("profile", ["fast", "reference", ""])
def test_an_unknown_profile_is_refused(project, profile):
    write(project, GOOD)
    with pytest.raises(ValueError, match=f"a notebook runs in profile quick or full, got '{profile}'"):
        notebooks.run("10_tiny", profile)
    assert not (project / "results").exists()


def test_an_unknown_notebook_is_refused(project):
    write(project, GOOD)
    with pytest.raises(ValueError, match=r"notebook must be one of 10_tiny, got '../10_tiny'"):
        notebooks.run("../10_tiny", "quick")


def test_quick_is_what_the_parameters_cell_says(project):
    write(project, GOOD)
    overrides(project, "profile: full\ncount: 30\n")
    assert calls.overrides("10_tiny", "quick") == {}
    assert calls.overrides("10_tiny", "full") == {"profile": "full", "count": 30}


def test_full_without_overrides_only_sets_the_profile(project):
    write(project, GOOD)
    assert calls.overrides("10_tiny", "full") == {"profile": "full"}


def test_notebooks_are_those_with_a_number_in_order(project):
    for name in ("11_b", "10_a", "scratch"):
        write(project, GOOD, name)
    assert calls.names() == ["10_a", "11_b"]
