"""A saved cache: a restart keeps its hits; a file that was cut, altered or is another's is refused."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru, Tuned
from artifact.prefix_cache.index.tiers import TieredCache
from artifact.prefix_cache.serving import persistence
from artifact.prefix_cache.serving.engine import HybridEngine
from artifact.prefix_cache.serving.hybrid_models import build_model, fingerprint, spec_of

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return build_model("granite-tiny", device="cpu")


def make(model, kind="two tiers", capacity=300_000, eviction=FlopAware(0.5)):  # noqa: B008 (frozen)
    spec = spec_of(model)
    if kind == "blocks":
        return HybridEngine(model, BlockCache(spec, capacity_bytes=4 * capacity, block_size=8), debug=True)
    index = PrefixCache(spec, capacity_bytes=capacity, eviction=eviction)
    host = PrefixCache(spec, capacity_bytes=2 * capacity, eviction=Lru()) if kind == "two tiers" else None
    return HybridEngine(model, TieredCache(index, host), debug=True)


def sequences(seed, count):
    rng = np.random.default_rng(seed)
    known = [np.empty(0, np.int64)]
    for _ in range(count):
        base = known[rng.integers(len(known))]
        known.append(
            np.concatenate((base[: rng.integers(len(base) + 1)], rng.integers(1024, size=rng.integers(1, 40))))
        )
    return known[1:]


def serve(engine, tokens):
    with engine.prefill(tokens) as request:
        return request.hit_tokens, request.from_host_tokens, request.logits.clone()


@pytest.fixture
def saved(model, tmp_path):
    engine = make(model)
    for tokens in sequences(0, 25):
        serve(engine, tokens)
    path = tmp_path / "cache.safetensors"
    engine.save(path)
    return engine, path


def is_empty(engine):
    return all(
        not tier.store.node_to_entry and tier.index.used_bytes == tier.store.memory.used_bytes == 0
        for tier in engine.cache.tiers
    )


@pytest.mark.parametrize("kind", ["one tier", "two tiers", "blocks"])
@pytest.mark.parametrize("eviction", [FlopAware(0.5), Lru(), Tuned()], ids=str)
def test_a_restart_goes_on_as_if_there_had_been_none(model, tmp_path, kind, eviction):
    """Every hit, every logit bit and every later eviction; with a request in flight as it was saved."""
    if kind == "blocks" and eviction != Lru():
        pytest.skip("a cache of blocks has one policy")
    engine = make(model, kind, eviction=eviction)
    for tokens in sequences(1, 30):
        serve(engine, tokens)
    holding = engine.prefill(tokens)
    engine.save(tmp_path / "cache")
    engine.abort(holding)
    restarted = make(model, kind, eviction=eviction)
    restarted.load(tmp_path / "cache")
    for tier, before in zip(restarted.cache.tiers, engine.cache.tiers, strict=True):
        tier.check()
        assert tier.store.node_to_entry.keys() == before.store.node_to_entry.keys()
        assert tier.index.used_bytes == before.index.used_bytes > 0
    for tokens in sequences(1, 30) + sequences(2, 30):
        hit, from_host, logits = serve(engine, tokens)
        again, again_from_host, again_logits = serve(restarted, tokens)
        assert (hit, from_host) == (again, again_from_host)
        assert torch.equal(logits, again_logits)
    assert not list(tmp_path.glob(".*"))


def test_a_file_cut_anywhere_is_refused_and_the_cache_starts_empty(model, saved):
    engine, path = saved
    whole = path.read_bytes()
    restarted = make(model)
    for length in [0, 1, 7, 8, 100, len(whole) // 3, len(whole) // 2, len(whole) - 4096, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cache\.safetensors must be a whole saved cache, got one that cannot"):
            restarted.load(path)
        assert is_empty(restarted)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="must be a whole saved cache"):
        restarted.load(path)
    path.write_bytes(whole)
    restarted.load(path)  # the same engine still can
    assert restarted.cache.index.used_bytes == engine.cache.index.used_bytes


def test_one_changed_byte_anywhere_is_refused(model, saved):
    _, path = saved
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    restarted = make(model)
    header = struct.unpack("<Q", whole[:8])[0]
    places = [*rng.integers(8, 8 + header, 20), *rng.integers(8 + header, len(whole), 20), len(whole) - 1]
    for place in map(int, places):
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"cache\.safetensors must "):
            restarted.load(path)
        assert is_empty(restarted)
        serve(restarted, [1, 2, 3])  # and it serves
        restarted = make(model)


def test_a_cache_of_another_model_or_of_other_rules_is_refused(model, saved, tmp_path):
    _, path = saved
    other = build_model("granite-tiny", device="cpu", seed=1)
    assert fingerprint(other) != fingerprint(model) == fingerprint(build_model("granite-tiny", device="cpu"))
    with pytest.raises(ValueError, match=r"must hold states of the model \w{12}, got those of \w{12}"):
        make(other).load(path)
    for options in ({"capacity": 400_000}, {"kind": "one tier"}, {"eviction": FlopAware(0.6)}):
        restarted = make(model, **options)
        with pytest.raises(ValueError, match="must be of a cache like this, "):
            restarted.load(path)
        assert is_empty(restarted)
    used = make(model)
    serve(used, [1, 2, 3])
    with pytest.raises(ValueError, match="a cache must be empty to load a saved one"):
        used.load(path)
    with pytest.raises(FileNotFoundError, match="no saved cache at"):
        make(model).load(tmp_path / "nothing")
    foreign = tmp_path / "foreign"
    empty = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    foreign.write_bytes(struct.pack("<Q", len(empty)) + empty)
    with pytest.raises(ValueError, match="must be a saved cache of format prefix-cache-1, got 'pt'"):
        make(model).load(foreign)


def rewritten(path, change):
    """The file with another header and tensors, and the sha256 of those."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["header"])
    written = json.dumps(change(header, tensors) or header)
    digest = persistence._digest(written, tensors)
    save_file(tensors, path, {**metadata, "header": written, "sha256": digest})


HOSTILE = {
    "no header": lambda header, tensors: ["x"],
    "no model": lambda header, tensors: header.pop("model") and None,
    "no tiers": lambda header, tensors: header.pop("tiers") and None,
    "tiers of text": lambda header, tensors: header | {"tiers": ["x", "y"]},
    "no rules": lambda header, tensors: header["tiers"][1].pop("rules") and None,
    "no values": lambda header, tensors: header["tiers"][1].pop("values") and None,
    "no number of requests": lambda header, tensors: header["tiers"][0]["values"].pop("requests") and None,
    "no array": lambda header, tensors: header["tiers"][1]["arrays"].pop("tree.keys") and None,
    "another shape": lambda header, tensors: header["tiers"][1]["arrays"].update({"tree.tokens": ["<i4", [3]]}),
    "another type": lambda header, tensors: header["tiers"][0]["arrays"].update({"tree.tokens": ["nonsense", [3]]}),
    "objects": lambda header, tensors: header["tiers"][0]["arrays"].update({"tree.tokens": ["|O", [3]]}),
    "no checkpoints": lambda header, tensors: (
        [tensors.pop(name) for name in list(tensors) if name.startswith("1.checkpoint")] and None
    ),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_with_the_sha256_of_other_contents_is_refused_and_the_cache_starts_empty(model, saved, change):
    _, path = saved
    rewritten(path, lambda header, tensors: None)
    make(model).load(path)
    rewritten(path, change)
    restarted = make(model)
    with pytest.raises(ValueError, match=r"cache\.safetensors must h(ave|old) "):
        restarted.load(path)
    assert is_empty(restarted) and all(tier.store.memory.held_bytes == 0 for tier in restarted.cache.tiers)
    for tokens in sequences(1, 12):
        serve(restarted, tokens)


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_save_that_fails_leaves_the_last_one(model, saved, monkeypatch, kind):
    engine, path = saved
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise kind("disk is full")

    monkeypatch.setattr("artifact.prefix_cache.serving.persistence.save_file", fail)
    with pytest.raises(OSError, match="disk is full"):
        engine.save(path)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]
