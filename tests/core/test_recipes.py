"""Recipes on small sources made here; on the real ones, and against the mirror, where both are at hand."""

import json
import os
import pickle
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from artifact import datasets
from artifact.datasets import content, recipes

RAW = os.environ.get("ARTIFACT_DATA_RAW")
"""A directory of clones or unpacked archives named owner+name, and of `pypi` with downloaded wheels."""


def text(value):
    return json.dumps(value).encode()


def test_copy_takes_the_one_file_as_it_is():
    assert recipes.copy({"a.csv": b"1,2\n"}) == b"1,2\n"
    with pytest.raises(ValueError):
        recipes.copy({"a": b"", "b": b""})


@pytest.fixture
def vocabulary():
    """A tokenizer that counts words and marks, each a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "hello", "there", "how", "are", "you"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    return made.to_str().encode()


def conversation(*messages, first="human"):
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return {"conversations": [{"from": speakers[i % 2], "value": value} for i, value in enumerate(messages)]}


def test_sharegpt_takes_the_first_long_conversations_of_a_dump_that_is_cut_off(monkeypatch, vocabulary):
    monkeypatch.setattr(recipes, "SHAREGPT_CONVERSATIONS", 2)
    monkeypatch.setattr(recipes, "SHAREGPT_MESSAGES", 3)
    dump = [
        conversation("too", "short"),
        conversation("hello there you", "hello", "how are you", "fine", "no answer to this"),
        conversation("a b c", "d e", "f", first="gpt"),
        conversation("not", "taken", "any", "more"),
    ]
    cut = json.dumps(dump, indent=2).encode()[:-40] + "é".encode()[:1]
    arrays = recipes.sharegpt({"dump.json": cut, "tokenizer.json": vocabulary})
    # Positions decide who speaks, an odd message at the end is left out, and spaces count for the user alone.
    assert arrays["segments"][:, [0, 1, 3]].tolist() == [
        [0, 0, 2], [0, 1, 0], [0, 0, 2], [0, 1, 0], [1, 0, 2], [1, 1, 0]
    ]  # fmt: skip
    # {"from": "human", "value": "hello there you"}: seven words with a space after all but the last, and a BOS.
    assert arrays["segments"][:, 2].tolist() == [12, 8, 12, 8, 12, 10]
    assert len(arrays["tokens"]) == 62 and arrays["tokens"][0] == 0
    assert arrays["tokens"].dtype == np.uint16 and arrays["segments"].dtype == np.int32
    first = np.cumsum([0, *arrays["segments"][:-1, 2]])
    assert (arrays["tokens"][first] == 0).all(), "each message begins with the same token"
    with pytest.raises(ValueError):
        recipes.sharegpt({"dump.json": json.dumps(dump[:2]).encode(), "tokenizer.json": vocabulary})


def test_swe_agent_takes_roles_and_contents_and_the_times_of_answers():
    from sentencepiece import SentencePieceProcessor

    answer = {"role": "assistant", "content": "ls", "extra": {"response": {"created": 1700000000.7}}}
    one = {"messages": [{"role": "system", "content": "You are"}, {"role": "user", "content": "Fix it"}, answer]}
    two = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Fi"}, {"text": "x it"}]}, answer]}
    arrays = recipes.swe_agent({"trajs/b/b.traj.json": text(one), "trajs/a/a.traj.json": text(two)})
    tokenizer = SentencePieceProcessor(model_file=str(files("mistral_common") / "data" / "tokenizer.model.v1"))
    said = ["<|system|>\nYou are\n", "<|user|>\nFix it\n", "<|assistant|>\nls\n"]
    ids = [tokenizer.encode(message) for message in (*said, *said[1:])]
    assert arrays["segments"].tolist() == [
        [0, 0, len(ids[0]), 0],
        [0, 0, len(ids[1]), 0],
        [0, 1, len(ids[2]), 1700000000],
        [1, 0, len(ids[1]), 0],
        [1, 1, len(ids[2]), 1700000000],
    ]
    assert arrays["tokens"].tolist() == content.relabelled(np.concatenate(ids)).tolist()
    assert arrays["session_names"].tolist() == ["b", "a"]
    assert arrays["segments"].dtype == np.int64


def test_claude_code_codes_block_hashes_as_runs_and_keeps_numbers_alone():
    request = {
        "t": 0.5,
        "type": "n",
        "model": "m",
        "in": 300,
        "out": 9,
        "hash_ids": [1, 2, 3, 7, 8, 2],
        "input_types": 1,
    }
    inner = {"type": "subagent", "t": 1.0, "status": "done", "requests": [request | {"hash_ids": []}]}
    session = {"requests": [request, inner], "id": "trace_1", "block_size": 64, "text": "Hi"}
    first, second = recipes.claude_code({"traces/1": text(session), "traces/2": text(session)}).splitlines()
    assert (
        first
        == second
        == (
            '{"id":"trace_1","block_size":64,"requests":['
            '{"t":0.5,"type":"n","in":300,"out":9,"model":"m","hash_runs":[[1,3],[7,2],[2,1]]},'
            '{"t":1.0,"type":"subagent","status":"done","requests":'
            '[{"t":0.5,"type":"n","in":300,"out":9,"model":"m","hash_runs":[]}]}]}'
        )
    )


def test_sgd_keeps_the_text_of_the_turns_under_an_id_led_by_the_part():
    turns = [{"speaker": "USER", "utterance": "Hi.", "frames": [{}]}, {"speaker": "SYSTEM", "utterance": "“Yes”?"}]
    data = text([{"dialogue_id": "1_00000", "services": ["Banks_1"], "turns": turns}])
    train, test = recipes.sgd({"train/dialogues_001.json": data, "test/dialogues_001.json": data}).splitlines()
    assert json.loads(train) == {
        "id": "train/1_00000", "services": ["Banks_1"], "turns": [["U", "Hi."], ["S", "“Yes”?"]]
    }  # fmt: skip
    assert json.loads(test)["id"] == "test/1_00000"


def test_sgd_schemas_are_by_service_and_the_last_part_counts():
    one, two, other = ({"service_name": name, "slots": [slot]} for name, slot in (("A", 1), ("A", 2), ("B", 3)))
    assert json.loads(recipes.sgd_schemas({"train": text([one, other]), "test": text([two])})) == {"A": two, "B": other}


@pytest.fixture
def moe_trace():
    """Iterations 1, 11, ... 101, two ranks, two layers (written in reverse), two micro-batches, two experts."""
    raw = {}
    for number, iteration in enumerate(range(1, 102, 10)):
        for rank in (10, 2):
            lines = [f"{layer}:[[{number}.0, {rank}.0], [{layer}.0, 1.0]]\n" for layer in (1, 0)]
            raw[f"moe_trace/table_iter{iteration}_rank{rank}.log"] = "".join(lines).encode()
    return raw


def test_smartmoe_sums_over_ranks_and_micro_batches(moe_trace):
    arrays = recipes.smartmoe(moe_trace)
    assert arrays["iters"].tolist() == list(range(1, 102, 10))
    assert arrays["counts"].shape == (11, 2, 2) and arrays["counts"].dtype == np.int32
    assert arrays["counts"][3].tolist() == [[6, 14], [8, 14]]


def test_smartmoe_rank_keeps_one_iteration_in_ten_and_the_ranks_in_order(moe_trace):
    arrays = recipes.smartmoe_rank(moe_trace)
    assert arrays["iters"].tolist() == [1, 101]
    assert arrays["counts"].dtype == np.uint16
    assert arrays["counts"].tolist() == [
        [[[0, 3], [1, 3]], [[0, 11], [1, 11]]],
        [[[10, 3], [11, 3]], [[10, 11], [11, 11]]],
    ]


def test_esft_takes_the_experts_of_each_token_and_leaves_the_weights():
    def row(*experts):
        return "\t".join(map(str, experts)) + "\t\t" + "\t".join(["0.5"] * len(experts)) + "\n"

    low, high = (1, 2, 3, 4, 5, 6), (11, 12, 13, 14, 15, 16)
    raw = {
        "scores/law/expert_weights_10.txt": row(*high) + row(*high, *low),
        "scores/law/expert_weights_2.txt": row(*low) + row(*low, *high),
    }
    arrays = recipes.esft({name: data.encode() for name, data in raw.items()})
    assert arrays["law_ids"].tolist() == [[[*low], [*low], [*high]], [[*high], [*high], [*low]]]
    assert arrays["law_sample_len"].tolist() == [1, 2]
    assert arrays["law_ids"].dtype == np.uint8 and set(arrays) == {"law_ids", "law_sample_len"}


def test_olmoe_reads_counters_without_unpickling():
    counters = [Counter({np.int64(2): 70_000, np.int64(0): 5}), Counter({np.int64(1): 300}), Counter({np.int64(0): 1})]
    arrays = recipes.olmoe({"routing_output/mistral/expert_counts/c4.pkl": pickle.dumps(counters, protocol=4)})
    assert {key: value.tolist() for key, value in arrays.items()} == {
        "mistral__c4": [[5, 0, 70_000], [0, 300, 0], [1, 0, 0]]
    }


def test_olmoe_runs_nothing_that_a_pickle_names(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    harmful = pickle.dumps([Counter({np.int64(0): 1}), Evil()], protocol=4)
    recipes.olmoe({"routing_output/mistral/expert_counts/c4.pkl": harmful})
    assert not (tmp_path / "ran").exists()
    pickle.loads(harmful)
    assert (tmp_path / "ran").exists(), "the pickle does harm where it is loaded"


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets.names())
def test_the_real_source_gives_the_content_of_the_mirror(name, tmp_path, monkeypatch):
    dataset = datasets.get(name)
    source = dataset.sources[0]
    raw = Path(RAW or "/nowhere") / (source.repository.replace("/", "+") or "pypi")
    mirror = datasets.mirror()
    if not raw.exists() or mirror is None:
        pytest.skip("ARTIFACT_DATA_RAW or ARTIFACT_DATA_MIRROR does not name the files")
    monkeypatch.setenv("ARTIFACT_CACHE", str(tmp_path))
    built = datasets.build(name, raw)
    assert built.suffix == (mirror / dataset.file).suffix
    assert content.sha256(built, dataset.relabel) == content.sha256(mirror / dataset.file, dataset.relabel)
