"""The Makefile: its help, what each of the two commands would do, and what is run again after a change."""

import os
import re
import shutil
import subprocess

import pytest

from artifact import paths
from figures import calls

JOBS = ("env", "kick", "reproduce", "figures", "scorecard", "test", "nbval", "lint", "bench", "docs", "clean")
TARGETS = (*JOBS, "lab", "help")


def make(*arguments, cwd=paths.ROOT, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("PROFILE", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, env={**clean, **environment})


@pytest.fixture
def project(tmp_path):
    """A project of two notebooks and a scorecard, its environment there, with a stand-in for Python."""
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    for directory in ("artifact", "notebooks/full", ".venv/bin", "data"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("10_prefix_cache_idea", "11_hits", "90_scorecard"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    for name in (
        "requirements.lock",
        "pyproject.toml",
        "claims.toml",
        "data/registry.toml",
        "artifact/code.py",
    ):
        (tmp_path / name).touch()
    # python -m artifact run NAME --profile PROFILE: writes the result, or fails where FAIL is the notebook
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\n[ "$3" = run ] || exit 0\n[ "$4" != "$FAIL" ] || { echo "error: $4" >&2; exit 1; }\n'
        "mkdir -p results/$6\necho ran $4\ntouch results/$6/$4.ipynb\n"
    )
    python.chmod(0o755)
    for path in tmp_path.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (tmp_path / ".venv" / ".installed").touch()
    os.utime(tmp_path / ".venv" / ".installed", (1_000_000_001, 1_000_000_001))
    return tmp_path


def ran(done):
    return re.findall(r"^ran (\w+)$", done.stdout, flags=re.MULTILINE)


def test_make_alone_prints_a_line_for_each_target():
    done = make()
    assert done.returncode == 0, done.stderr
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", done.stdout, flags=re.MULTILINE))
    assert set(TARGETS) <= set(listed)
    assert make("help").stdout == done.stdout


def test_every_listed_target_is_phony_so_that_no_file_hides_it():
    text = (paths.ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE).group(1).split()
    assert sorted(phony) == sorted(re.findall(r"^([a-z]+):.*## ", text, flags=re.MULTILINE))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(project, target):
    done = make("--dry-run", target, cwd=project)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["reproduce", "test"])
def test_each_of_the_two_commands_creates_the_environment_where_there_is_none(project, target):
    shutil.rmtree(project / ".venv")
    plan = make("--dry-run", target, cwd=project).stdout
    steps = [
        "-m venv .venv",
        "--requirement requirements.lock",
        "mamba-ssm==",
        "--editable .",
        "touch .venv/.installed",
    ]
    found = [plan.find(step) for step in steps]
    assert -1 not in found and found == sorted(found)
    assert plan.count("--constraint requirements.lock") == len(re.findall(r"pip install", plan))
    assert (".venv/bin/pytest" in plan) == (target == "test")


def test_an_environment_that_is_there_is_left_alone(project):
    assert "pip install" not in make("--dry-run", "reproduce", cwd=project).stdout
    os.utime(project / "requirements.lock")
    assert "pip install" in make("--dry-run", "reproduce", cwd=project).stdout


def test_reproduce_runs_every_notebook_once_and_the_scorecard_last(project):
    assert ran(make("reproduce", cwd=project)) == ["10_prefix_cache_idea", "11_hits", "90_scorecard"]
    assert ran(make("reproduce", cwd=project)) == []


def test_two_at_a_time_the_scorecard_still_waits_for_the_others(project):
    assert ran(make("-j2", "reproduce", cwd=project))[-1] == "90_scorecard"


def test_a_failure_stops_with_its_name_and_the_repetition_goes_on_from_there(project):
    done = make("reproduce", cwd=project, FAIL="11_hits")
    assert done.returncode != 0 and "error: 11_hits" in done.stderr
    assert ran(done) == ["10_prefix_cache_idea"]
    assert ran(make("reproduce", cwd=project)) == ["11_hits", "90_scorecard"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("notebooks/11_hits.ipynb", ["11_hits", "90_scorecard"]),
        ("notebooks/full/11_hits.yaml", []),
        ("claims.toml", ["90_scorecard"]),
        ("artifact/code.py", ["10_prefix_cache_idea", "11_hits", "90_scorecard"]),
    ],
)
def test_what_a_change_touches_is_run_again(project, changed, again):
    make("reproduce", cwd=project)
    for path in (project / "results").rglob("*.ipynb"):
        os.utime(path, (1_000_000_002 + ("90_" in path.name), 1_000_000_002 + ("90_" in path.name)))
    (project / changed).touch()
    assert ran(make("reproduce", cwd=project)) == again


def test_full_has_results_of_its_own_and_follows_its_overrides(project):
    overrides = project / "notebooks" / "full" / "11_hits.yaml"
    overrides.touch()
    make("reproduce", cwd=project)
    assert ran(make("reproduce", "PROFILE=full", cwd=project)) == [
        "10_prefix_cache_idea",
        "11_hits",
        "90_scorecard",
    ]
    assert (project / "results" / "full" / "11_hits.ipynb").exists()
    for number, path in enumerate(sorted((project / "results" / "full").iterdir())):
        os.utime(path, (1_000_000_002 + number, 1_000_000_002 + number))
    os.utime(overrides)
    assert ran(make("reproduce", "PROFILE=full", cwd=project)) == ["11_hits", "90_scorecard"]


@pytest.mark.parametrize("given", [{}, {"PROFILE": "fast"}], ids=["argument", "environment"])
def test_an_unknown_profile_is_refused(given):
    done = make("--dry-run", "reproduce", *([] if given else ["PROFILE=fast"]), **given)
    assert done.returncode == 2
    assert 'PROFILE must be quick or full, got "fast"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "profile"), [([], "reference"), (["PROFILE=quick"], "quick"), (["PROFILE=full"], "full")]
)
def test_the_scorecard_is_of_the_committed_results_unless_a_profile_is_asked_for(arguments, profile):
    assert f"scorecard --profile {profile}" in make("--dry-run", "scorecard", *arguments).stdout


def test_clean_removes_what_was_generated_and_nothing_else(project):
    make("reproduce", cwd=project)
    for kept in ("results/reference/11_hits.parquet", "figures/hits.svg"):
        (project / kept).parent.mkdir(parents=True, exist_ok=True)
        (project / kept).touch()
    (project / "artifact" / "__pycache__").mkdir()
    before = {path for path in project.rglob("*") if path.is_file()}
    assert make("clean", cwd=project).returncode == 0
    gone = before - {path for path in project.rglob("*") if path.is_file()}
    assert {path.relative_to(project).parts[:2] for path in gone} == {("results", "quick")}
    assert not (project / "artifact" / "__pycache__").exists()


def test_tests_and_nbval_take_every_committed_notebook():
    for target in ("test", "nbval"):
        plan = make("--dry-run", target).stdout
        for name in calls.names():
            assert f"notebooks/{name}.ipynb" in plan


@pytest.mark.skipif(calls.names() == ["90_scorecard"], reason="no notebook of a system is there yet")
def test_the_notebooks_that_the_makefile_names_exist():
    text = (paths.ROOT / "Makefile").read_text()
    named = set(re.findall(r"\b(\d\d_\w+)\.ipynb", text))
    assert named <= set(calls.names())
