"""What all tests share: they take data sets that are at hand, and never download any."""

import os

os.environ.setdefault("ARTIFACT_OFFLINE", "1")
