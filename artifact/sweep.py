"""Map a pure function over many parameter sets: on this machine's cores, or on a ray cluster."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import pandas as pd

Result = TypeVar("Result")
Parameters = Sequence[Mapping[str, Any]]
BACKENDS = ("joblib", "ray", "serial")
PROGRESS_VARIABLE = "ARTIFACT_PROGRESS"


class SweepError(RuntimeError):
    """One call of a sweep failed; the message names its parameters."""


def grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination, the last varying fastest: grid(a=[1, 2], b=[3]) is [{a: 1, b: 3}, {a: 2, b: 3}]."""
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def run(
    function: Callable[..., Result],
    parameters: Parameters,
    *,
    jobs: int | None = None,
    description: str = "",
) -> list[Result]:
    """`[function(**p) for p in parameters]`, in parallel but in that order, with a progress bar.

    The backend is `ARTIFACT_BACKEND`: joblib (default), ray or serial. A function for joblib or ray must be
    importable or picklable, and must not depend on state outside its parameters.

    jobs:   processes on this machine; None takes ARTIFACT_JOBS, else all cores it may use
    Raises: SweepError naming the parameters that failed; ValueError on an unknown backend or jobs < 1
    """
    backend = os.environ.get("ARTIFACT_BACKEND") or "joblib"
    if backend not in BACKENDS:
        raise ValueError(f"ARTIFACT_BACKEND must be one of {', '.join(BACKENDS)}, got {backend!r}")
    jobs = _default_jobs() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be positive, got {jobs}")
    if backend == "joblib" and min(jobs, len(parameters)) <= 1:
        backend = "serial"
    mapper = {"serial": _serial, "joblib": _joblib, "ray": _ray}[backend]
    with _progress(description or function.__name__, len(parameters)) as advance:
        collected = []
        for result in mapper(function, parameters, jobs):
            collected.append(result)
            advance()
        return collected


def table(
    function: Callable[..., pd.DataFrame],
    parameters: Parameters,
    *,
    jobs: int | None = None,
    description: str = "",
) -> pd.DataFrame:
    """The rows of every call of `run`, one below the other, in the order of the parameters."""
    return pd.concat(run(function, parameters, jobs=jobs, description=description), ignore_index=True)


def _default_jobs() -> int:
    if named := os.environ.get("ARTIFACT_JOBS"):
        if not named.isdecimal() or int(named) < 1:
            raise ValueError(f"ARTIFACT_JOBS must be a positive number, got {named!r}")
        return int(named)
    import joblib

    return int(joblib.cpu_count())  # not os.cpu_count: the limits of a container count


def _call(function: Callable[..., Result], parameters: Mapping[str, Any]) -> Result:
    try:
        return function(**parameters)
    except Exception as error:
        told = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
        raise SweepError(f"{function.__name__}({told}): {type(error).__name__}: {error}") from error


def _serial(function: Callable[..., Result], parameters: Parameters, jobs: int) -> Iterator[Result]:
    return (_call(function, each) for each in parameters)


def _joblib(function: Callable[..., Result], parameters: Parameters, jobs: int) -> Iterator[Result]:
    from joblib import Parallel, delayed

    # loky restarts a process that has grown, and says so: nothing is lost, and a notebook should not show it.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
    parallel = Parallel(n_jobs=min(jobs, len(parameters)), return_as="generator")
    return iter(parallel(delayed(_call)(function, each) for each in parameters))


def _ray(function: Callable[..., Result], parameters: Parameters, jobs: int) -> Iterator[Result]:
    import ray

    if not ray.is_initialized():
        local = {"num_cpus": jobs, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(log_to_driver=False, **({} if os.environ.get("RAY_ADDRESS") else local))
    remote = ray.remote(_call)
    todo = iter(parameters)
    # A window and no ray.cancel: a failure leaves little running, and cancelling a task as it ends aborts ray's driver.
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", jobs)))
    pending = deque(remote.remote(function, dict(each)) for each in itertools.islice(todo, window))
    while pending:
        try:
            result = ray.get(pending.popleft())
        except ray.exceptions.RayTaskError as error:
            raise SweepError(str(error.cause)) from error
        pending.extend(remote.remote(function, dict(each)) for each in itertools.islice(todo, 1))
        yield result


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[], object]]:
    """A bar on the terminal. In a notebook run from the command line it goes to the runner's terminal, which
    `figures.notebooks` names in ARTIFACT_PROGRESS, and so not into the notebook's outputs."""
    from tqdm import tqdm

    stream: TextIO = sys.stderr
    opened: TextIO | None = None
    if target := os.environ.get(PROGRESS_VARIABLE):
        try:
            stream = opened = open(target, "a")  # noqa: SIM115 - closed below; stderr is not
        except OSError:
            stream = opened = open(os.devnull, "w")  # noqa: SIM115
    try:
        with tqdm(total=total, desc=description, file=stream, leave=False, mininterval=0.5) as bar:
            yield bar.update
    finally:
        if opened:
            opened.close()
