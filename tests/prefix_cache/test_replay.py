"""A trace through a system, and the command line that does it."""

import json
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from artifact.prefix_cache import commands
from artifact.prefix_cache.index.admission import EndOnly
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru, Tuned
from artifact.prefix_cache.presets import PRESETS
from artifact.prefix_cache.simulation import (
    GB,
    INFINITE,
    MARCONI,
    SGLANG,
    SIMULATED_SYSTEMS,
    VANILLA,
    VLLM,
    replay,
    request_table,
)
from artifact.prefix_cache.spec import MARCONI_7B
from artifact.prefix_cache.workloads import generators
from artifact.prefix_cache.workloads.trace_file import write_jsonl
from figures.marconi.clairvoyant import Future, replay_clairvoyant


@pytest.fixture(scope="module")
def chat():
    return generators.chat(num_sessions=30)


def run_command(*arguments):
    command = [sys.executable, "-m", "artifact", "prefix", "replay", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("system", "eviction"), [(SGLANG, Lru()), (MARCONI, Tuned(5)), ("static", FlopAware(0.3))], ids=str
)
def test_a_replay_equals_the_calls_that_a_serving_engine_makes(chat, system, eviction):
    cache = PrefixCache(MARCONI_7B, capacity_bytes=GB, eviction=eviction)
    hits = []
    for i in range(len(chat)):
        hits.append(cache.lookup(chat.input(i)))
        cache.insert(chat.sequence(i))
    alpha = 0.3 if system == "static" else None
    result = replay(chat, MARCONI_7B, system=MARCONI if alpha else system, capacity_bytes=GB, alpha=alpha)
    assert result.hit_tokens.tolist() == hits
    assert (result.peak_bytes, result.first_eviction_request) == (cache.peak_bytes, cache.first_eviction_request)
    assert result.used_bytes[-1] == cache.used_bytes


def test_no_system_beats_an_infinite_cache_and_none_reuses_nothing(chat):
    ceiling = replay(chat, MARCONI_7B, system=INFINITE).hit_tokens
    assert replay(chat, MARCONI_7B, system=VANILLA).hit_tokens.sum() == 0
    for system in (MARCONI, SGLANG, VLLM):
        assert replay(chat, MARCONI_7B, system=system, capacity_bytes=GB).hit_tokens.sum() <= ceiling.sum()
    assert replay_clairvoyant(chat, MARCONI_7B, capacity_bytes=GB).sum() <= ceiling.sum()


def test_the_clairvoyant_heuristic_finds_the_next_use_of_a_prefix(chat):
    future = Future(chat)
    rng = np.random.default_rng(0)
    for _ in range(50):
        i, now = rng.integers(len(chat)), int(rng.integers(len(chat)))
        prefix = chat.input(i)[: rng.integers(1, len(chat.input(i)) + 1)]
        uses = [j for j in range(now + 1, len(chat)) if np.array_equal(chat.input(j)[: len(prefix)], prefix)]
        assert future.next_use(prefix, now) == (min(uses) if uses else np.iinfo(np.int64).max)


def test_the_request_table_has_a_row_for_each_request(chat):
    result = replay(chat, MARCONI_7B, system=SGLANG, capacity_bytes=GB)
    table = request_table(result, chat)
    assert len(table) == len(chat) and table["hit_tokens"].sum() == result.hit_tokens.sum()
    assert (table["hit_tokens"] <= table["input_tokens"]).all()


def test_the_choices_are_the_systems_and_the_presets():
    assert get_args(commands.Simulated) == tuple(SIMULATED_SYSTEMS)
    assert set(SIMULATED_SYSTEMS) - set(get_args(commands.Served)) == {"none", "infinite"}
    assert get_args(commands.Spec) == tuple(PRESETS)


@pytest.mark.parametrize("system", SIMULATED_SYSTEMS)
def test_the_command_prints_what_the_replay_gives(tmp_path, chat, system):
    file = tmp_path / "trace.jsonl"
    write_jsonl(chat, file)
    done = run_command(file, "--system", system, "--capacity-gb", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    result = replay(chat, MARCONI_7B, system=SIMULATED_SYSTEMS[system], capacity_bytes=GB)
    keys = ("requests", "input_tokens", "hit_tokens", "token_hit_rate", "request_hit_rate", "flops_saved", "peak_bytes")
    assert {key: report[key] for key in keys} == {key: result.summary()[key] for key in keys}
    assert {"alpha", "first_eviction_request", "seconds"} <= set(report)
    assert (report["alpha"] is None) == (system != "marconi")


def test_the_command_simulates_a_second_tier_and_other_checkpoint_policies(tmp_path, chat, run):
    file = tmp_path / "trace.jsonl"
    write_jsonl(chat, file)

    def report(*options):
        status, out, error = run("prefix", "replay", file, "--capacity-gb", 1, "--alpha", 0.5, "--json", *options)
        assert status == 0, error
        return json.loads(out)

    plain, two = report(), report("--host-capacity-gb", 4)
    assert two["host_capacity_gb"] == 4 and "host_capacity_gb" not in plain
    assert two["hit_tokens"] > plain["hit_tokens"] and two["from_host_tokens"] > plain["from_host_tokens"] == 0
    result = replay(chat, MARCONI_7B, system=MARCONI, capacity_bytes=GB, host_capacity_bytes=4 * GB, alpha=0.5)
    assert (two["hit_tokens"], two["peak_bytes"]) == (result.hit_tokens.sum(), result.peak_bytes)
    ends = report("--checkpoints", "end")
    assert {**report("--placement", "end"), "seconds": 0} == {**ends, "seconds": 0}
    result = replay(chat, MARCONI_7B, system=MARCONI, capacity_bytes=GB, alpha=0.5, checkpoints=EndOnly())
    assert ends["hit_tokens"] == result.hit_tokens.sum() != plain["hit_tokens"]


GOOD = {"session_id": 0, "turn_id": 0, "ts": 0.5, "input_tokens": [1, 2], "output_tokens": [3]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({**GOOD, "output_tokens": None}, "output_tokens is null"),
        ({k: v for k, v in GOOD.items() if k != "output_tokens"}, "output_tokens is missing"),
        ({**GOOD, "input_tokens": []}, "input_tokens must hold a token"),
        ({**GOOD, "ts": 0.25}, "ts must not decrease"),
        ({**GOOD, "input_tokens": [4, -1]}, "got -1 at position 1"),
        ("not json", "not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_reason(tmp_path, line, reason):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    done = run_command(file, "--capacity-gb", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"{file}:2: " in done.stderr and reason in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.jsonl", "--capacity-gb", 1), "must be a file or one of"),
        (("synthetic-chat",), "--capacity-gb must be given"),
        (("synthetic-chat", "--capacity-gb", -1), "--capacity-gb must be at least 0.000000001, got -1"),
        (("synthetic-chat", "--capacity-gb", 1, "--system", "lru"), "--system must be one of"),
        (("synthetic-chat", "--capacity-gb", 1, "--fidelity", "exact"), "fidelity must start with"),
        (("synthetic-chat", "--capacity-gb", 1, "--spec", "gpt"), "--spec must be one of marconi-7b"),
        (("synthetic-chat", "--capacity-gb", 1, "--alpha", -2), "--alpha must be at least 0, got -2"),
        (("synthetic-chat", "--capacity-gb", 1, "--system", "vllm+", "--block-size", 0), "block_size must be positive"),
        (("synthetic-chat", "--capacity-gb", 1, "--bootstrap-multiplier", 0), "bootstrap_multiplier must be positive"),
        (
            ("synthetic-chat", "--capacity-gb", 1, "--host-capacity-gb", 0),
            "--host-capacity-gb must be at least 0.000000001, got 0",
        ),
        (
            ("synthetic-chat", "--capacity-gb", 1, "--placement", "chunk:0"),
            "chunk must be positive and below 2**31, got 0",
        ),
    ],
)
def test_wrong_options_are_named_on_one_line_with_status_2(arguments, message):
    done = run_command(*arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
