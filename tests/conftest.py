"""What the tests of all parts share."""

import os
import sys

import pytest

from artifact import __main__ as command_line, systems

os.environ.setdefault("ARTIFACT_OFFLINE", "1")  # tests read data sets that are at hand, and download none

COMMANDS = list(systems.commands())  # here, before a test moves the root of the checkout


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(systems, "commands", lambda: COMMANDS)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["artifact", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call
