"""Training on real processes: one recovery phase by phase, equal losses, and the systems beside their simulation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import pandas as pd

from artifact.elastic_moe import (
    PRESETS,
    FailureEvent,
    FailureTrace,
    ForkLauncher,
    TrainingResult,
    calibrated_testbed,
    losses_in_one_process,
    simulate,
    train,
)

LABELS = {"lazarus": "Lazarus", "ds-ft": "DS(FT)", "ds": "DS"}


def recoveries(*, nodes: int, steps: int, points: Sequence[str], preset: str, seed: int = 0) -> pd.DataFrame:
    """The phases of one recovery for each point of a step at which a node is killed, ms since its death.

    One row per (point, phase): from `start_ms` to `end_ms`.
    """
    rows = []
    with ForkLauncher() as forks:
        for point in points:
            result = train(
                nodes=nodes, steps=steps, preset=preset, kills=[(1, steps // 2, point)], seed=seed, forks=forks
            )
            (failure,) = result.failures
            mended = next(
                event for event in result.events if event["event"] == "generation" and event["at_s"] > failure["at_s"]
            )
            died = failure["failed_at_s"]
            ends = {
                "detect": failure["at_s"],
                "stop all": mended["stopped_s"],
                "plan": mended["planned_s"],
                "new group, move experts": mended["at_s"],
            }
            start = died
            for phase, end in ends.items():
                rows.append(
                    {
                        "point": point,
                        "phase": phase,
                        "start_ms": 1e3 * (start - died),
                        "end_ms": 1e3 * (end - died),
                        "transferred_mb": failure["transferred_bytes"] / 1e6,
                    }
                )
                start = max(start, end)
    return pd.DataFrame(rows)


def equal_losses(
    *, nodes: int, steps: int, kills: Sequence[tuple[int, int, str]], joins: Sequence[int], preset: str, seed: int = 0
) -> pd.DataFrame:
    """The loss of each step, of processes that are killed and join, and of one process that holds everything."""
    result = train(nodes=nodes, steps=steps, preset=preset, kills=kills, joins=joins, seed=seed)
    alone = losses_in_one_process(PRESETS[preset], seed, steps)
    return pd.DataFrame(
        {
            "step": range(steps),
            "loss": result.losses,
            "loss_in_one_process": alone,
            "relative_difference": [abs(a - b) / b for a, b in zip(result.losses, alone, strict=True)],
            "nodes": [len(members) for members in result.members],
        }
    )


def systems(
    *,
    nodes: int,
    steps: int,
    kills: Sequence[tuple[int, int, str]],
    checkpoint_interval: int,
    preset: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Lazarus, DS and DS(FT) on one schedule of kills, and what the calibrated simulator says of each. One row each.

    The simulator gets the times of the failures, and constants from other runs: steps without a failure on each number
    of nodes, one recovery, one restart, and what a checkpoint takes.
    """
    rows = []
    options: dict[str, Any] = {"preset": preset, "checkpoint_interval": checkpoint_interval, "seed": seed}
    with ForkLauncher() as forks:
        testbed = _calibrated(nodes, nodes - len(kills), steps, options, forks)
        for system, label in LABELS.items():
            result = train(nodes=nodes, steps=steps, system=system, kills=kills, forks=forks, **options)
            begin = next(event["at_s"] for event in result.events if event["event"] == "generation")
            events = [FailureEvent(each["failed_at_s"] - begin, "fail", (each["node"],)) for each in result.failures]
            trace = FailureTrace(
                "as it was", tuple(range(nodes)), tuple(sorted(events, key=lambda event: event.time_s))
            )
            simulated = simulate(
                preset, system, trace, testbed, result.seconds / 60, checkpoint_steps=checkpoint_interval
            )
            rows.append(
                {
                    "system": label,
                    "steps": steps,
                    "seconds": result.seconds,
                    "tokens_per_s": result.tokens_per_second,
                    "simulated_tokens_per_s": simulated.steps * PRESETS[preset].step_tokens / result.seconds,
                    "outage_s": sum(failure["outage_s"] for failure in result.failures),
                    "lost_steps": result.lost_steps,
                    "restarts": result.restarts,
                    "nodes_at_end": len(result.members[-1]),
                }
            )
    return pd.DataFrame(rows)


def _calibrated(most: int, least: int, steps: int, options: dict[str, Any], forks: ForkLauncher) -> Any:
    step_s: dict[str, dict[int, float]] = {system: {} for system in LABELS}
    checkpoints = []
    for system in ("lazarus", "ds"):
        group = PRESETS[options["preset"]].group_nodes if system == "ds" else 1
        for nodes in range(least // group * group, most + 1, group):
            result = train(nodes=nodes, steps=steps, system=system, forks=forks, **options)
            for name in ("ds", "ds-ft") if system == "ds" else (system,):
                step_s[name][nodes] = median(seconds for _, _, seconds in result.step_seconds)
            checkpoints.append(_besides_steps(result) / max(1, (steps - 1) // options["checkpoint_interval"]))
    outages = {
        system: train(
            nodes=most, steps=steps, system=system, kills=[(0, steps // 2, "backward")], forks=forks, **options
        ).failures[0]["outage_s"]
        for system in ("lazarus", "ds")
    }
    return calibrated_testbed(
        "measured-cpu",
        step_s=step_s,
        outage_s=outages["lazarus"],
        restart_s=outages["ds"],
        checkpoint_s=median(checkpoints),
    )


def _besides_steps(result: TrainingResult) -> float:
    """Seconds of a run without failures that are not of steps: its checkpoints."""
    return max(0.0, result.seconds - sum(seconds for _, _, seconds in result.step_seconds))
