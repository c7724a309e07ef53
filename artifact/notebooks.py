"""Run a notebook with the parameters of a profile, keeping the last good result whatever happens."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml

from artifact import paths
from artifact.sweep import PROGRESS_VARIABLE


class NotebookFailed(RuntimeError):
    """A cell failed; the message names notebook, cell and error, and where the failed output is kept."""


def names() -> list[str]:
    """Names of all notebooks, without the suffix, in order."""
    return sorted(file.stem for file in paths.notebooks().glob("[0-9][0-9]_*.ipynb"))


def overrides(name: str, profile: str) -> dict[str, Any]:
    """What `profile` sets over the notebook's parameters cell: nothing in quick, full/NAME.yaml in full.

    Raises: ValueError on a key that the parameters cell does not have, or a YAML without `profile: full`
    """
    source = _source(name)
    if profile == "quick":
        return {}
    if profile != "full":
        raise ValueError(f"a notebook runs in profile quick or full, got {profile!r}")
    file = paths.notebooks() / "full" / f"{name}.yaml"
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {"profile": "full"}
    except yaml.YAMLError as error:
        raise ValueError(f"full/{name}.yaml: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or values.get("profile") != "full":
        raise ValueError(f"full/{name}.yaml must be a mapping with `profile: full`, got {values!r}")
    import papermill

    known = list(papermill.inspect_notebook(str(source)))
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"full/{name}.yaml: {key} is not a parameter of notebook {name}: {hint}")
    return values


def run(name: str, profile: str) -> Path:
    """Execute notebooks/NAME.ipynb into results/<profile>/NAME.ipynb.

    It runs as NAME.running.ipynb and is renamed at the end. A failure leaves the last good result alone and
    keeps the output as NAME.failed.ipynb; an interrupt leaves nothing.

    Raises: NotebookFailed; ValueError on an unknown notebook, profile or parameter
    """
    values = overrides(name, profile)
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target = paths.results(profile) / f"{name}.ipynb"
    running, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(PROGRESS_VARIABLE, f"/proc/{os.getpid()}/fd/2")  # sweeps inside draw their bar there
    try:
        papermill.execute_notebook(
            str(_source(name)),
            str(running),
            parameters=values,
            cwd=str(paths.notebooks()),
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
        )
        os.replace(running, target)
        failed.unlink(missing_ok=True)
    except Exception as error:
        told = f"notebook {name} ({profile}) failed"
        if isinstance(error, PapermillExecutionError):
            told += _in_cell(error.cell_index, error.source) + f": {error.ename}: {error.evalue}"
        else:
            where = _last_cell(running) if isinstance(error, DeadKernelError) else ""
            told += f"{where}: {type(error).__name__}: {error}"
        if running.exists():
            os.replace(running, failed)
            told += f"\nits output is kept in {failed.relative_to(paths.ROOT)}"
        raise NotebookFailed(told) from error
    finally:
        running.unlink(missing_ok=True)
    return target


def _in_cell(index: int, source: str) -> str:
    return f" in cell {index} (`{next(iter(source.strip().splitlines()), '')}`)"


def _last_cell(running: Path) -> str:
    """Where a kernel that died had got to: papermill has noted in the running notebook when a cell began."""
    import nbformat

    cells = nbformat.read(running, as_version=4).cells if running.exists() else []
    began = [index for index, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    return _in_cell(began[-1], cells[began[-1]].source) if began else ""


def _source(name: str) -> Path:
    if name not in names():
        raise ValueError(f"notebook must be one of {', '.join(names()) or 'none'}, got {name!r}")
    return paths.notebooks() / f"{name}.ipynb"
