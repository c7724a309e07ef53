"""A whole cache in one file of safetensors: the indices' arrays, and the tensors of every node of every tier.

The file's metadata holds a sha256 over all of it, so that a file that was cut or altered is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from artifact import paths
from artifact.prefix_cache.index.state_store import Entry
from artifact.prefix_cache.index.tiers import Tier, TieredCache

FORMAT = "prefix-cache-1"


def save(cache: TieredCache, path: str | Path, model: str) -> None:
    """Write the cache; `model` is the fingerprint of what made its states. Requests in flight are not part of it.

    Raises: OSError if the file cannot be written; one that was there stays
    """
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"model": model, "tiers": []}
    for number, tier in enumerate(cache.tiers):
        arrays, values = tier.index.to_arrays()
        kept = {}
        for name, array in arrays.items():
            kept[name] = [array.dtype.str if array.dtype.fields is None else "rows", list(array.shape)]
            tensors[f"{number}.index.{name}"] = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
        for node, entry in tier.store.node_to_entry.items():
            for kind, held in (("kv", entry.kv), ("checkpoint", entry.checkpoint or [])):
                tensors |= {f"{number}.{kind}.{node}.{i}": tensor.cpu() for i, tensor in enumerate(held)}
        header["tiers"].append({"rules": _rules(tier), "values": values, "arrays": kept})
    written = json.dumps(header, sort_keys=True)
    metadata = {"format": FORMAT, "header": written, "sha256": _digest(written, tensors)}
    with paths.replacing(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def load(cache: TieredCache, path: str | Path, model: str) -> None:
    """Read a saved cache into an empty one with the same rules.

    Raises: ValueError if the cache is not empty, or the file is not whole, of another model or other rules, or not
            what `save` writes: the cache is as empty as before; FileNotFoundError
    """
    if any(tier.store.node_to_entry for tier in cache.tiers):
        raise ValueError("a cache must be empty to load a saved one, got one that is not")
    metadata, tensors = _read(path)
    try:
        header = json.loads(metadata["header"])
        of_model, tiers = str(header["model"]), list(header["tiers"])
        found = [saved["rules"] for saved in tiers]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must have the header of a saved cache, got one that lacks it: {error!r}") from error
    if of_model != model:
        raise ValueError(f"{path} must hold states of the model {model[:12]}, got those of {of_model[:12]}")
    rules = [_rules(tier) for tier in cache.tiers]
    if found != rules:
        raise ValueError(f"{path} must be of a cache like this, {rules}, got {found}")
    empty = [tier.index.to_arrays() for tier in cache.tiers]
    try:
        for number, (tier, saved) in enumerate(zip(cache.tiers, tiers, strict=True)):
            _fill(tier, number, saved, tensors)
            tier.check()
    except Exception as error:
        for tier, contents in zip(cache.tiers, empty, strict=True):
            tier.index.take_arrays(*contents)
            tier.store.clear()
        raise ValueError(f"{path} must hold what the header of a saved cache says, got {error!r}") from error


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that is as it was saved."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no saved cache at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} must be a whole saved cache, got one that cannot be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} must be a saved cache of format {FORMAT}, got {metadata.get('format')!r}")
    found = _digest(metadata.get("header", ""), tensors)
    if metadata.get("sha256") != found:
        raise ValueError(f"{path} must have the sha256 that it was saved with, {metadata.get('sha256')}, got {found}")
    return metadata, tensors


def _fill(tier: Tier, number: int, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    arrays = {
        name: np.frombuffer(tensors[f"{number}.index.{name}"].numpy().tobytes(), _dtype(dtype, tier)).reshape(shape)
        for name, (dtype, shape) in saved["arrays"].items()
    }
    tier.index.take_arrays({name: array.copy() for name, array in arrays.items()}, saved["values"])
    by_node: dict[tuple[str, int], list[Tensor]] = {}
    for name in sorted(tensors, key=lambda name: [int(p) if p.isdecimal() else -1 for p in name.split(".")]):
        tier_number, kind, *rest = name.split(".")
        if int(tier_number) == number and kind != "index":
            by_node.setdefault((kind, int(rest[0])), []).append(tensors[name])
    memory = tier.store.memory
    for live in tier.index.live_nodes():
        kv = memory.copy(by_node.get(("kv", live.node), []))
        checkpoint = memory.copy(by_node.get(("checkpoint", live.node), [])) if live.has_state else None
        tier.store.node_to_entry[live.node] = Entry(live.parent, live.depth, live.tokens, kv, checkpoint)


def _dtype(name: str, tier: Tier) -> np.dtype:
    return tier.index.row_dtype if name == "rows" else np.dtype(name)


def _rules(tier: Tier) -> dict[str, Any]:
    """What must be equal for a saved index to be loaded."""
    index = tier.index
    kind = {"index": type(index).__name__, "capacity_bytes": index.capacity_bytes, "costs": list(index.spec.costs())}
    policy = {"eviction": getattr(index, "eviction", None), "placement": getattr(index, "checkpoints", None)}
    named = {key: [type(value).__name__, asdict(value)] for key, value in policy.items() if value is not None}
    return json.loads(json.dumps({**kind, **named, "block_size": getattr(index, "block_size", None)}))


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    seen = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        seen.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        seen.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
