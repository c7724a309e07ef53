"""What the tests of real processes share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def forks():
    """What starts nodes, once for all runs of a module."""
    from artifact.elastic_moe import ForkLauncher

    with ForkLauncher() as started:
        yield started
