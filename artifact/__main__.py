"""The command line: `python -m artifact`. A wrong input is one line on stderr and exit status 2."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from artifact import systems
from artifact.datasets import DatasetUnavailable
from artifact.datasets.commands import data, data_list

SHOWN = (
    "torch",
    "triton",
    "mamba-ssm",
    "transformers",
    "numpy",
    "numba",
    "pandas",
    "papermill",
    "jupyterlab",
    "ray",
)

app = typer.Typer(
    help="Marconi, Lazarus and Zen: the papers' evaluations, run again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data, name="data")

# A wrong command, option or value. Typer has this class of click's but exports only its subclasses.
UsageError: Any = typer.BadParameter.__base__


@app.command()
def doctor() -> None:
    """Say what is installed, which device is used and why, and which data sets are at hand."""
    from artifact import hardware

    seen = hardware.detect()
    print(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in SHOWN:
        print(f"{package:<13} {_version(package)}")
    kernels = "compiled kernels" if seen.mamba_kernels else "reference functions only: no compiled kernels"
    print(f"\ndevice        {seen.device}: {seen.reason}")
    print(f"processor     {seen.cpu}, {seen.cores} cores, {seen.memory_gib} GiB")
    print(f"mamba-ssm     {kernels}")
    print(f"nvcc          {'found' if seen.nvcc else 'not found'}")
    limited = "network namespaces with rate limits can be made" if seen.root and seen.tc else "no rate-limited links"
    print(f"tc, root      {limited}")
    print()
    data_list()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Add the systems' commands, in a checkout the evaluation's too (`register(app)` of each), and run."""
    try:
        for commands in systems.commands():
            commands.register(app)
        sys.exit(app(prog_name="python -m artifact", standalone_mode=False))
    except UsageError as error:
        if message := " ".join(error.format_message().split()):  # empty where the help has been shown instead
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, FileNotFoundError, DatasetUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
