"""Files by name: the mirror first, then the cache, then a download; never a file with other bytes."""

import hashlib
import os

import pooch
import pytest

from artifact import datasets, paths

CONTENT = b"one\ntwo\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ENTRY = """
[{name}]
file = "spot/{name}.csv"
size_bytes = 8
sha256 = "{sha256}"
licence = "MIT"
redistributable = true
description = "Two lines."
citation = "None."
{source}
"""


@pytest.fixture
def registry(root, monkeypatch):
    """A project with two data sets, `open` with a download and `closed` without; no file is at hand."""
    (root / "data").mkdir()
    url = 'url = "https://data.example/open.csv"'
    how = 'how = "Only a mirror holds it."'
    text = ENTRY.format(name="open", sha256=SHA256, source=url)
    (root / "data" / "registry.toml").write_text(text + ENTRY.format(name="closed", sha256=SHA256, source=how))
    monkeypatch.delenv("ARTIFACT_DATA_MIRROR", raising=False)
    monkeypatch.setenv("ARTIFACT_CACHE", str(root / "cache"))
    monkeypatch.setattr(paths, "ROOT", root)
    datasets._registry.cache_clear()
    yield root
    datasets._registry.cache_clear()


@pytest.fixture
def downloads(monkeypatch):
    """What was asked from the network; set `.content` or `.error` to say what it gives."""

    class Network(list):
        content, error = CONTENT, None

        def retrieve(self, url, known_hash, fname, path, progressbar):
            self.append(url)
            if self.error:
                raise self.error
            path.mkdir(parents=True, exist_ok=True)
            if f"sha256:{hashlib.sha256(self.content).hexdigest()}" != known_hash:
                raise ValueError("hash of downloaded file does not match")
            (path / fname).write_bytes(self.content)

    network = Network()
    monkeypatch.setattr(pooch, "retrieve", network.retrieve)
    return network


def put(directory, name="open", content=CONTENT):
    file = directory / "spot" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def with_mirror(registry, monkeypatch):
    (registry / "mirror").mkdir()
    monkeypatch.setenv("ARTIFACT_DATA_MIRROR", str(registry / "mirror"))
    return registry / "mirror"


def test_the_mirror_comes_before_the_cache_and_the_cache_before_a_download(registry, monkeypatch, downloads):
    mirror = with_mirror(registry, monkeypatch)
    in_cache = put(registry / "cache")
    assert datasets.path("open") == in_cache
    in_mirror = put(mirror)
    assert datasets.path("open") == in_mirror
    in_mirror.unlink()
    in_cache.unlink()
    assert downloads == []
    assert datasets.path("open") == in_cache and in_cache.read_bytes() == CONTENT
    assert downloads == ["https://data.example/open.csv"]
    assert datasets.path("open") == in_cache and len(downloads) == 1


def test_a_sibling_mirror_is_found_without_a_variable(tmp_path, registry, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", registry / "checkout")
    (registry / "checkout").symlink_to(registry, target_is_directory=True)
    file = put(registry / "shared" / "data", "closed")
    assert datasets.path("closed") == file


def test_a_mirror_that_is_no_directory_is_refused(registry, monkeypatch):
    put(registry / "cache")
    monkeypatch.setenv("ARTIFACT_DATA_MIRROR", str(registry / "mirorr"))
    with pytest.raises(ValueError, match="ARTIFACT_DATA_MIRROR must be a directory"):
        datasets.path("open")


@pytest.mark.parametrize("place", ["mirror", "cache"])
def test_an_altered_file_is_refused(registry, monkeypatch, downloads, place):
    with_mirror(registry, monkeypatch)
    file = put(registry / place, content=b"one\ntoo\n")
    with pytest.raises(ValueError, match=f"data set open: sha256 of {file} must be {SHA256}"):
        datasets.path("open")
    assert downloads == []


def test_a_file_altered_after_it_was_checked_is_refused(registry):
    file = put(registry / "cache")
    assert datasets.path("open") == file
    file.write_bytes(b"one\ntoo\n")
    os.utime(file, ns=(0, 0))  # the same size, another time
    with pytest.raises(ValueError, match="sha256"):
        datasets.path("open")


def test_an_unchanged_file_is_hashed_once(registry, monkeypatch):
    file = put(registry / "cache")
    datasets.path("open")
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: 1 / 0)
    assert datasets.path("open") == file


def test_a_download_with_other_bytes_is_refused(registry, downloads):
    downloads.content = b"moved"
    with pytest.raises(ValueError, match="data set open: the download is not the registered file"):
        datasets.path("open")


def test_without_a_network_it_says_where_to_put_the_file(registry, downloads):
    downloads.error = ConnectionError("no route")
    with pytest.raises(datasets.DatasetUnavailable, match=r"could not be downloaded from https://data.example") as told:
        datasets.path("open")
    assert "Put the file at spot/open.csv" in str(told.value)
    assert datasets.path_or_none("open") is None


def test_a_data_set_without_a_download_says_how_it_comes_to_be(registry, downloads):
    with pytest.raises(datasets.DatasetUnavailable, match=r"no public download\. Only a mirror holds it."):
        datasets.path("closed")
    assert downloads == []


def test_a_wrong_file_is_not_taken_for_an_absent_one(registry):
    put(registry / "cache", content=b"other")
    with pytest.raises(ValueError, match="sha256"):
        datasets.path_or_none("open")


def test_an_unknown_name_is_refused(registry):
    with pytest.raises(ValueError, match="data set must be one of open, closed, got 'opne'"):
        datasets.path("opne")


def test_what_is_at_hand_is_told_without_a_download(registry, downloads):
    assert not datasets.available("open")
    put(registry / "cache")
    assert datasets.available("open") and downloads == []


@pytest.mark.parametrize("name", datasets.names())
def test_each_registered_data_set_is_complete(name):
    entry = datasets.get(name)
    assert len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef")
    assert entry.size_bytes > 0 and entry.licence and entry.description and entry.citation
    assert not entry.file.startswith("/") and ".." not in entry.file
    assert (entry.url or "").startswith("https://") or entry.how


@pytest.mark.parametrize("name", datasets.names())
def test_each_data_set_that_is_at_hand_has_the_registered_bytes(name):
    if not datasets.available(name):
        pytest.skip(f"data set {name} is not at hand")
    assert datasets.path(name).stat().st_size == datasets.get(name).size_bytes
