"""What the tests of commands and of real processes share."""

import sys
from pathlib import Path

import pytest

from artifact import __main__ as command_line
from artifact import systems
from artifact.elastic_moe import commands

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def forks():
    """What starts nodes, once for all runs of a module."""
    from artifact.elastic_moe import ForkLauncher

    with ForkLauncher() as started:
        yield started


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(systems, "commands", lambda: iter([commands]))

    def call(*arguments):
        monkeypatch.setattr(command_line, "app", command_line.typer.Typer(no_args_is_help=True))
        monkeypatch.setattr(sys, "argv", ["artifact", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call
