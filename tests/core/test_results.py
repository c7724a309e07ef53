"""Tables on disk: whole or not at all, with the provenance of every number and no path of the machine."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from artifact import paths
from figures import results


def trials():
    return pd.DataFrame(
        {
            "system": ["Marconi", "SGLang+"],
            "capacity_gb": [3.0, 3.0],
            "hit_tokens": [7, 5],
            "tuned": [True, False],
            "ttft_p95_ms": [12.5, np.nan],
        }
    )


def save(table, name="11_hits", profile="quick", parameters=None, **given):
    options = {"parameters": parameters or {}, "seed": 7, "seconds": 1.25, **given}
    return results.save(table, name, profile=profile, **options)


def test_a_table_comes_back_as_it_was_saved(root):
    file = save(trials())
    assert file == root / "results" / "quick" / "11_hits.parquet"
    assert_frame_equal(results.load("11_hits", "quick"), trials())


def test_provenance_says_how_the_table_was_made(root):
    save(trials(), parameters={"capacities_gb": np.array([1.0, 3.0]), "seed": np.int64(7), "trace": "sharegpt"})
    record = results.provenance("11_hits", "quick")
    assert set(record) == {
        "git",
        "profile",
        "parameters",
        "defaults",
        "seed",
        "versions",
        "hardware",
        "wall_seconds",
        "created",
    }
    assert record["parameters"] == {"capacities_gb": [1.0, 3.0], "seed": 7, "trace": "sharegpt"}
    assert (record["profile"], record["seed"], record["wall_seconds"]) == ("quick", 7, 1.25)
    assert record["versions"]["pandas"] == pd.__version__
    assert record["hardware"]["cores"] >= 1


def test_provenance_names_the_commit_and_whether_the_code_differs_from_it(root):
    import subprocess

    def git(*command):
        settings = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *settings, *command], cwd=root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def recorded():
        save(trials())
        return results.provenance("11_hits", "quick")["git"]

    (root / "artifact").mkdir()
    (root / "artifact" / "code.py").write_text("a = 1\n")
    git("init", "--quiet")
    git("add", "artifact")
    git("commit", "--quiet", "--message", "first")
    sha = git("rev-parse", "HEAD")
    assert recorded() == {"sha": sha, "dirty": False}  # results are not what makes results
    (root / "artifact" / "code.py").write_text("a = 2\n")
    assert recorded() == {"sha": sha, "dirty": True}


def test_provenance_outside_a_git_repository_is_unknown_not_an_error(root):
    save(trials())
    assert results.provenance("11_hits", "quick")["git"] == {"sha": None, "dirty": None}


def test_no_path_of_the_machine_gets_into_a_table(root):
    lying = root / "traces" / "a.jsonl"
    parameters = {"trace": lying, "traces": [str(lying)], "options": {"file": str(lying), "unit": "req/s"}}
    file = save(trials(), parameters=parameters)
    assert results.provenance("11_hits", "quick")["parameters"] == {
        "trace": "a.jsonl",
        "traces": ["a.jsonl"],
        "options": {"file": "a.jsonl", "unit": "req/s"},
    }
    for place in (root, Path.home(), paths.ROOT):
        assert str(place).encode() + b"/" not in file.read_bytes()
        assert str(place) + "/" not in json.dumps(results.provenance("11_hits", "quick"))


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"system": []})], ids=["no columns", "no rows"])
def test_an_empty_table_is_refused(root, table):
    with pytest.raises(ValueError, match="table 11_hits must have rows"):
        save(table)
    assert not list(root.rglob("*"))


@pytest.mark.parametrize("profile", ["fast", "", "../quick"])
def test_an_unknown_profile_is_refused(root, profile):
    with pytest.raises(ValueError, match="profile must be one of quick, full, reference"):
        save(trials(), profile=profile)


@pytest.mark.parametrize("name", ["", "../hits", "a/b", ".hidden"])
def test_a_name_that_leaves_the_directory_is_refused(root, name):
    with pytest.raises(ValueError, match="a table's name must be"):
        save(trials(), name=name)


def test_a_table_that_was_not_run_says_so(root):
    with pytest.raises(FileNotFoundError, match="table 11_hits has not been run in profile full"):
        results.load("11_hits", "full")


def test_a_file_without_provenance_is_refused(root):
    file = results.file("11_hits", "quick")
    file.parent.mkdir(parents=True)
    trials().to_parquet(file)
    with pytest.raises(ValueError, match="must carry provenance"):
        results.provenance("11_hits", "quick")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_write_that_breaks_off_leaves_the_last_table_and_nothing_else(root, monkeypatch, error):
    import pyarrow.parquet as pq

    file = save(trials())
    before = file.read_bytes()

    def half(table, where, **options):
        Path(where).write_bytes(b"PAR1")
        raise error

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(type(error)):
        save(trials())
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def hits(*, capacities_gb, alpha=1.0, seed=42):
    return trials().assign(capacity_gb=capacities_gb[0], alpha=alpha)


def test_a_run_records_what_was_passed_and_what_was_left_at_its_default(root):
    table = results.run("11_hits", hits, profile="quick", capacities_gb=[3, np.float64(5)], seed=7)
    assert_frame_equal(table, results.load("11_hits", "quick"))
    record = results.provenance("11_hits", "quick")
    assert record["parameters"] == {"capacities_gb": [3, 5.0], "alpha": 1.0, "seed": 7}
    assert (record["defaults"], record["seed"]) == (["alpha"], 7)
    assert 0 <= record["wall_seconds"] < 60


def test_a_run_without_a_seed_records_none(root):
    results.run("11_hits", lambda: trials(), profile="quick")
    assert results.provenance("11_hits", "quick")["seed"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"profile": "fast", "capacities_gb": [1]}, ValueError, "profile must be one of"),
        ({"profile": "quick", "capacity_gb": [1]}, TypeError, "capacities_gb"),
        ({"profile": "quick", "capacities_gb": [1], "beta": 1}, TypeError, "beta"),
    ],
)
def test_a_wrong_call_is_refused_before_the_experiment_runs(root, arguments, error, message):
    ran = []

    def experiment(*, capacities_gb):
        ran.append(capacities_gb)
        return trials()

    with pytest.raises(error, match=message):
        results.run("11_hits", experiment, **arguments)
    assert not ran and not list(root.rglob("*"))


def test_a_run_that_fails_leaves_the_last_table(root):
    file = save(trials())
    before = file.read_bytes()
    with pytest.raises(ZeroDivisionError):
        results.run("11_hits", lambda: 1 / 0, profile="quick")
    assert file.read_bytes() == before


def test_a_record_is_valid_json_whatever_was_passed(root):
    save(trials(), parameters={"interval": float("inf"), "rate": np.float64("nan"), "kinds": {1: ("a", None)}})
    assert results.provenance("11_hits", "quick")["parameters"] == {
        "interval": "inf",
        "rate": "nan",
        "kinds": {"1": ["a", None]},
    }
