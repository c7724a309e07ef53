"""Data sets: the mirror first, then the cache, then the public source; never a file with other content."""

import gzip
import hashlib
import io
import os
import re
import socket
import tarfile
import threading
import tomllib
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from artifact import datasets, paths
from artifact.datasets import commands, content, registry, sources
from artifact.datasets.recipes import RECIPES

CONTENT = b"one\ntwo\n" * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRY = """
[{name}]
file = "spot/{name}.csv"
sha256 = "{sha256}"
licence = "MIT"
redistributable = true
description = "Lines."
citation = "None."
notebooks = [{notebook}]
sources = [{{ files = ["data/{name}.csv"], mb = 0.04, {source} }}]
"""
REPOSITORY = f'repository = "owner/name", commit = "{COMMIT}"'
FILE_URL = f"/raw/owner/name/{COMMIT}/data/open.csv"
ARCHIVE_URL = f"/archive/owner/name/{COMMIT}"


def entry(name="open", source=REPOSITORY, notebook=1):
    return ENTRY.format(name=name, sha256=SHA256, source=source, notebook=notebook)


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Put other entries in the place of the registry's; the cache is empty and there is no mirror."""
    monkeypatch.delenv("ARTIFACT_DATA_MIRROR", raising=False)
    monkeypatch.delenv("ARTIFACT_OFFLINE", raising=False)
    monkeypatch.setenv("ARTIFACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "FILE", tmp_path / "registry.toml")
    monkeypatch.setattr(sources, "_refused", {})

    def put(*entries):
        registry.FILE.write_text("".join(entries))
        registry._registry.cache_clear()

    put(entry())
    yield put
    registry._registry.cache_clear()


@pytest.fixture
def server(monkeypatch):
    """A server of files by path. `.cut` ends answers half way, that many times; `.stalled` and `.silent` wait."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.asked.append(self.path)
            if self.path in web.silent:
                done.wait(20)
            elif self.path in web.moved:
                self.send_response(302)
                self.send_header("Location", web.moved[self.path])
                self.end_headers()
            elif self.path not in web.files:
                self.send_error(404)
            else:
                data = web.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                web.cut[self.path] -= 1
                self.wfile.write(data[: len(data) // 2] if web.cut[self.path] >= 0 else data)
                if self.path in web.stalled:
                    done.wait(20)

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.moved, web.asked = {FILE_URL: CONTENT}, {}, []
    web.silent, web.stalled, web.cut = set(), set(), Counter()
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    at = f"http://127.0.0.1:{web.server_port}"
    monkeypatch.setattr(sources, "RAW_URL", at + "/raw/{repository}/{commit}/{path}")
    monkeypatch.setattr(sources, "ARCHIVE_URL", at + "/archive/{repository}/{commit}")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield web
    done.set()
    web.shutdown()
    thread.join()
    web.server_close()


def put(directory, name="open", data=CONTENT):
    file = Path(directory) / "spot" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def with_mirror(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("ARTIFACT_DATA_MIRROR", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def cached(tmp_path):
    """Files in the cache, but for notes on what was checked and the lock."""
    files = {file.relative_to(tmp_path / "cache").as_posix() for file in (tmp_path / "cache").rglob("*")}
    return {file for file in files if not file.startswith("checked")} - {"sources", "sources/.lock"}


def tar(files, top="name-0123456/"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def wheel(directory, package="sample", files=(("sample/open.csv", CONTENT),)):
    with zipfile.ZipFile(directory / f"{package}-1.0-py3-none-any.whl", "w") as packed:
        for name, data in files:
            packed.writestr(name, data)
        packed.writestr(f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        packed.writestr(f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr(f"{package}-1.0.dist-info/RECORD", "")


# Places


def test_the_mirror_comes_before_the_cache_and_the_cache_before_a_download(tmp_path, register, monkeypatch, server):
    mirror = with_mirror(tmp_path, monkeypatch)
    in_cache = put(tmp_path / "cache")
    assert datasets.path("open") == in_cache
    in_mirror = put(mirror)
    assert datasets.path("open") == in_mirror
    in_mirror.unlink()
    in_cache.unlink()
    assert server.asked == []
    assert datasets.path("open") == in_cache and in_cache.read_bytes() == CONTENT
    assert datasets.path("open") == in_cache and server.asked == [FILE_URL]


def test_no_other_place_is_read(tmp_path, register, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("ARTIFACT_OFFLINE", "1")
    put(tmp_path / "shared" / "data")
    assert not datasets.available("open")
    assert datasets.path_or_none("open") is None


def test_a_mirror_that_is_no_directory_is_refused(tmp_path, register, monkeypatch):
    put(tmp_path / "cache")
    monkeypatch.setenv("ARTIFACT_DATA_MIRROR", str(tmp_path / "mirorr"))
    with pytest.raises(ValueError, match="ARTIFACT_DATA_MIRROR must be a directory"):
        datasets.path("open")


@pytest.mark.parametrize("place", ["mirror", "cache"])
def test_an_altered_file_is_refused(tmp_path, register, monkeypatch, server, place):
    with_mirror(tmp_path, monkeypatch)
    file = put(tmp_path / place, data=b"one\ntoo\n")
    for get in (datasets.path, datasets.path_or_none, datasets.verify):
        with pytest.raises(ValueError, match=f"data set open: sha256 of {file} must be"):
            get("open")
    assert server.asked == []


def test_a_file_altered_after_it_was_checked_is_refused(tmp_path, register):
    file = put(tmp_path / "cache")
    assert datasets.path("open") == file
    file.write_bytes(b"too" + CONTENT[3:])
    os.utime(file, ns=(0, 0))  # the same size, another time
    with pytest.raises(ValueError, match="sha256"):
        datasets.path("open")


def test_an_unchanged_file_is_hashed_once_and_again_by_verify(tmp_path, register, monkeypatch):
    file = put(tmp_path / "cache")
    datasets.path("open")
    monkeypatch.setattr(content, "sha256", lambda *arguments: "hashed again")
    assert datasets.path("open") == file
    with pytest.raises(ValueError, match="hashed again"):
        datasets.verify("open")


def test_a_file_in_a_mirror_is_read_though_nothing_can_be_written(tmp_path, register, monkeypatch):
    file = put(with_mirror(tmp_path, monkeypatch))
    monkeypatch.setenv("ARTIFACT_CACHE", "/dev/null/cache")
    assert datasets.path("open") == file


@pytest.mark.parametrize("kind", ["under a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, register, monkeypatch, server, kind):
    cache = tmp_path / "cache" if kind == "read-only" else Path("/dev/null/cache")
    monkeypatch.setenv("ARTIFACT_CACHE", str(cache))
    if kind == "read-only":
        cache.mkdir(mode=0o500)
        if os.access(cache, os.W_OK):
            pytest.skip("this user may write to a read-only directory")
    with pytest.raises(datasets.DatasetUnavailable, match=f"the cache {cache} cannot be written .*ARTIFACT_CACHE"):
        datasets.path("open")
    assert datasets.path_or_none("open") is None
    assert server.asked == []


def test_an_unknown_name_is_refused(register):
    with pytest.raises(ValueError, match="data set must be one of open, got 'opne'"):
        datasets.path("opne")


def test_what_is_at_hand_is_told_without_a_download(tmp_path, register, server):
    assert not datasets.available("open")
    with pytest.raises(datasets.DatasetUnavailable, match="not at hand"):
        datasets.verify("open")
    put(tmp_path / "cache")
    assert datasets.available("open") and server.asked == []


# Downloads


def test_a_download_leaves_the_data_set_and_nothing_else(tmp_path, register, server):
    assert datasets.path("open").read_bytes() == CONTENT
    assert cached(tmp_path) == {"spot", "spot/open.csv"}


def test_a_redirect_is_followed(register, server):
    server.files["/elsewhere"] = server.files.pop(FILE_URL)
    server.moved[FILE_URL] = "/elsewhere"
    assert datasets.path("open").read_bytes() == CONTENT
    assert server.asked == [FILE_URL, "/elsewhere"]


def test_a_download_that_is_cut_off_starts_anew(register, server):
    server.cut[FILE_URL] = 2
    assert datasets.path("open").read_bytes() == CONTENT
    assert server.asked == [FILE_URL] * 3


def cut_off(server):
    server.cut[FILE_URL] = 99


def not_found(server):
    server.files.clear()


def silent(server):
    server.silent.add(FILE_URL)


def stalled(server):
    server.cut[FILE_URL] = 99
    server.stalled.add(FILE_URL)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (cut_off, "was cut off 3 times"),
        (not_found, "404 Client Error"),
        (silent, "does not answer"),
        (stalled, "does not answer"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, register, server, monkeypatch, fault, told):
    monkeypatch.setattr(sources, "TIMEOUT_S", (5, 0.3))
    fault(server)
    with pytest.raises(datasets.DatasetUnavailable, match=told) as failed:
        datasets.path("open")
    assert "\n" not in str(failed.value) and "data build open --source DIR" in str(failed.value)
    assert cached(tmp_path) == set()
    assert datasets.path_or_none("open") is None


def test_a_server_that_does_not_answer_is_asked_once(register, server, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT_S", (5, 0.2))
    silent(server)
    assert [datasets.path_or_none("open") for _ in range(3)] == [None] * 3
    assert len(server.asked) == 1


def test_without_a_network_the_host_is_named(register, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setattr(sources, "RAW_URL", f"http://127.0.0.1:{port}/{{path}}")
    with pytest.raises(datasets.DatasetUnavailable, match=f"127.0.0.1:{port} cannot be reached"):
        datasets.path("open")


def test_a_download_with_other_bytes_is_refused_and_leaves_nothing(tmp_path, register, server):
    server.files[FILE_URL] = b"moved"
    with pytest.raises(ValueError, match=r"data set open: sha256 of what is made of .* must be"):
        datasets.path("open")
    assert cached(tmp_path) == {"spot"}


def test_offline_refuses_in_words(tmp_path, register, server, monkeypatch):
    monkeypatch.setenv("ARTIFACT_OFFLINE", "1")
    with pytest.raises(datasets.DatasetUnavailable, match=r"ARTIFACT_OFFLINE forbids downloading 0\.04 MB"):
        datasets.path("open")
    assert server.asked == [] and not (tmp_path / "cache").exists()


def test_the_sources_are_tried_in_order(register, server):
    source = re.search("{.*}", entry())[0]
    register(entry().replace(source, f"{source.replace('owner/name', 'owner/gone')}, {source}"))
    assert datasets.path("open").read_bytes() == CONTENT
    assert server.asked == [FILE_URL.replace("name", "gone"), FILE_URL]


def test_two_data_sets_of_one_archive_are_one_download(tmp_path, register, server):
    archive = REPOSITORY + ", archive = true"
    register(entry("first", source=archive), entry("second", source=archive))
    server.files[ARCHIVE_URL] = tar({"data/first.csv": CONTENT, "data/second.csv": CONTENT, "run.py": b"1 / 0"})
    for name in ("first", "second"):
        assert datasets.path(name).read_bytes() == CONTENT
    assert server.asked == [ARCHIVE_URL]
    assert cached(tmp_path) == {"spot", "spot/first.csv", "spot/second.csv"}


@pytest.mark.parametrize("data", [b"not an archive", tar({"data/open.csv": CONTENT})[:80], tar({"other.csv": CONTENT})])
def test_an_archive_that_is_not_what_it_should_be_is_refused_and_leaves_nothing(tmp_path, register, server, data):
    register(entry(source=REPOSITORY + ", archive = true"))
    server.files[ARCHIVE_URL] = data
    with pytest.raises(ValueError, match=r"must be a whole archive|data/open.csv of .* must be there"):
        datasets.path("open")
    assert cached(tmp_path) <= {"spot"}


# Packages


@pytest.fixture
def packages(tmp_path, register, monkeypatch):
    """A directory in the place of PyPI."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    register(entry(source='packages = ["sample==1.0"]').replace("data/open", "sample/open"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_a_package_is_downloaded_as_data(tmp_path, packages):
    wheel(packages, files=[("sample/open.csv", CONTENT), ("sample/__init__.py", b"1 / 0")])
    assert datasets.path("open").read_bytes() == CONTENT
    assert cached(tmp_path) == {"spot", "spot/open.csv"}


def test_a_source_distribution_is_not_taken_as_its_setup_would_run(tmp_path, packages):
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')\nimport setuptools\nsetuptools.setup(name='sample', version='1.0')\n"
    files = {"setup.py": setup.encode(), "PKG-INFO": b"Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n"}
    (packages / "sample-1.0.tar.gz").write_bytes(tar(files, top="sample-1.0/"))
    with pytest.raises(datasets.DatasetUnavailable, match=r"pip could not download sample==1.0: No matching"):
        datasets.path("open")
    assert not (tmp_path / "ran").exists()


# Building from files of the user's own


def test_a_data_set_is_built_from_a_clone_an_archive_or_wheels(tmp_path, register):
    register(entry(), entry("packed", source='packages = ["sample==1.0"]').replace("data/packed", "sample/open"))
    clone = tmp_path / "clone" / "data"
    clone.mkdir(parents=True)
    (clone / "open.csv").write_bytes(CONTENT)
    (tmp_path / "open.tar.gz").write_bytes(tar({"data/open.csv": CONTENT}))
    wheel(tmp_path)
    for name, source in (("open", clone.parent), ("open", tmp_path / "open.tar.gz"), ("packed", tmp_path)):
        file = datasets.build(name, source)
        assert file == tmp_path / "cache" / "spot" / f"{name}.csv" and file.read_bytes() == CONTENT
        file.unlink()


def test_a_build_says_what_is_wrong_with_the_files(tmp_path, register):
    with pytest.raises(ValueError, match="--source must be a directory or an archive, got"):
        datasets.build("open", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data/open.csv of owner/name @ 01234567 must be there"):
        datasets.build("open", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "open.csv").write_bytes(b"[1]")
    with pytest.raises(ValueError, match=f"sha256 of what is made of {tmp_path} must be"):
        datasets.build("open", tmp_path)
    register(entry(source=REPOSITORY).replace("notebooks", 'recipe = "sgd"\nnotebooks'))
    with pytest.raises(ValueError, match=f"data set open: {tmp_path} must hold owner/name @ 01234567, got TypeError"):
        datasets.build("open", tmp_path)
    assert cached(tmp_path) <= {"spot"}


def test_nothing_is_unpacked_outside_the_directory_nor_through_a_link(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("../evil.csv", "top/../evil.csv", "/evil.csv", "top/good.csv"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"1,2"))
        link = tarfile.TarInfo("top/link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(packed.getvalue())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("../evil.csv", "/evil.csv", "good.csv"):
            archive.writestr(name, "1,2")
    for kind in ("tar", "zip"):
        inside = tmp_path / kind / "inside"
        inside.mkdir(parents=True)
        sources.unpack(tmp_path / f"a.{kind}", ("*.csv", "*/*.csv"), inside)
        kept = {file.relative_to(inside).as_posix() for file in inside.rglob("*") if file.is_file()}
        assert kept == {"tar": {"top/good.csv"}, "zip": {"good.csv"}}[kind]
        assert [file.name for file in (tmp_path / kind).iterdir()] == ["inside"]
    assert not Path("/evil.csv").exists()


def test_an_archive_may_not_be_larger_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_UNPACKED_BYTES", 1000)
    (tmp_path / "a.tar.gz").write_bytes(tar({"zeros": bytes(1001)}))
    with pytest.raises(ValueError, match="must be at most 1e-06 GB unpacked"):
        sources.unpack(tmp_path / "a.tar.gz", ("zeros",), tmp_path)


def test_files_that_are_left_out_are_not_read(tmp_path, register):
    register(entry().replace("data/open.csv", "data/*.csv").replace("mb =", 'left_out = ["data/b.csv"], mb ='))
    (tmp_path / "data").mkdir()
    for name in ("c", "b", "a"):
        (tmp_path / "data" / f"{name}.csv").write_text(name)
    raw = sources.RawFiles(datasets.get("open").sources[0], tmp_path)
    assert dict(raw) == {"data/a.csv": b"a", "data/c.csv": b"c"}


# Preparing


def test_preparing_goes_on_without_what_cannot_be_had(tmp_path, register, server):
    register(entry(notebook=20), entry("gone", notebook=21), entry("here", notebook=20), entry("unused", notebook=""))
    put(tmp_path / "cache", "here")
    states = {dataset.name: state for dataset, state in datasets.prepare()}
    assert list(states) == ["open", "gone", "here"]
    assert states["open"] == "fetched" and states["here"] == "at hand" and "404" in states["gone"]
    assert [dataset.name for dataset, _ in datasets.prepare([21])] == ["gone"]


# Commands


@pytest.fixture
def run(register):
    def call(*arguments):
        done = CliRunner().invoke(commands.data, arguments)
        return done.exit_code, done.stdout, done.stderr

    return call


def test_list_says_what_is_at_hand_and_where_the_rest_comes_from(tmp_path, register, run, monkeypatch):
    register(entry("first"), entry("second"), entry("third"))
    put(with_mirror(tmp_path, monkeypatch), "first")
    put(tmp_path / "cache", "second")
    _, out, _ = run("list")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["first", "second", "third"]
    for line, state in zip(out.splitlines(), ("in the mirror", "in the cache", "can be fetched"), strict=True):
        assert re.search(rf"{state} +0\.04 MB +owner/name @ 01234567 +MIT$", line)
    monkeypatch.setenv("ARTIFACT_OFFLINE", "1")
    assert " offline " in run("list")[1].splitlines()[2]


def test_fetch_and_verify_do_what_they_can_and_say_the_rest(tmp_path, register, run, server):
    register(entry(), entry("gone"))
    file = tmp_path / "cache" / "spot" / "open.csv"
    status, out, err = run("fetch", "--all")
    assert status == 2 and out.split() == ["open", str(file)]
    assert err.startswith("error: data set gone is not at hand: 404") and len(err.splitlines()) == 1
    assert run("verify") == (0, f"open                    {file}\n", "")
    put(tmp_path / "cache", data=b"other")
    status, _, err = run("verify", "open")
    assert status == 2 and "sha256 of" in err


def test_build_and_prepare(tmp_path, register, run, server):
    register(entry(), entry("gone", notebook=7))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "open.csv").write_bytes(CONTENT)
    status, out, _ = run("build", "open", "--source", str(tmp_path))
    assert status == 0 and out.split()[1] == str(tmp_path / "cache" / "spot" / "open.csv")
    status, out, _ = run("prepare")
    rows, _, reason = out.partition("\n\n")
    assert status == 0 and [row[24:38].strip() for row in rows.splitlines()] == ["at hand", "not to be had"]
    assert reason.startswith("gone, read in 07, is not to be had: data set gone is not at hand: 404")
    assert run("prepare", "1")[1].splitlines() == rows.splitlines()[:1]


# Content


def test_content_does_not_depend_on_packing_nor_on_the_names_of_tokens(tmp_path):
    tokens = np.array([7, 3, 7, 9, 3], np.uint16)
    other = np.array([0, 500, 0, 2, 500], np.uint16)
    np.savez(tmp_path / "a.npz", tokens=tokens, lengths=[2, 3])
    np.savez_compressed(tmp_path / "b.npz", lengths=[2, 3], tokens=other)
    assert content.sha256(tmp_path / "a.npz", "tokens") == content.sha256(tmp_path / "b.npz", "tokens")
    assert content.sha256(tmp_path / "a.npz") != content.sha256(tmp_path / "b.npz")
    assert content.relabelled(tokens).tolist() == content.relabelled(other).tolist() == [0, 1, 0, 2, 1]
    for level in (1, 9):
        (tmp_path / f"{level}.gz").write_bytes(gzip.compress(CONTENT, level, mtime=level))
        assert content.sha256(tmp_path / f"{level}.gz") == SHA256


@pytest.mark.parametrize(
    "arrays",
    [
        {"tokens": np.array([7, 3, 7, 9, 9], np.uint16), "lengths": [2, 3]},
        {"tokens": np.array([7, 3, 7, 9, 3], np.int32), "lengths": [2, 3]},
        {"tokens": np.array([7, 3, 7, 9, 3], np.uint16), "lengths": [3, 2]},
        {"tokens": np.array([7, 3, 7, 9, 3], np.uint16), "lengths": [[2, 3]]},
        {"tokens": np.array([7, 3, 7, 9, 3], np.uint16), "lengths": [2, 3], "more": [0]},
    ],
)
def test_content_is_names_types_shapes_and_values(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", tokens=np.array([7, 3, 7, 9, 3], np.uint16), lengths=[2, 3])
    np.savez(tmp_path / "b.npz", **arrays)
    assert content.sha256(tmp_path / "a.npz", "tokens") != content.sha256(tmp_path / "b.npz", "tokens")


@pytest.mark.parametrize("name", ["a.npz", "a.gz"])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path, name):
    content.write(tmp_path / name, {"tokens": np.arange(9)} if name == "a.npz" else "text")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{name} must be a whole"):
        content.sha256(tmp_path / name)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=np.array([{}], object))
    with pytest.raises(ValueError, match="must be a whole"):
        content.sha256(tmp_path / "a.npz")


# The registry


@pytest.mark.parametrize("name", datasets.names())
def test_each_registered_data_set_is_complete(name):
    dataset = datasets.get(name)
    assert re.fullmatch("[0-9a-f]{64}", dataset.sha256)
    assert dataset.licence and dataset.description and dataset.citation and dataset.recipe in RECIPES
    assert not dataset.file.startswith("/") and ".." not in dataset.file
    assert dataset.sources
    for source in dataset.sources:
        assert source.mb > 0 and source.files and source.origin
        assert bool(source.packages) != bool(source.repository)
        assert re.fullmatch("[0-9a-f]{40}", source.commit) or all("==" in package for package in source.packages)
        assert source.archive or source.packages or not any("*" in file for file in source.files)


def test_the_package_carries_the_registry_of_the_checkout():
    assert registry.FILE.resolve() == (paths.ROOT / "data" / "registry.toml").resolve()
    assert registry.FILE.parent == Path(datasets.__file__).parent
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
    assert "datasets/registry.toml" in project["tool"]["setuptools"]["package-data"]["artifact"]


def test_the_notebooks_of_each_data_set_are_those_whose_tables_name_it():
    texts = ["wikitext2-valid", "wikitext2-test"]
    names_of = {
        "p3": ["spot-p3"], "swe-agent-collapsed": ["swe-agent"], "sgd-schemas": ["sgd", "sgd-schemas"],
        "bert": texts, "lstm": [*texts, "tiny-shakespeare"], "topk-lstm": [*texts, "tiny-shakespeare"],
        "topk-transformer": [*texts, "tiny-shakespeare"], "nmt": ["xquad-de", "xquad-en"], "deepfm": ["criteo"],
    }  # fmt: skip
    read = set()
    for file in (paths.ROOT / "results" / "reference").glob("*.parquet"):
        table = pd.read_parquet(file)
        for label in {*table.get("trace", []), *table.get("workload", [])}:
            for name in names_of.get(label.partition(":")[0], [label]):
                read.add((name, int(file.name[:2])))
    read = {(name, notebook) for name, notebook in read if name in datasets.names()}
    declared = {(name, notebook) for name in datasets.names() for notebook in datasets.get(name).notebooks}
    assert len(read) > 50 and read <= declared
    there = {int(file.name[:2]) for file in (paths.ROOT / "notebooks").glob("*.ipynb")}
    assert {notebook for _, notebook in declared} <= there


@pytest.mark.parametrize("name", datasets.names())
def test_each_data_set_that_is_at_hand_has_the_registered_content(name):
    if not datasets.available(name):
        pytest.skip(f"data set {name} is not at hand")
    assert datasets.path(name) == datasets.found(name)
