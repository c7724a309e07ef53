"""The content of a data file, apart from how it is packed, and its sha256.

An .npz is its arrays: names, dtypes, shapes, values. A .gz is the text inside. Any other file is its bytes.
Only which tokens are equal matters in an array of token ids, so ids are compared after `relabelled`: a file whose ids
are permuted has the same content.
"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Content = dict[str, NDArray] | str | bytes


def relabelled(ids: NDArray) -> NDArray:
    """Token ids numbered by first appearance: the first token is 0, the next one that differs is 1, and so on."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(first), ids.dtype)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


def sha256(file: Path, relabel: str = "") -> str:
    """sha256 of the content of a file.

    relabel: array of token ids, if the file has one
    Raises:  ValueError if the file cannot be read as what its name says
    """
    try:
        if file.suffix == ".npz":
            return _of_arrays(file, relabel)
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (EOFError, KeyError, ValueError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} must be a whole {file.suffix} file, got {error!r}") from error


def write(file: Path, content: Content) -> None:
    """Write the content in the form that the file's suffix says."""
    if isinstance(content, dict):
        np.savez_compressed(file, **content)  # type: ignore[arg-type]
        return
    text = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(text, mtime=0) if file.suffix == ".gz" else text)


def _of_arrays(file: Path, relabel: str) -> str:
    digest = hashlib.sha256()
    with np.load(file, allow_pickle=False) as arrays:
        if relabel and relabel not in arrays.files:
            raise KeyError(relabel)
        for name in sorted(arrays.files):
            array = relabelled(arrays[name]) if name == relabel else arrays[name]
            array = array.astype(array.dtype.newbyteorder("<"))
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
