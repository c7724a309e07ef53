"""Reads and checks an .npz file with the sparse gradients of several workers.

Element form: `size` (elements of the dense tensor), and for each worker w `index_w` and optionally `value_w`.
Row form:     `num_rows`, `row_width`, and for each worker w `row_w` and optionally `value_w` [rows listed, row_width].
Indices are sorted and unique. Without values, standard normal ones are drawn from the seed.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, index_problem

ELEMENT_FORM, ROW_FORM = ("size",), ("num_rows", "row_width")


def read_gradients(path: str | Path, num_workers: int | None = None, seed: int = 0) -> list[SparseTensor]:
    """The tensors of workers 0 to num_workers - 1; without `num_workers`, of all workers in the file.

    seed:   of the values of workers that have none in the file
    Raises: ValueError naming the file, the worker and the position of an error; FileNotFoundError
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"--workers must be at least 1, got {num_workers}")
    arrays = _arrays(Path(path))
    try:
        return _tensors(arrays, num_workers, seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _arrays(path: Path) -> dict[str, NDArray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{path}: must be an .npz file of plain arrays: {error}") from None


def _tensors(arrays: dict[str, NDArray], num_workers: int | None, seed: int) -> list[SparseTensor]:
    rows = any(name in arrays for name in ROW_FORM)
    needed, prefix = (ROW_FORM, "row") if rows else (ELEMENT_FORM, "index")
    sizes = [_scalar(arrays, name) for name in needed]
    num_units, width = sizes if rows else (sizes[0], 1)
    found = sorted(int(match[1]) for name in arrays if (match := re.fullmatch(rf"{prefix}_(\d+)", name)))
    count = num_workers if num_workers is not None else (found[-1] + 1 if found else 0)
    if count == 0:
        raise ValueError(f"worker 0: {prefix}_0 is missing")
    return [_tensor(arrays, worker, prefix, num_units, width, seed) for worker in range(count)]


def _scalar(arrays: dict[str, NDArray], name: str) -> int:
    if name not in arrays:
        raise ValueError(f"{name} is missing")
    value = arrays[name]
    if value.size != 1 or not np.issubdtype(value.dtype, np.integer) or int(value.reshape(())) < 1:
        raise ValueError(f"{name} must be one positive integer, got {value.dtype} {value.tolist()}")
    return int(value.reshape(()))


def _tensor(
    arrays: dict[str, NDArray], worker: int, prefix: str, num_units: int, width: int, seed: int
) -> SparseTensor:
    name = f"{prefix}_{worker}"
    if name not in arrays:
        raise ValueError(f"worker {worker}: {name} is missing")
    index = arrays[name]
    if index.ndim != 1 or not (np.issubdtype(index.dtype, np.integer) or index.size == 0):
        raise ValueError(f"worker {worker}: {name} must be a list of integers, got {index.dtype} {list(index.shape)}")
    if index.dtype == np.uint64 and index.size and index.max() > np.iinfo(np.int64).max:
        at = int(np.argmax(index > np.iinfo(np.int64).max))
        raise ValueError(f"worker {worker}: an index must be in [0, {num_units}), got {index[at]} at position {at}")
    index_N = torch.from_numpy(index.astype(np.int64))
    if problem := index_problem(index_N, num_units):
        raise ValueError(f"worker {worker}: {problem}")
    return SparseTensor(index_N, _values(arrays, worker, len(index), width, seed), num_units)


def _values(arrays: dict[str, NDArray], worker: int, num_units: int, width: int, seed: int) -> torch.Tensor:
    name = f"value_{worker}"
    if name not in arrays:
        rng = np.random.default_rng([seed, worker])
        return torch.from_numpy(rng.standard_normal((num_units, width), dtype=np.float32))
    value = arrays[name]
    if value.dtype not in (np.float32, np.float16):
        raise ValueError(f"worker {worker}: {name} must be float32 or float16, got {value.dtype}")
    if value.size != num_units * width or value.shape[:1] != (num_units,):
        expected = [num_units, width] if width > 1 else [num_units]
        raise ValueError(f"worker {worker}: {name} must have shape {expected}, got {list(value.shape)}")
    if not np.isfinite(value).all():
        at = int(np.argmin(np.isfinite(value.reshape(-1))))
        raise ValueError(f"worker {worker}: {name} must be finite, got {value.reshape(-1)[at]} at position {at}")
    return torch.from_numpy(value.reshape(num_units, width).copy())
