"""Recipes: pure functions from raw files to the content of a data set.

A recipe takes the raw files by path, in the registry's order, and returns arrays or text. Raw files are only parsed:
nothing in them is imported, unpickled or run.

Shape legend: I = recorded iterations, R = ranks, L = layers, E = experts
"""

from __future__ import annotations

import json
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.datasets.content import Content, relabelled

Raw = Mapping[str, bytes]

SHAREGPT_CONVERSATIONS, SHAREGPT_MESSAGES = 100, 20
SHAREGPT_READ_BYTES = 64_000_000  # the file is cut off in the middle; the conversations taken end before this
BOS = 1
SMARTMOE_RANK_STRIDE = 10  # of the recorded iterations, the data set by ranks keeps one in ten

# Fields that are kept, in this order, where a session or a request has them.
SESSION_FIELDS = "id models block_size hash_id_scope tool_tokens system_tokens totals"
REQUEST_FIELDS = "t type in out api_time think_time ttft stop model"
SUBAGENT_FIELDS = (
    "t type agent_id subagent_type duration_ms total_tokens tool_use_count status models tool_tokens system_tokens"
)


def copy(raw: Raw) -> bytes:
    """The one raw file, as it is."""
    (data,) = raw.values()
    return data


def sharegpt(raw: Raw) -> Content:
    """The first 100 conversations of 20 messages or more, tokenised message by message as Marconi's artifact does.

    Messages at even positions are the user's, those at odd ones the model's, whatever they say they are; a last
    message without an answer is left out. segments: session, 1 if the model's, tokens, spaces in a user's message.
    """
    from tokenizers import Tokenizer

    dump, vocabulary = raw.values()
    tokenizer = Tokenizer.from_str(vocabulary.decode())
    messages = []
    for session, conversation in enumerate(_conversations(dump)):
        for position, message in enumerate(conversation[: len(conversation) // 2 * 2]):
            ids = [BOS, *tokenizer.encode(json.dumps(message), add_special_tokens=False).ids]
            of_model = position % 2
            messages.append((ids, (session, of_model, len(ids), 0 if of_model else message["value"].count(" "))))
    return _tokens_and_segments(messages, np.int32)


def swe_agent(raw: Raw) -> Content:
    """Trajectories of mini-swe-agent, a session a file, messages tokenised with the BPE that mistral-common carries.

    segments: session, 1 if the model's, tokens, the time of the model's answer in s (0 for other messages).
    """
    from importlib.resources import files

    from sentencepiece import SentencePieceProcessor

    tokenizer = SentencePieceProcessor(model_file=str(files("mistral_common") / "data" / "tokenizer.model.v1"))
    messages = []
    for session, data in enumerate(raw.values()):
        for message in json.loads(data)["messages"]:
            content, of_model = message["content"], message["role"] == "assistant"
            text = content if isinstance(content, str) else "".join(part["text"] for part in content)
            ids = tokenizer.encode(f"<|{message['role']}|>\n{text}\n")
            created = int(message["extra"]["response"]["created"]) if of_model else 0
            messages.append((ids, (session, int(of_model), len(ids), created)))
    sessions = [PurePosixPath(name).parent.name for name in raw]
    return {**_tokens_and_segments(messages, np.int64), "session_names": np.array(sessions)}


def claude_code(raw: Raw) -> str:
    """Sessions as JSON lines: a request's block hashes as runs [first id, number of blocks]."""
    sessions = (json.loads(data) for data in raw.values())
    rows = (_kept(each, SESSION_FIELDS) | {"requests": list(map(_request, each["requests"]))} for each in sessions)
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def sgd(raw: Raw) -> str:
    """Dialogues as JSON lines, the text of the turns alone; an id is led by its part of the data, as ids recur."""
    rows = []
    for name, data in raw.items():
        for dialogue in json.loads(data):
            turns = [["U" if turn["speaker"] == "USER" else "S", turn["utterance"]] for turn in dialogue["turns"]]
            dialogue_id = f"{PurePosixPath(name).parent.name}/{dialogue['dialogue_id']}"
            rows.append(json.dumps({"id": dialogue_id, "services": dialogue["services"], "turns": turns}) + "\n")
    return "".join(rows)


def sgd_schemas(raw: Raw) -> str:
    """Schemas by service name; where parts of the data describe one service, the last description counts."""
    return json.dumps({schema["service_name"]: schema for data in raw.values() for schema in json.loads(data)})


def smartmoe(raw: Raw) -> Content:
    """counts [I, L, E]: tokens per expert, summed over ranks and micro-batches; iters [I]."""
    counts_IRLE, iterations = _smartmoe_counts(raw, 1)
    return {"counts": counts_IRLE.sum(axis=1, dtype=np.int32), "iters": iterations}


def smartmoe_rank(raw: Raw) -> Content:
    """counts [I, R, L, E]: tokens per expert and rank, of one in ten recorded iterations; iters [I]."""
    counts_IRLE, iterations = _smartmoe_counts(raw, SMARTMOE_RANK_STRIDE)
    return {"counts": counts_IRLE.astype(np.uint16), "iters": iterations}


def esft(raw: Raw) -> Content:
    """<task>_ids [L, tokens, 6]: the experts of each token; <task>_sample_len: tokens of each sample.

    A file is a task and a layer, a line a sample: the experts of all its tokens, then their weights.
    """
    layers: dict[str, dict[int, list[NDArray]]] = {}
    for name, data in raw.items():
        path = PurePosixPath(name)
        samples = [line.partition("\t\t")[0].split("\t") for line in data.decode().splitlines()]
        ids = [np.array(sample, np.uint8).reshape(-1, 6) for sample in samples]
        layers.setdefault(path.parent.name, {})[int(path.stem.rpartition("_")[2])] = ids
    arrays: dict[str, NDArray] = {}
    for task, of_layer in layers.items():
        arrays[f"{task}_ids"] = np.stack([np.concatenate(of_layer[layer]) for layer in sorted(of_layer)])
        arrays[f"{task}_sample_len"] = np.array([len(sample) for sample in of_layer[min(of_layer)]], np.int32)
    return arrays


def olmoe(raw: Raw) -> Content:
    """<model>__<corpus> [3 layers, E]: tokens per expert."""
    arrays = {}
    for name, data in raw.items():
        model, _, corpus = PurePosixPath(name).with_suffix("").parts[-3:]
        counters = _pickled_counts(data)
        experts = range(1 + max(max(counter) for counter in counters))
        arrays[f"{model}__{corpus}"] = np.array(
            [[counter.get(e, 0) for e in experts] for counter in counters], np.int64
        )
    return arrays


RECIPES: dict[str, Callable[[Raw], Content]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (copy, sharegpt, swe_agent, claude_code, sgd, sgd_schemas, smartmoe, smartmoe_rank, esft, olmoe)
}


def _conversations(dump: bytes) -> Iterable[list[dict[str, str]]]:
    """The first conversations that are long enough. Raises: ValueError if the dump ends before it has as many."""
    text, decoder, found = dump[:SHAREGPT_READ_BYTES].decode(errors="ignore"), json.JSONDecoder(), 0
    position = text.index("[") + 1
    while found < SHAREGPT_CONVERSATIONS:
        entry, position = decoder.raw_decode(text, text.index("{", position))
        if len(entry["conversations"]) >= SHAREGPT_MESSAGES:
            found += 1
            yield entry["conversations"]


def _tokens_and_segments(
    messages: Sequence[tuple[list[int], tuple[int, int, int, int]]], dtype: type
) -> dict[str, NDArray]:
    tokens = np.concatenate([ids for ids, _ in messages])
    return {"tokens": relabelled(tokens).astype(np.uint16), "segments": np.array([row for _, row in messages], dtype)}


def _request(request: dict[str, Any]) -> dict[str, Any]:
    """A request, or a sub-agent and its requests."""
    if "requests" in request:
        return _kept(request, SUBAGENT_FIELDS) | {"requests": list(map(_request, request["requests"]))}
    runs: list[list[int]] = []
    for block in request["hash_ids"]:
        if runs and block == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return _kept(request, REQUEST_FIELDS) | {"hash_runs": runs}


def _kept(entry: dict[str, Any], fields: str) -> dict[str, Any]:
    return {field: entry[field] for field in fields.split() if field in entry}


def _smartmoe_counts(raw: Raw, stride: int) -> tuple[NDArray, NDArray]:
    """Counts [I, R, L, E] summed over micro-batches, of each stride-th iteration, and the iterations [I].

    A file is an iteration and a rank, a line a layer: `layer:[[a count for each expert] for each micro-batch]`.
    """
    name_of = {}
    for name in raw:
        iteration, rank = re.findall(r"\d+", PurePosixPath(name).stem)
        name_of[int(iteration), int(rank)] = name
    iterations = sorted({iteration for iteration, _ in name_of})[::stride]
    ranks = sorted({rank for _, rank in name_of})
    counts_IRLE = [[_layers(raw[name_of[iteration, rank]]) for rank in ranks] for iteration in iterations]
    return np.array(counts_IRLE, np.int64), np.array(iterations, np.int64)


def _layers(data: bytes) -> NDArray:
    lines = dict(line.split(":", 1) for line in data.decode().splitlines())
    return np.array([np.sum(json.loads(lines[layer]), axis=0) for layer in sorted(lines, key=int)])


def _pickled_counts(data: bytes) -> list[dict[int, int]]:
    """The counters in a pickle of collections.Counter, numpy int64 to int, read off its opcodes: nothing is unpickled.

    A counter begins with an empty dict; a key is the eight bytes of an int64, its count the next integer.
    """
    counters: list[dict[int, int]] = []
    key: int | None = None
    value: Any
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name == "EMPTY_DICT":
            counters.append({})
        elif opcode.name == "SHORT_BINBYTES":
            key = int.from_bytes(value, "little")
        elif opcode.name in ("BININT", "BININT1", "BININT2") and key is not None:
            counters[-1][key], key = value, None
    return counters
