"""What the tests of the prefix cache share."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def sharegpt():
    """The paper's ShareGPT trace at one session a second."""
    from artifact.datasets import DatasetUnavailable
    from artifact.prefix_cache.workloads.importers import sharegpt

    try:
        return sharegpt(sessions_per_s=1.0)
    except DatasetUnavailable as error:
        pytest.skip(f"the ShareGPT trace is not at hand: {error}")


@pytest.fixture
def random_requests():
    """Requests that share prefixes, diverge within edges, repeat, and end within other sequences."""

    def make(seed, count=60, vocabulary=3, longest=40):
        rng = np.random.default_rng(seed)
        known, requests = [[]], []
        for _ in range(count):
            base = known[rng.integers(len(known))]
            base = base[: rng.integers(len(base) + 1)]
            inp = [*base, *rng.integers(vocabulary, size=rng.integers(1, longest)).tolist()]
            out = rng.integers(vocabulary, size=rng.integers(longest // 2)).tolist()
            if rng.random() < 0.1 and requests:
                inp, out = requests[rng.integers(len(requests))]
            requests.append((inp, out))
            known.append(inp + out)
        return requests

    return make
