"""What the tests of the shared core share."""

import pytest

from artifact import paths


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project directory in place of this one."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path
