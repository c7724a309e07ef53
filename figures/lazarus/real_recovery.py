"""Training on real processes (notebook 28): recoveries, equal losses, systems and their simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import elastic_moe as moe
from figures.lazarus.drawing import named, stacked_bars
from figures.style import BLUE, CYCLE, GREY, Picture, facets, subplots

if TYPE_CHECKING:
    from torch import Tensor

LABELS = {"lazarus": "Lazarus", "ds-ft": "DS(FT)", "ds": "DS"}


def recoveries(*, nodes: int, steps: int, points: Sequence[str], preset: str, seed: int = 0) -> pd.DataFrame:
    """The phases of one recovery for each point of a step at which a node is killed, ms since its death.

    One row per (point, phase): from `start_ms` to `end_ms`.
    """
    rows = []
    with moe.ForkLauncher() as forks:
        for point in points:
            kills = [(1, steps // 2, point)]
            result = moe.train(nodes=nodes, steps=steps, preset=preset, kills=kills, seed=seed, forks=forks)
            (failure,) = result.failures
            generations = [event for event in result.events if event["event"] == "generation"]
            mended = next(event for event in generations if event["at_s"] > failure["at_s"])
            start = died = failure["failed_at_s"]
            ends = {"detect": failure["at_s"], "stop all": mended["stopped_s"], "plan": mended["planned_s"]}
            ends["new group, move experts"] = mended["at_s"]
            for phase, end in ends.items():
                row = {"point": point, "phase": phase, "start_ms": 1e3 * (start - died), "end_ms": 1e3 * (end - died)}
                rows.append(row | {"transferred_mb": failure["transferred_bytes"] / 1e6})
                start = max(start, end)
    return pd.DataFrame(rows)


def equal_losses(
    *, nodes: int, steps: int, kills: Sequence[tuple[int, int, str]], joins: Sequence[int], preset: str, seed: int = 0
) -> pd.DataFrame:
    """The loss of each step, of processes that are killed and join, and of one process that holds everything."""
    result = moe.train(nodes=nodes, steps=steps, preset=preset, kills=kills, joins=joins, seed=seed)
    alone = losses_in_one_process(moe.PRESETS[preset], seed, steps)
    table = pd.DataFrame({"step": range(steps), "loss": result.losses, "loss_in_one_process": alone})
    difference = (table["loss"] - table["loss_in_one_process"]).abs() / table["loss_in_one_process"]
    return table.assign(relative_difference=difference, nodes=[len(members) for members in result.members])


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
    options: dict[str, Any] = {"steps": steps, "preset": preset, "checkpoint_interval": checkpoint_interval}
    with moe.ForkLauncher() as forks:
        options |= {"seed": seed, "forks": forks}
        testbed = _calibrated(nodes, nodes - len(kills), options)
        for system, label in LABELS.items():
            result = moe.train(nodes=nodes, system=system, kills=kills, **options)
            begin = next(event["at_s"] for event in result.events if event["event"] == "generation")
            failed = sorted((each["failed_at_s"] - begin, each["node"]) for each in result.failures)
            events = tuple(moe.FailureEvent(at_s, "fail", (node,)) for at_s, node in failed)
            trace = moe.FailureTrace("as it was", tuple(range(nodes)), events)
            minutes = result.seconds / 60
            simulated = moe.simulate(preset, system, trace, testbed, minutes, checkpoint_steps=checkpoint_interval)
            row = {"system": label, "steps": steps, "seconds": result.seconds, "tokens_per_s": result.tokens_per_second}
            row |= {"simulated_tokens_per_s": simulated.steps * moe.PRESETS[preset].step_tokens / result.seconds}
            row |= {"outage_s": sum(failure["outage_s"] for failure in result.failures)}
            row |= {"lost_steps": result.lost_steps, "restarts": result.restarts}
            rows.append(row | {"nodes_at_end": len(result.members[-1])})
    return pd.DataFrame(rows)


def _calibrated(most: int, least: int, options: dict[str, Any]) -> moe.TimeModel:
    """The simulator's constants, measured in other runs."""
    steps, intervals = options["steps"], (options["steps"] - 1) // options["checkpoint_interval"]
    step_s: dict[str, dict[int, float]] = {system: {} for system in LABELS}
    checkpoints, outages = [], {}
    for system in ("lazarus", "ds"):
        group = moe.PRESETS[options["preset"]].group_nodes if system == "ds" else 1
        for nodes in range(least // group * group, most + 1, group):
            result = moe.train(nodes=nodes, system=system, **options)
            seconds = [each for _, _, each in result.step_seconds]
            for name in ("ds", "ds-ft") if system == "ds" else (system,):
                step_s[name][nodes] = median(seconds)
            checkpoints.append(max(0.0, result.seconds - sum(seconds)) / max(1, intervals))
    for system in ("lazarus", "ds"):
        result = moe.train(nodes=most, system=system, kills=[(0, steps // 2, "backward")], **options)
        outages[system] = result.failures[0]["outage_s"]
    once = {"outage_s": outages["lazarus"], "restart_s": outages["ds"], "checkpoint_s": median(checkpoints)}
    return moe.calibrated_testbed("measured-cpu", step_s=step_s, **once)


def losses_in_one_process(preset: moe.Preset, seed: int, steps: int) -> list[float]:
    """Loss of each step of one process that holds every expert: what elastic training must equal."""
    import torch

    from artifact.elastic_moe.training.model import batch, run_experts
    from artifact.elastic_moe.training.shard import ModelShard

    class LocalDispatch:
        """A dispatch without other ranks."""

        loads_LE = torch.zeros(preset.num_layers, preset.num_experts, dtype=torch.int64)

        def __call__(self, x_TD: Tensor, expert_T: Tensor, layer: int, experts: Mapping[int, Tensor]) -> Tensor:
            counts_E = torch.bincount(expert_T, minlength=self.loads_LE.shape[1])
            self.loads_LE[layer] += counts_E.cpu()
            order_T = expert_T.argsort(stable=True)
            outputs_TD = run_experts(x_TD.index_select(0, order_T), counts_E.tolist(), experts)
            return torch.empty_like(x_TD).index_copy(0, order_T, outputs_TD)

    every = [(layer, expert) for layer in range(preset.num_layers) for expert in range(preset.num_experts)]
    state, dispatch, losses = ModelShard(preset, seed, every, torch.device("cpu")), LocalDispatch(), []
    for step in range(steps):
        sample_BT = batch(preset, seed, step)
        loss = state.model.loss_sum(sample_BT, state.layers, dispatch) / sample_BT[:, 1:].numel()
        loss.backward()
        for parameter in state.parameters:  # an expert without tokens takes its step too
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        state.apply()
        losses.append(loss.item())
    return losses


def plot_recoveries(table: pd.DataFrame) -> Figure:
    """What follows the SIGKILL of a node at each point of a step, measured on real processes of one machine, until the
    first step without it."""
    phases = dict(zip(table["phase"].unique(), CYCLE, strict=False))
    rows = table.assign(ms=table["end_ms"] - table["start_ms"])
    figure = stacked_bars(rows, y="point", length="ms", hue="phase", palette=phases)
    figure.axes[0].set(xlabel="ms since a node was killed", ylabel="Killed during")
    return figure


def plot_equal_losses(table: pd.DataFrame) -> Figure:
    """Loss of each step of real processes that are killed and join, over that of one process that holds all experts;
    below, the nodes that are there."""
    figure, (top, below) = subplots(2, 1, height_in=3.0, sharex=True, height_ratios=[2.2, 1])
    sns.lineplot(table, x="step", y="loss_in_one_process", color=GREY, linewidth=3.5, label="one process", ax=top)
    sns.lineplot(table, x="step", y="loss", color=BLUE, label="processes that are killed and join", ax=top)
    sns.lineplot(table, x="step", y="nodes", color=BLUE, drawstyle="steps-mid", ax=below)
    top.set_ylabel("Loss (nats)")
    below.set(xlabel="Step", ylabel="Nodes", ylim=(0, table["nodes"].max() + 1))
    return figure


def plot_systems(table: pd.DataFrame) -> Figure:
    """Tokens a second of real processes on one schedule of kills, and what the simulator says of it, whose constants
    come from other runs."""
    rows = table.rename(columns={"tokens_per_s": "measured", "simulated_tokens_per_s": "simulated"})
    rows["run"] = named(rows, "{system}\n{restarts} restarts")
    rows = rows.melt("run", ["measured", "simulated"], var_name="how")
    grid = facets(sns.catplot, rows, kind="bar", x="run", y="value", hue="how", palette=[BLUE, GREY], saturation=1)
    grid.set_axis_labels("", "Tokens a second\nwith outages")
    return grid.figure


FIGURES = {
    "lazarus-recoveries": Picture("28_recoveries", plot_recoveries),
    "lazarus-equal-losses": Picture("28_equal_losses", plot_equal_losses),
    "lazarus-real-systems": Picture("28_systems", plot_systems),
}
