"""The command line: `python -m artifact`. A wrong input is one line on stderr and exit status 2."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import typer

from artifact import cli, systems
from artifact.datasets import DatasetUnavailable
from artifact.datasets.commands import data, data_list

SHOWN = ("torch", "triton", "mamba-ssm", "transformers", "numpy", "numba", "pandas", "papermill", "jupyterlab", "ray")


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
    for module in systems.commands():
        for name, value in getattr(module, "state", dict)().items():
            print(f"{name:<13} {value}")
    print()
    data_list()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def application() -> typer.Typer:
    """All commands: those of this module, of the systems and, in a checkout, of the evaluation."""
    app = typer.Typer(
        help="Marconi, Lazarus and Zen: the papers' evaluations, run again.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for module in systems.commands():
        module.register(app)
    app.command(rich_help_panel="This machine")(doctor)
    app.add_typer(data, name="data", rich_help_panel="This machine")
    return app


def main() -> None:
    """Run a command. A wrong input, or a file that cannot be read or written, is one line and exit status 2."""
    message = ""
    try:
        status = application()(prog_name="python -m artifact", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        status, message = 130, "interrupted"
    except cli.UsageError as error:
        status, message = 2, cli.problem(error)  # empty if the help has been shown instead
    except (ValueError, OSError, DatasetUnavailable) as error:
        status, message = 2, " ".join(f"{error}".splitlines())
    if message:
        print(f"error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # reported above; the interpreter would fail once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    main()
