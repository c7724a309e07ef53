"""Run a notebook with the parameters of a profile, keeping the last good result whatever happens."""

from __future__ import annotations

import os
from pathlib import Path

from artifact.sweep import PROGRESS_VARIABLE
from figures import paths
from figures.calls import overrides


class NotebookFailed(RuntimeError):
    """A cell failed; the message names notebook, cell and error, and where the failed output is kept."""


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
            str(paths.notebooks() / f"{name}.ipynb"),
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
