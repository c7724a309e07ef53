"""The command line: what each command prints; a wrong input is one line on stderr and exit status 2."""

import json
import math
import re
import subprocess
import sys

import pytest

from artifact import cli, datasets, paths
from figures import claims, notebooks, results


def artifact(*arguments, **options):
    command = [sys.executable, "-m", "artifact", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, **options)


def test_doctor_says_what_is_installed_which_device_and_why_and_which_data(run):
    status, out, _ = run("doctor")
    assert status == 0
    lines = out.splitlines()
    for start in (
        "python ",
        "torch ",
        "mamba-ssm ",
        "device ",
        "processor ",
        "nvcc ",
        "notebooks ",
        "reference ",
    ):
        assert any(line.startswith(start) for line in lines), start
    device = next(line for line in lines if line.startswith("device"))
    assert device.split(":", 1)[1].strip(), "the reason"
    for name in datasets.names():
        assert any(line.startswith(name + " ") for line in lines), name


def test_data_list_has_a_line_for_each_data_set(run):
    status, out, _ = run("data", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == datasets.names()


def test_data_fetch_prints_where_the_file_lies(run, monkeypatch):
    monkeypatch.setattr(datasets, "path", lambda name: f"somewhere/{name}")
    assert run("data", "fetch", "sgd", "olmoe")[:2] == (
        0,
        "sgd                     somewhere/sgd\nolmoe                   somewhere/olmoe\n",
    )
    assert len(run("data", "fetch", "--all")[1].splitlines()) == len(datasets.names())


def test_data_fetch_brings_what_it_can_and_then_says_what_is_missing(run, monkeypatch):
    def path(name):
        if name == "sgd":
            raise datasets.DatasetUnavailable("sgd has no public download.")
        return f"somewhere/{name}"

    monkeypatch.setattr(datasets, "path", path)
    status, out, err = run("data", "fetch", "--all")
    assert (status, err) == (2, "error: sgd has no public download.\n")
    assert len(out.splitlines()) == len(datasets.names()) - 1


def test_scorecard_prints_the_claims_and_writes_their_page(run, root):
    (root / "claims.toml").write_text("")
    (root / "notebooks").mkdir()
    status, out, _ = run("scorecard", "--write")
    assert status == 0
    assert "0 claims (profile reference)" in out and "wrote CLAIMS.md" in out
    assert "0 claims." in (root / "CLAIMS.md").read_text()


def test_a_failed_notebook_is_exit_status_1(run, monkeypatch):
    def fails(name, profile):
        raise notebooks.NotebookFailed(f"notebook {name} ({profile}) failed in cell 3")

    monkeypatch.setattr(notebooks, "run", fails)
    assert run("run", "10_tiny") == (1, "", "error: notebook 10_tiny (quick) failed in cell 3\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scorecard", "--profile", "fast"], "--profile must be one of quick, full, reference, got 'fast'"),
        (["run", "90_scorecard", "--profile", "fast"], "--profile must be one of quick, full, got 'fast'"),
        (["run", "90_scorecrad"], "notebook must be one of"),
        (["data", "fetch"], "data fetch takes either NAME or --all"),
        (["data", "fetch", "sgd", "--all"], "data fetch takes either NAME or --all"),
        (["data", "fetch", "sdg"], "data set must be one of"),
        (["scorecrad"], "No such command 'scorecrad'."),
        (["scorecard", "--porfile", "quick"], "No such option: --porfile"),
        (["run"], "Missing argument"),
    ],
)
def test_a_wrong_input_is_one_line_on_stderr_and_status_2(run, arguments, told):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and told in err
    assert len(err.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_one_line(run, root):
    (root / "claims.toml").write_text("")
    (root / "notebooks").mkdir()
    (root / "CLAIMS.md").mkdir()
    status, _, err = run("scorecard", "--write")
    assert status == 2 and len(err.splitlines()) == 1 and "CLAIMS.md" in err


def test_a_disk_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "artifact", "data", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


TREE = {
    "prefix": ("replay", "serve", "conformance"),
    "moe": ("place", "train", "simulate"),
    "sparse": ("sync", "partition", "testbed"),
    "data": ("list", "fetch", "verify", "build", "prepare"),
}


def test_the_help_shows_a_tree_with_examples(run):
    status, out, _ = run("--help")
    shown = {line.split()[1] for line in out.splitlines() if re.match("│ [a-z]", line)}
    assert status == 0 and shown == {*TREE, "doctor", "scorecard", "figures", "run"}
    for group, commands in TREE.items():
        status, out, _ = run(group, "--help")
        shown = {line.split()[1] for line in out.splitlines() if re.match("│ [a-z]", line)}
        assert status == 0 and shown == set(commands)
        assert group == "data" or all(f"python -m artifact {group} {command}" in out for command in commands)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replay", "prefix replay"),
        ("serve-trace", "prefix serve"),
        ("conformance", "prefix conformance"),
        ("place", "moe place"),
        ("train-moe", "moe train"),
        ("simulate-moe", "moe simulate"),
        ("sync", "sparse sync"),
        ("partition", "sparse partition"),
    ],
)
def test_an_old_name_is_the_same_command(run, old, new):
    status, out, err = run(old, "--help")
    assert (status, err) == (0, "")
    usage = f"python -m artifact {old} "
    assert out.replace(usage, f"python -m artifact {new} ").split() == run(*new.split(), "--help")[1].split()
    assert run(old) == run(*new.split())  # what is missing is the same


def test_without_a_command_it_shows_the_help_and_no_error(run):
    status, out, err = run()
    assert status == 2
    assert "doctor" in out + err and "error:" not in err
    assert run("--help")[0] == 0


def test_a_table_that_a_command_asks_for_is_named_when_missing(run, root, monkeypatch):
    monkeypatch.setattr(claims, "scorecard", lambda profile: results.load("11_hits", profile))
    assert run("scorecard") == (2, "", "error: table 11_hits has not been run in profile reference\n")


def test_the_module_runs_with_the_systems_commands():
    done = artifact("scorecard")
    assert done.returncode == 0, done.stderr
    assert "claims" in done.stdout
    wrong = artifact("data", "fetch", "no-such-data")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


def test_start_up_imports_nothing_heavy():
    program = """
import sys
from artifact import __main__, datasets, hardware, sweep, systems
from figures import claims, results
list(systems.commands())
heavy = {"torch", "numba", "transformers", "mamba_ssm", "triton", "ray", "papermill", "scipy", "matplotlib"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_json_has_null_where_a_number_is_not_finite():
    report = {"loss": math.nan, "runs": [{"seconds": math.inf}, (1, -math.inf)], "steps": 2, "name": "nan"}
    assert json.loads(cli.to_json(report)) == {
        "loss": None,
        "runs": [{"seconds": None}, [1, None]],
        "steps": 2,
        "name": "nan",
    }
