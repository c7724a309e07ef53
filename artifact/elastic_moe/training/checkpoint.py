"""Checkpoints that many processes write in parts: complete or absent, and the previous one is kept.

A part is written by one process with torch.distributed.checkpoint, without a collective: a process that dies while it
writes leaves a folder `step-N.part`, which is never taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException, FileSystemReader

KEPT = 2
RUN = "run.json"


def prepare_folder(folder: Path, run: Mapping[str, str | int], num_steps: int, *, resume: bool) -> None:
    """Prepare a folder for the checkpoints of a run of `num_steps` steps.

    run: identifies the run; only checkpoints of the same run can be resumed
    Raises: ValueError for a folder that cannot be created; for a new run, if it has checkpoints; to resume, if it has
            none, those of another run, or one at `num_steps` or later
    """
    found = finished_steps(folder)
    if resume:
        if not found:
            raise ValueError(f"there must be a checkpoint to resume from, got none in {folder}")
        kept = json.loads((folder / RUN).read_text())
        if kept != run:
            raise ValueError(f"a run must be resumed with the settings of its start, {kept}, got {run}")
        if found[-1] >= num_steps:
            raise ValueError(f"steps must be more than the {found[-1]} of the checkpoint in {folder}, got {num_steps}")
        return
    if found:
        raise ValueError(f"a new run must have a folder without checkpoints, {folder} has those of steps {found}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN).write_text(json.dumps(run))
    except OSError as error:
        raise ValueError(f"checkpoints must have a folder that can be written to, got {folder}: {error}") from None


def write_part(folder: Path, step: int, part: int, state: Mapping[str, Tensor]) -> None:
    """One process's share of a checkpoint. Raises: RuntimeError if it cannot be written"""
    with _in_one_process(f"part {part} of a checkpoint at step {step} cannot be written"):
        checkpoint.save(dict(state), checkpoint_id=str(_unfinished(folder, step) / f"part{part}"), no_dist=True)


def publish(folder: Path, step: int) -> Path:
    """Make a checkpoint of the parts, which are all written. Delete all older ones but the previous."""
    unfinished, target = _unfinished(folder, step), folder / f"step-{step}"
    index = {
        name: path.name
        for path in sorted(unfinished.glob("part*"))
        for name in FileSystemReader(str(path)).read_metadata().state_dict_metadata
    }
    (unfinished / "index.json").write_text(json.dumps(index))
    if target.exists():  # of the same steps, run again
        shutil.rmtree(target)
    os.replace(unfinished, target)
    for old in finished_steps(folder)[:-KEPT]:
        shutil.rmtree(folder / f"step-{old}")
    return target


def finished_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    found = (path.parent.name.removeprefix("step-") for path in folder.glob("step-*/index.json"))
    return sorted(int(name) for name in found if name.isdigit())


def read_checkpoint(folder: Path, step: int, state: Mapping[str, Tensor]) -> None:
    """Fill tensors by name. Raises: ValueError for a name that the checkpoint lacks; RuntimeError if it is damaged"""
    source = folder / f"step-{step}"
    index = json.loads((source / "index.json").read_text())
    if missing := sorted(state.keys() - index.keys()):
        raise ValueError(f"checkpoint {source.name} must hold every tensor, lacks {', '.join(missing)}")
    for part in sorted({index[name] for name in state}):
        with _in_one_process(f"{part} of checkpoint {source.name} cannot be read"):
            here = {name: tensor for name, tensor in state.items() if index[name] == part}
            checkpoint.load(here, checkpoint_id=str(source / part), no_dist=True)


def discard_unfinished(folder: Path) -> None:
    """Remove parts whose writers failed."""
    for leftover in folder.glob("step-*.part"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _in_one_process(failure: str) -> Iterator[None]:
    """Suppress the warning that there is no process group; raise torch's errors as RuntimeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointException as error:  # not an Exception
            why = "; ".join(str(cause) for cause, _ in error.failures.values())
            raise RuntimeError(f"{failure}: {why}") from error


def _unfinished(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.part"
