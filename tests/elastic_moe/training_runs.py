"""What the tests with real processes share."""

import os
import subprocess
from functools import cache

import pytest
import torch

from artifact.elastic_moe import PRESETS
from figures.lazarus.real_recovery import losses_in_one_process

TINY = PRESETS["tiny"]
LONGEST = 24


@cache
def alone():
    """Losses of one process that holds everything."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return losses_in_one_process(TINY, 0, LONGEST)
    finally:
        torch.set_num_threads(threads)


def checked(result, steps):
    """A run that went to its end with the losses of one process."""
    assert result.ended == "finished", [result.ended, *result.events]
    assert result.losses == pytest.approx(alone()[:steps], rel=1e-4)
    assert len(result.members) == steps
    return result


def command_line_of(pid):
    """Arguments of a process, as bytes; none if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return line.read()
    except FileNotFoundError:
        return b""


def descendants(pid):
    """All processes below one."""
    found, left = [], [pid]
    while left:
        parent = left.pop()
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout
        found += map(int, children.split())
        left += map(int, children.split())
    return found


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
