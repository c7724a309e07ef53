"""Random kills and joins: no run hangs, and none loses a finished step that can be kept."""

import itertools
import random

import pytest
from training_runs import checked

from artifact.elastic_moe import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(20))
def test_random_schedules(forks, seed):
    """None hangs, and no finished step is lost where each expert has a holder left."""
    chosen = random.Random(seed)
    nodes = chosen.choice([4, 6, 8])
    points = ("forward", "backward", "allreduce", "vote", "apply", "migration")
    victims = chosen.sample(range(nodes), chosen.randint(1, nodes - 3))
    kills = [(node, chosen.randrange(1, 9), chosen.choice(points)) for node in victims]
    joins = [chosen.randrange(1, 9)] if chosen.random() < 0.4 else []
    result = checked(
        train(nodes=nodes, steps=10, kills=kills, joins=joins, checkpoint_interval=3, forks=forks, seed=0), 10
    )
    unrecoverable = [event for event in result.events if event["event"] == "unrecoverable"]
    assert result.restarts == len(unrecoverable)
    assert result.lost_steps == 0 or unrecoverable
    for before, after in itertools.pairwise(result.members):
        assert len(after) >= 2 and set(after) <= set(before) | set(range(nodes, nodes + len(joins)))
