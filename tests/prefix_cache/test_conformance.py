"""The suite that tells whether a model resumes from its states, and its command."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import cache_utils

from artifact.prefix_cache.serving import resume_cases as suite
from artifact.prefix_cache.serving.hybrid_models import TINY, build_model
from artifact.prefix_cache.serving.model_states import ModelStates

torch.set_num_threads(1)
WITHOUT_MAMBA_SSM = ("qwen3-next-tiny", "olmo-hybrid-tiny", "lfm2-tiny")
NOT_BY_DEFAULT = {"bamba-tiny": "position_ids", "jamba-tiny": "carried state"}


@pytest.mark.parametrize("name", TINY)
def test_every_class_conforms_and_those_that_do_not_by_default_are_told(name):
    model = build_model(name, device="cpu")
    states = ModelStates(model)
    table = suite.conformance(model, states=states)
    report = suite.summary(table, model, states)
    assert report["resumes"] and report["bit_equal_to_same_split"] and table["holds"].all()
    assert report["largest_difference"] <= report["tolerance"] == 1e-5
    assert report["smallest_difference_of_control"] > 1e-4
    assert report["resumes_by_default"] == (name not in NOT_BY_DEFAULT)
    assert report["resumed"] == NOT_BY_DEFAULT.get(name, "direct")
    assert (report["largest_difference_by_default"] > 1e-3) == (name in NOT_BY_DEFAULT)
    assert report["scan"].startswith("transformers: ") == (name in WITHOUT_MAMBA_SSM)


def test_the_cases_have_every_kind_of_boundary():
    cases = suite.cases(32)
    assert len({case.name for case in cases}) == len(cases) == 20
    assert any(case.prefix % 32 == 0 for case in cases) and any(case.prefix % 32 for case in cases)
    assert any(case.prefix == 1 for case in cases)
    assert {case.pieces for case in cases} == {(1,), (7,), (35,), (3, 1, 32), (1, 1, 1, 1, 1)}
    assert suite.chunk_of(build_model("nemotron-h-tiny", device="cpu")) == 32


def test_a_wrong_resume_is_told(monkeypatch):
    """A class that is right for the probe's lengths and wrong beyond them."""
    states = ModelStates(build_model("granite-tiny", device="cpu"))
    restore = states.restore

    def forgetful(segments, checkpoint, length):
        running = restore(segments, checkpoint, length)
        if length > 63:
            running.cache.layers[0].recurrent_states[0].mul_(0.99)
        return running

    monkeypatch.setattr(states, "restore", forgetful)
    table = suite.conformance(states.model, states=states)
    assert not suite.summary(table, states.model, states)["resumes"]
    assert table.loc[table["prefix_tokens"] < 63, "holds"].all()
    assert not table.loc[table["prefix_tokens"] > 63, "holds"].any()


def test_the_command_reports_every_case():
    done = subprocess.run(
        [sys.executable, "-m", "artifact", "prefix", "conformance", "bamba-tiny", "--device", "cpu", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "bamba-tiny" and report["class"] == "BambaForCausalLM"
    assert (report["device"], report["dtype"], report["tolerance"]) == ("cpu", "float32", 1e-5)
    assert report["resumes"] and not report["resumes_by_default"] and "position_ids" in report["reason"]
    assert len(report["per_case"]) == report["cases"] == 20


def test_a_model_that_loses_its_states_fails_the_command(monkeypatch, run):
    def lose(layer, state, index=0, **options):
        layer.lazy_initialization(recurrent_states=state, state_idx=index)
        return layer.recurrent_states[index]

    monkeypatch.setattr(cache_utils.LinearAttentionLayer, "update_recurrent_state", lose)
    status, out, _ = run("prefix", "conformance", "granite-tiny", "--device", "cpu", "--json")
    report = json.loads(out)
    assert status == 1 and report["resumes"] is False and "does not resume from its states" in report["reason"]


def test_without_json_each_case_is_a_line(run):
    status, out, _ = run("prefix", "conformance", "lfm2-tiny", "--device", "cpu")
    lines = out.splitlines()
    assert status == 0 and sum(line.endswith("  holds") for line in lines) == 20
    assert "resumes                         True" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prefix", "conformance", "gpt"), "model must be one of nemotron-h-tiny, "),
        (("prefix", "conformance", "granite-tiny", "--device", "tpu"), "--device must be one of cpu, cuda, got 'tpu'"),
        (
            ("prefix", "conformance", "granite-tiny", "--seed", 2**63),
            "--seed must be at most 9223372036854775807, got 9223372036854775808",
        ),
        (("prefix", "conformance"), "Missing argument 'model'"),
    ],
)
def test_wrong_options_are_named_on_one_line_with_status_2(run, arguments, message):
    status, out, error = run(*arguments)
    assert (status, out) == (2, "") and message in error and len(error.splitlines()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_every_class_conforms_on_cuda(name):
    model = build_model(name, device="cuda")
    states = ModelStates(model)
    report = suite.summary(suite.conformance(model, states=states), model, states)
    assert report["resumes"] and report["tolerance"] == 2e-2 and report["device"].startswith("cuda")
