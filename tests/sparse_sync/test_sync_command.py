"""`python -m artifact sparse sync` and `partition`: what they print, and how they refuse a file that is wrong."""

import json
from typing import get_args

import numpy as np
import pytest

from artifact.sparse_sync import commands
from artifact.sparse_sync.schemes import COMPARED, SCHEMES

REPORT = {
    "scheme",
    "label",
    "workers",
    "max_sent_bytes",
    "max_received_bytes",
    "total_bytes",
    "seconds",
    "push_imbalance",
    "pull_imbalance",
    "speedup_over_ring",
    "exact",
}
ELEMENTS = {"size": np.int64(1000), "index_0": np.array([0, 3, 999]), "index_1": np.array([3, 500])}
ROWS = {"num_rows": np.int64(50), "row_width": np.int64(4), "row_0": np.array([0, 7]), "row_1": np.array([7, 49])}


@pytest.fixture
def run(run):
    """The commands of `sparse`."""
    return lambda *arguments: run("sparse", *arguments)


@pytest.fixture
def file(tmp_path):
    """Write an input file; arrays of None are left out."""

    def write(arrays, **changed):
        path = tmp_path / "input.npz"
        np.savez(path, **{name: value for name, value in {**arrays, **changed}.items() if value is not None})
        return path

    return write


def printed(outcome):
    status, out, err = outcome
    assert (status, err) == (0, "")
    return json.loads(out)


# What is printed


def test_the_choices_are_the_schemes():
    assert set(get_args(commands.Scheme)) == {"all", *SCHEMES}


def test_what_is_not_a_number_in_json_is_null(run, file):
    found = printed(run("sync", file(ELEMENTS), "--scheme", "zen", "--bandwidth-gbps", 1e-320, "--json"))
    assert found["seconds"] is None and found["total_bytes"] > 0


def test_all_schemes_are_reported_by_name_and_exact(run, file):
    found = printed(run("sync", file(ELEMENTS), "--json"))
    assert tuple(found) == COMPARED
    for name, report in found.items():
        assert set(report) == REPORT
        assert (report["scheme"], report["workers"], report["exact"]) == (name, 2, True)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("arrays", [ELEMENTS, ROWS], ids=["elements", "rows"])
def test_one_scheme_is_one_report(run, file, name, arrays):
    found = printed(run("sync", file(arrays), "--scheme", name, "--json"))
    assert set(found) == REPORT
    assert (found["scheme"], found["exact"]) == (name, True)


def test_bytes_and_seconds_are_those_worked_by_hand(run, file):
    path = file(ELEMENTS)
    gathered = printed(run("sync", path, "--scheme", "agsparse", "--bandwidth-gbps", 1, "--json"))
    assert (gathered["max_sent_bytes"], gathered["max_received_bytes"], gathered["total_bytes"]) == (24, 24, 40)
    assert gathered["seconds"] == pytest.approx(24 * 8 / 1e9)
    assert gathered["speedup_over_ring"] == pytest.approx(4000 / 24)
    assert (gathered["push_imbalance"], gathered["pull_imbalance"]) == (None, None)
    served = printed(run("sync", path, "--scheme", "ps", "--json"))  # parts 0 to 499 and 500 to 999
    assert served["push_imbalance"] == pytest.approx(2 * 2 / 3)
    assert served["pull_imbalance"] == 1
    ring = printed(run("sync", path, "--scheme", "ring", "--json"))
    assert (ring["max_sent_bytes"], ring["seconds"]) == (4000, pytest.approx(4000 * 8 / 25e9))


def test_rows_travel_with_one_index_and_elements_with_one_each(run, file):
    path = file(ROWS)
    assert printed(run("sync", path, "--scheme", "agsparse-row", "--json"))["total_bytes"] == 4 * (4 + 16)
    assert printed(run("sync", path, "--scheme", "agsparse", "--json"))["total_bytes"] == 16 * (4 + 4)


def test_given_values_are_used_in_their_type(run, file):
    halves = {f"value_{worker}": np.ones((2, 4), dtype=np.float16) for worker in range(2)}
    found = printed(run("sync", file(ROWS, **halves), "--scheme", "agsparse-row", "--json"))
    assert found["total_bytes"] == 4 * (4 + 8)


def test_a_number_of_workers_is_the_first_of_the_file(run, file):
    path = file(ELEMENTS, index_2=np.array([5]))
    assert printed(run("sync", path, "--scheme", "zen", "--json"))["workers"] == 3
    assert printed(run("sync", path, "--scheme", "zen", "--workers", 2, "--json"))["workers"] == 2


def test_a_worker_may_list_nothing(run, file):
    for nothing in (np.array([], dtype=np.int64), np.array([])):
        found = printed(run("sync", file(ELEMENTS, index_1=nothing), "--json"))
        assert all(report["exact"] for report in found.values())


def test_a_table_has_a_line_for_each_scheme(run, file):
    status, out, _ = run("sync", file(ELEMENTS))
    assert status == 0
    header, *lines = out.splitlines()
    assert "max_sent_bytes" in header and "exact" in header
    assert [line.split()[0] for line in lines] == list(COMPARED)


@pytest.mark.parametrize("method", get_args(commands.Method))
def test_partition_says_how_evenly_and_what_is_lost(run, file, method):
    rng = np.random.default_rng(1)
    index = {f"index_{worker}": np.unique(rng.integers(0, 100_000, 4000)) for worker in range(2)}
    path = file({"size": np.int64(100_000), **index})
    found = printed(run("partition", path, "--method", method, "--partitions", 8, "--json"))
    assert set(found) == {
        "method",
        "partitions",
        "workers",
        "indices",
        "counts",
        "imbalance",
        "serial_fraction",
        "lost",
        "device",
        "million_elements_per_s",
    }
    listed = sum(map(len, index.values()))
    assert (found["method"], found["partitions"], found["workers"], found["indices"]) == (method, 8, 2, listed)
    assert len(found["counts"]) == 8 and sum(found["counts"]) == listed - found["lost"]
    assert (found["lost"] > 0) == (method == "strawman")
    assert (found["serial_fraction"] > 0) == (method == "hierarchical")
    assert 1 <= found["imbalance"] < 1.2


def test_partition_counts_are_those_worked_by_hand(run, file):
    found = printed(run("partition", file(ELEMENTS), "--method", "contiguous", "--partitions", 4, "--json"))
    assert found["counts"] == [3, 0, 1, 1]
    assert found["imbalance"] == pytest.approx(2 * 4 / 3)
    status, out, _ = run("partition", file(ELEMENTS))
    assert status == 0 and any(line.split()[:2] == ["partitions", "16"] for line in out.splitlines())


# What is refused


def refused(outcome, *told):
    status, out, err = outcome
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    for each in told:
        assert each in err, err


@pytest.mark.parametrize("command", ["sync", "partition"])
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"index_1": np.array([1, 5, 4])}, ("worker 1", "sorted", "got 4 after 5 at position 2")),
        ({"index_1": np.array([1, 5, 5])}, ("worker 1", "unique", "got 5 after 5 at position 2")),
        ({"index_0": np.array([0, 1000])}, ("worker 0", "[0, 1000)", "got 1000 at position 1")),
        ({"index_0": np.array([-1, 3])}, ("worker 0", "[0, 1000)", "got -1 at position 0")),
        (
            {"index_0": np.array([1, 2**63 + 5], dtype=np.uint64)},
            ("worker 0", "got 9223372036854775813 at position 1"),
        ),
        ({"index_0": None}, ("worker 0: index_0 is missing",)),
        ({"index_3": np.array([1])}, ("worker 2: index_2 is missing",)),
        ({"index_0": None, "index_1": None}, ("worker 0: index_0 is missing",)),
        ({"index_1": np.array([1.0, 2.0])}, ("worker 1", "index_1 must be a list of integers", "float64")),
        ({"index_1": np.array([[1, 2]])}, ("worker 1", "index_1 must be a list of integers", "[1, 2]")),
        ({"value_1": np.ones(2)}, ("worker 1", "value_1 must be float32 or float16, got float64")),
        ({"value_1": np.ones(2, dtype=int)}, ("worker 1", "value_1 must be float32 or float16, got int64")),
        ({"value_1": np.ones(3, dtype=np.float32)}, ("worker 1", "must have shape [2], got [3]")),
        ({"value_0": np.float32([1, np.nan, 2])}, ("worker 0", "must be finite, got nan at position 1")),
        ({"value_0": np.float32([1, 2, np.inf])}, ("worker 0", "must be finite, got inf at position 2")),
        ({"size": None}, ("size is missing",)),
        ({"size": np.int64(0)}, ("size must be one positive integer, got int64 0",)),
        ({"size": np.float64(10)}, ("size must be one positive integer, got float64 10.0",)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_element_file_is_refused_with_worker_and_position(run, file, command, changed, told):
    path = file(ELEMENTS, **changed)
    refused(run(command, path), str(path), *told)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"row_1": np.array([9, 3])}, ("worker 1", "sorted", "got 3 after 9 at position 1")),
        ({"row_1": np.array([9, 50])}, ("worker 1", "[0, 50)", "got 50 at position 1")),
        ({"row_1": None, "row_2": np.array([1])}, ("worker 1: row_1 is missing",)),
        ({"row_width": None}, ("row_width is missing",)),
        ({"num_rows": None}, ("num_rows is missing",)),
        ({"row_width": np.int64(-4)}, ("row_width must be one positive integer, got int64 -4",)),
        ({"value_0": np.ones((2, 3), dtype=np.float32)}, ("worker 0", "must have shape [2, 4], got [2, 3]")),
        ({"value_0": np.float32([[0] * 4, [0, 0, -np.inf, 0]])}, ("worker 0", "got -inf at position 6")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_row_file_is_refused_with_worker_and_position(run, file, changed, told):
    path = file(ROWS, **changed)
    refused(run("sync", path), str(path), *told)


def test_a_file_that_is_missing_or_no_npz_is_refused(run, tmp_path):
    for command in ("sync", "partition"):
        refused(run(command, tmp_path / "nowhere.npz"), "INPUT.npz", "nowhere.npz' does not exist")
        for name, content in (("text.npz", b"not an npz\n"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04cut")):
            (tmp_path / name).write_bytes(content)
            refused(run(command, tmp_path / name), name, "must be an .npz file of plain arrays")
    np.save(tmp_path / "array.npy", np.arange(3))
    refused(run("sync", tmp_path / "array.npy"), "must be an .npz file of plain arrays")
    np.savez(tmp_path / "objects.npz", size=np.array([{}], dtype=object))
    refused(run("sync", tmp_path / "objects.npz"), "must be an .npz file of plain arrays")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sync", "--scheme", "zebra"], "--scheme must be one of all, ring, "),
        (["sync", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["sync", "--workers", "-1"], "--workers must be at least 1, got -1"),
        (["sync", "--workers", "3"], "worker 2: index_2 is missing"),
        (
            ["sync", "--workers", "two"],
            "--workers must be a valid integer, unable to parse string as an integer, got 'two'",
        ),
        (["sync", "--bandwidth-gbps", "0"], "--bandwidth-gbps must be positive and finite, got 0"),
        (["sync", "--bandwidth-gbps", "-2"], "--bandwidth-gbps must be positive and finite, got -2"),
        (["sync", "--bandwidth-gbps", "inf"], "--bandwidth-gbps must be positive and finite, got inf"),
        (["sync", "--bandwidth-gbps", "nan"], "--bandwidth-gbps must be positive and finite, got nan"),
        (["sync", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["partition", "--method", "alphabet"], "--method must be one of hierarchical, "),
        (["partition", "--partitions", "0"], "--partitions must be at least 1, got 0"),
        (["partition", "--partitions", "65537"], "--partitions must be at most 65536, got 65537"),
        (["partition", "--slots-per-index", "nan"], "--slots-per-index must be positive and finite, got nan"),
        (["partition", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["partition", "--method", "hierarchical", "--hashes", "0"], "--hashes must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(run, file, arguments, told):
    command, *options = arguments
    refused(run(command, file(ELEMENTS), *options), told)


# The testbed; what it measures is in test_testbed


def test_the_testbed_without_root_says_so(run, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    refused(run("testbed"), "the testbed needs root: not root")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rate", "fast"], "such as \"200mbit\", got 'fast'"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--workers", "251"], "--workers must be at most 250, got 251"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--systems", "carrier-pigeon"], "systems must be schemes or one of torch-allreduce, torch-sparse"),
    ],
)
def test_a_wrong_option_of_the_testbed_is_refused(run, monkeypatch, options, told):
    monkeypatch.setattr("artifact.sparse_sync.links.testbed.available", lambda: (True, ""))
    refused(run("testbed", "--workers", 2, *options), told)


def test_a_rank_that_fails_is_exit_status_1(run, monkeypatch):
    def fail(*tensors, **options):
        raise RuntimeError("zen: a rank's sum is wrong")

    monkeypatch.setattr("artifact.sparse_sync.links.testbed.available", lambda: (True, ""))
    monkeypatch.setattr("artifact.sparse_sync.links.testbed.measure_links", fail)
    assert run("testbed", "--workers", 2) == (1, "", "error: zen: a rank's sum is wrong\n")
