"""A sweep gives what a plain loop gives, in its order, on every backend; a failure names its parameters."""

import importlib.util
import os

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from artifact import sweep
from figures.marconi.sizes import state_sizes


def squares(*, base, count):
    return pd.DataFrame({"base": base, "value": [base**2 + each for each in range(count)]})


def by_value(function):
    """`function` without a home: other processes get it by value, and need not import this file."""
    function.__module__ = "__main__"
    return function


def broken(*, base, count):
    if (base, count) == (1, 2):
        raise ZeroDivisionError(f"no {base}")


squares, broken = by_value(squares), by_value(broken)
PARAMETERS = sweep.grid(base=[3, 1, 2], count=[2, 1])
SIZES = sweep.grid(length_step=[1024], block_sizes=[[16], [32]])


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in ("ARTIFACT_BACKEND", "ARTIFACT_JOBS", "ARTIFACT_PROGRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)


def expected():
    return pd.concat([squares(**each) for each in PARAMETERS], ignore_index=True)


def test_a_grid_varies_its_last_value_fastest():
    assert sweep.grid(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


@pytest.mark.parametrize("backend", ["serial", "joblib"])
def test_a_parallel_sweep_equals_a_serial_loop(monkeypatch, backend):
    monkeypatch.setenv("ARTIFACT_BACKEND", backend)
    assert_frame_equal(sweep.table(squares, PARAMETERS, jobs=2), expected())


def test_two_jobs_are_two_processes():
    def process(number):
        import os
        import time

        time.sleep(0.2)
        return os.getpid()

    processes = sweep.run(process, [{"number": each} for each in range(4)], jobs=2)
    assert os.getpid() not in processes and len(set(processes)) == 2


def test_one_job_stays_in_this_process():
    assert sweep.run(lambda number: os.getpid(), [{"number": 1}, {"number": 2}], jobs=1) == [os.getpid()] * 2


@pytest.mark.parametrize("backend", ["serial", "joblib"])
def test_a_failure_names_its_parameters(monkeypatch, backend):
    monkeypatch.setenv("ARTIFACT_BACKEND", backend)
    with pytest.raises(sweep.SweepError, match=r"broken\(base=1, count=2\): ZeroDivisionError: no 1"):
        sweep.run(broken, PARAMETERS, jobs=2)


def test_no_parameters_give_no_results():
    assert sweep.run(squares, []) == []


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ARTIFACT_BACKEND", "dask", "ARTIFACT_BACKEND must be one of joblib, ray, serial, got 'dask'"),
        ("ARTIFACT_JOBS", "two", "ARTIFACT_JOBS must be a positive number, got 'two'"),
        ("ARTIFACT_JOBS", "0", "ARTIFACT_JOBS must be a positive number, got '0'"),
    ],
)
def test_a_wrong_setting_is_refused(monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=told):
        sweep.run(squares, PARAMETERS)


def test_less_than_one_job_is_refused():
    with pytest.raises(ValueError, match="jobs must be positive, got 0"):
        sweep.run(squares, PARAMETERS, jobs=0)


def test_the_bar_goes_where_the_runner_says_and_not_into_the_notebook(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ARTIFACT_PROGRESS", str(tmp_path / "bar"))
    sweep.run(squares, PARAMETERS, jobs=1, description="capacities")
    assert "capacities" in (tmp_path / "bar").read_text()
    assert capsys.readouterr().err == ""


def test_a_runner_that_has_gone_does_not_stop_a_sweep(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ARTIFACT_PROGRESS", str(tmp_path / "gone" / "bar"))
    assert_frame_equal(sweep.table(squares, PARAMETERS, jobs=1), expected())
    assert capsys.readouterr().err == ""


@pytest.mark.cluster
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra: cluster)")
def test_a_sweep_on_two_processes_of_a_ray_cluster_equals_a_serial_loop(monkeypatch):
    import ray

    monkeypatch.setenv("ARTIFACT_BACKEND", "ray")
    try:
        assert_frame_equal(sweep.table(squares, PARAMETERS, jobs=2), expected())
        assert ray.cluster_resources()["CPU"] == 2
        with pytest.raises(sweep.SweepError, match=r"broken\(base=1, count=2\): ZeroDivisionError: no 1"):
            sweep.run(broken, PARAMETERS, jobs=2)
        found = sweep.table(state_sizes, SIZES, jobs=2)  # an experiment is found by its name on the other processes
    finally:
        ray.shutdown()
    assert_frame_equal(found, pd.concat([state_sizes(**size) for size in SIZES], ignore_index=True))


def test_other_processes_find_an_experiment_of_the_evaluation():
    expected = pd.concat([state_sizes(**size) for size in SIZES], ignore_index=True)
    assert_frame_equal(sweep.table(state_sizes, SIZES, jobs=2), expected)
