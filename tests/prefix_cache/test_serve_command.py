"""`prefix serve`: what it reports is what the simulator says and what was measured."""

import json
import subprocess
import sys

import numpy as np
import pytest

from artifact.prefix_cache.workloads import generators
from artifact.prefix_cache.workloads.trace_file import write_jsonl


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = generators.chat(num_sessions=6, mean_turns=6, mean_user_tokens=10, mean_model_tokens=10)
    file = tmp_path_factory.mktemp("trace") / "chat.jsonl"
    write_jsonl(made, file)
    return made, file


def artifact(*arguments):
    command = [sys.executable, "-m", "artifact", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_example_reports_every_request(trace):
    made, file = trace
    options = ("--model", "granite-tiny", "--system", "marconi", "--capacity-mb", 0.5, "--host-capacity-mb", 2)
    done = artifact("prefix", "serve", file, *options, "--device", "cpu", "--debug", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["per_request"]
    assert report["requests"] == len(rows) == len(made)
    assert [row["input_tokens"] for row in rows] == made.input_length.tolist()
    assert report["hits_equal_simulated"] and report["simulated_hit_tokens"] == report["hit_tokens"] > 0
    assert sum(row["hit_tokens"] for row in rows) == report["hit_tokens"]
    assert report["hit_tokens"] + report["computed_tokens"] == report["input_tokens"] == made.input_length.sum()
    assert report["from_host_tokens"] > 0 and report["promoted_bytes"] > 0
    assert 0 < report["peak_bytes"] <= 500_000 and 0 < report["host_peak_bytes"] <= 2_000_000
    times = np.array([[row["ttft_ms"], row["no_cache_ttft_ms"]] for row in rows])
    assert (times > 0).all()
    assert report["ttft_ms_p95"] == pytest.approx(np.percentile(times[:, 0], 95))
    assert report["no_cache_ttft_ms_p50"] == pytest.approx(np.percentile(times[:, 1], 50))
    assert report["largest_logit_difference"] <= report["logit_tolerance"] == 1e-5
    assert report["scan"].split(":")[0] in ("torch", "mamba-ssm") and len(report["scan"]) > 20


@pytest.mark.parametrize("system", ["sglang+", "vllm+"])
def test_the_baselines_are_served_too(run, trace, system):
    options = ("--system", system, "--capacity-mb", 2, "--block-size", 8, "--requests", 12, "--json")
    status, out, error = run("prefix", "serve", trace[1], *options)
    assert status == 0, error
    report = json.loads(out)
    assert report["requests"] == 12 and report["hits_equal_simulated"]


def test_a_saved_cache_is_gone_on_from_and_a_cut_one_is_told(run, trace, tmp_path):
    _, file = trace
    cache, options = tmp_path / "cache", ("--capacity-mb", 2, "--alpha", 0.5, "--requests", 10, "--json")
    first = run("prefix", "serve", file, *options, "--save", cache)
    second = run("prefix", "serve", file, *options, "--restore", cache)
    assert (first[0], second[0]) == (0, 0), second[2]
    cold, warm = json.loads(first[1]), json.loads(second[1])
    assert warm["hit_tokens"] > cold["hit_tokens"] and warm["hits_equal_simulated"] is None
    cache.write_bytes(cache.read_bytes()[:-1])
    status, out, error = run("prefix", "serve", file, *options, "--restore", cache)
    assert status == 0 and "must be a whole saved cache" in error and "the cache starts empty" in error
    assert json.loads(out)["hit_tokens"] == cold["hit_tokens"]


def test_a_cache_that_cannot_be_saved_is_one_line_after_the_report(run, trace):
    options = ("--capacity-mb", 2, "--alpha", 0.5, "--requests", 1, "--json", "--save", "/dev/null/cache")
    status, out, error = run("prefix", "serve", trace[1], *options)
    assert status == 2 and json.loads(out)["requests"] == 1
    assert len(error.splitlines()) == 1 and "File exists: '/dev/null'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.jsonl", "--capacity-mb", 1), "must be a file or one of"),
        (("synthetic-chat",), "Missing option '--capacity-mb'"),
        (("synthetic-chat", "--capacity-mb", 0), "--capacity-mb must be at least 0.000001, got 0"),
        (("synthetic-chat", "--capacity-mb", "nan"), "--capacity-mb must be at most 1000000000000, got nan"),
        (
            ("synthetic-chat", "--capacity-mb", 1, "--host-capacity-mb", -3),
            "--host-capacity-mb must be at least 0.000001, got -3",
        ),
        (("synthetic-chat", "--capacity-mb", 1, "--system", "none"), "--system must be one of marconi, sglang+, vllm+"),
        (("synthetic-chat", "--capacity-mb", 1, "--model", "gpt-2"), "model must be one of"),
        (("synthetic-chat", "--capacity-mb", 1, "--requests", 0), "--requests must be at least 1, got 0"),
        (("synthetic-chat", "--capacity-mb", 1, "--placement", "middle"), "checkpoints must be branch, end"),
        (("synthetic-chat", "--capacity-mb", 1, "--alpha", -1), "--alpha must be at least 0, got -1"),
        (("synthetic-chat", "--capacity-mb", 1, "--alpha", "inf"), "alpha must be finite and not negative, got inf"),
        (("synthetic-chat", "--capacity-mb", "inf"), "--capacity-mb must be at most 1000000000000, got inf"),
        (("synthetic-chat", "--capacity-mb", 1e-7), "--capacity-mb must be at least 0.000001, got 1e-07"),
        (("synthetic-chat", "--capacity-mb", 1, "--seed", -1), "--seed must be at least 0, got -1"),
        (("synthetic-chat", "--capacity-mb", 1, "--save", "."), "Invalid value for '--save': file '.' is a directory."),
        (
            ("synthetic-chat", "--capacity-mb", 1, "--placement", f"every:{10**30}"),
            "block_size must be positive and below 2**31",
        ),
        (("synthetic-chat", "--capacity-mb", 1, "--model", "x" * 300), "model must be one of"),
        (("x" * 300, "--capacity-mb", 1), "must be a file or one of"),
        (("synthetic-chat", "--capacity-mb", 1, "--device", "tpu"), "--device must be one of cpu, cuda, got 'tpu'"),
        (
            ("synthetic-chat", "--capacity-mb", 1, "--system", "vllm+", "--host-capacity-mb", 1),
            "a second tier needs a PrefixCache before it",
        ),
        (("synthetic-chat", "--capacity-mb", 1, "--restore", "nowhere"), "no saved cache at nowhere"),
    ],
)
def test_wrong_options_are_named_on_one_line_with_status_2(run, arguments, message):
    status, out, error = run("prefix", "serve", *arguments)
    errors = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (status, out) == (2, "")
    assert len(errors) == 1 and message in errors[0]
