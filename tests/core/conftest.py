"""What the tests of the shared core share."""

import pytest

from artifact import paths
from figures import paths as checkout


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project directory in place of this one."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    return tmp_path
