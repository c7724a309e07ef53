"""Synchronisation and training on rate-limited links between real processes (see `links.testbed`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync
from figures.reducers import NAN
from figures.style import SYSTEM_COLORS, Picture, facets, subplots
from figures.zen.panels import Options

if TYPE_CHECKING:
    from artifact.sparse_sync.workloads import Task

CASE = ["workload", "workers", "rate_mbps"]
STOCK = {"stock": "Stock DDP", "stock-dense": "Stock DDP, dense"}


def synchronisation_times(
    *, cases: list[tuple[str, int, str]], systems: list[str], repeats: int, steps: int, seed: int = 0
) -> pd.DataFrame:
    """One synchronisation of each workload's gradients by each system, timed, with the bytes on the wire.

    Without root or tc, `state` says what is missing, seconds and wire bytes are NaN and the bytes are counted.

    cases: (workload, workers, rate such as "200mbit")
    One row per (workload, workers, rate_mbps, system, repeat).
    """
    from artifact.sparse_sync.links import testbed

    possible, reason = testbed.available()
    tables = []
    for name, workers, rate in cases:
        workload, tensors = sparse_sync.workload_tensors(name, workers, steps, seed)
        if possible:
            table = sparse_sync.measure_links(tensors, rate, systems=systems, repeats=repeats, seed=seed)
        else:
            schemes = {name: scheme for name, scheme in sparse_sync.SCHEMES.items() if name in systems}
            counted = {name: sparse_sync.traffic_of(name, tensors, seed).max_sent_bytes for name in schemes}
            table = pd.DataFrame({"system": systems, "workers": workers, "rate_mbps": testbed.rate_bps(rate) / 1e6})
            table["label"] = [schemes[name].label if name in schemes else name for name in systems]
            table["counted_bytes"] = table["system"].map(counted)
            table = table.assign(repeat=0, seconds=NAN, wire_bytes=NAN)
        tables.append(table.assign(workload=workload, state="measured" if possible else f"needs root: {reason}"))
    return pd.concat(tables, ignore_index=True)


def training_times(*, cases: list[tuple[str, int, str]], steps: int, systems: list[str], seed: int = 0) -> pd.DataFrame:
    """DistributedDataParallel on rate-limited links, by stock DDP and by the hook: loss against time.

    cases:   (workload, workers, rate such as "200mbit")
    systems: `stock`, `stock-dense` (whole embedding gradients, as modules give them by default), `auto`, or schemes
    One row per (workload, workers, rate_mbps, system, step), time from the end of the first step; without root or tc
    only the state, all else NaN.
    """
    from artifact.sparse_sync.links import testbed
    from artifact.sparse_sync.workloads import task

    names = {**{name: scheme.label for name, scheme in sparse_sync.SCHEMES.items()}, **STOCK, "auto": "Chosen"}
    labels = {system: names[system] for system in systems}
    possible, reason = testbed.available()
    tables = []
    for name, workers, rate in cases:
        job = task(name, seed)
        if possible:
            # What is passed is loaded before the ranks fork, with all that it imports: they share it.
            train = partial(_train, job, sparse_sync.register_sparse_sync, steps, systems, seed)
            with sparse_sync.Testbed(workers, rate) as bed:
                ranks = bed.run(train, timeout_s=1800)
            runs = [_over_ranks([rank[name] for rank in ranks]).assign(system=label) for name, label in labels.items()]
            table = pd.concat(runs).assign(state="measured")
        else:
            empty = dict.fromkeys(("loss", "elapsed_s", "samples_per_s", "own_s", "exchange_s"), NAN)
            table = pd.DataFrame({"system": labels.values(), "step": 0, **empty, "state": f"needs root: {reason}"})
        rate_mbps = testbed.rate_bps(rate) / 1e6
        tables.append(table.assign(workload=job.workload, workers=workers, rate_mbps=rate_mbps))
    return pd.concat(tables, ignore_index=True)


def _over_ranks(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """The mean loss and the slowest rank's time of one training, a row a step."""
    import torch

    elapsed_s = np.max([run["elapsed_s"] for run in runs], axis=0)
    return pd.DataFrame(
        {
            "step": range(len(elapsed_s)),
            "loss": np.mean([run["loss"] for run in runs], axis=0),
            "elapsed_s": elapsed_s,
            "samples_per_s": len(runs) * runs[0]["batch"] * (len(elapsed_s) - 1) / elapsed_s[-1],
            "own_s": max(run["own_s"] for run in runs),
            "exchange_s": max(run["exchange_s"] for run in runs),
            "ranks_agree": all(torch.equal(runs[0]["parameters"], run["parameters"]) for run in runs),
        }
    )


def _train(
    job: Task, register: Callable[..., Any], steps: int, systems: list[str], seed: int, rank: int, _: int
) -> dict[str, dict[str, Any]]:
    """One rank: the systems take each step in turn, so that a machine that slows down slows all of them."""
    from torch import distributed

    trainings = {system: _Training(job, register, system, seed) for system in systems}
    for step in range(steps):
        for training in trainings.values():
            batch = job.batch(rank, step)
            distributed.barrier()
            training.step(batch)
    return {system: training.result() for system, training in trainings.items()}


class _Training:
    """One rank's training by one system. Time runs from the end of the first step, which connects and chooses."""

    def __init__(self, job: Task, register: Callable[..., Any], system: str, seed: int) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        self.job, self.model = job, job.model()
        if system == "stock-dense":
            for module in self.model.modules():
                if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
                    module.sparse = False
        self.wrapped = DistributedDataParallel(self.model, find_unused_parameters=True)
        self.state = None if system in STOCK else register(self.wrapped, system, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=job.learning_rate)
        self.losses: list[float] = []
        self.elapsed_s: list[float] = []
        self.first_own_s = self.first_exchange_s = NAN

    def step(self, batch: Any) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.job.loss(self.wrapped, batch)
        loss.backward()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        if self.state and not self.losses:
            self.first_own_s, self.first_exchange_s = self.state.own_seconds, self.state.exchange_seconds
        self.elapsed_s.append(self.elapsed_s[-1] + seconds if self.losses else 0.0)
        self.losses.append(float(loss.detach()))

    def result(self) -> dict[str, Any]:
        import torch

        return {
            "loss": self.losses,
            "elapsed_s": self.elapsed_s,
            "batch": self.job.batch_size,
            "parameters": torch.nn.utils.parameters_to_vector(self.model.parameters()).detach(),
            "own_s": self.state.own_seconds - self.first_own_s if self.state else NAN,
            "exchange_s": self.state.exchange_seconds - self.first_exchange_s if self.state else NAN,
        }


def plot_links(table: pd.DataFrame) -> Figure:
    """Seconds of one synchronisation on rate-limited links, a panel per workload, workers and rate."""
    rows = _named_cases(table)
    bars: Options = {"kind": "bar", "x": "seconds", "y": "label", "hue": "label", "legend": False, "saturation": 1}
    spread: Options = {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 1, "color": "black"}}
    height_in = 1.9 * -(-rows["case"].nunique() // 3)
    grid = facets(sns.catplot, rows, col="case", col_wrap=3, sharex=False, height_in=height_in, **bars, **spread)
    grid.set_titles("{col_name}").set_axis_labels("Seconds", "")
    return grid.figure


def plot_links_training(table: pd.DataFrame) -> Figure:
    """Loss against time on rate-limited links: stock DDP and the hook."""
    cases = list(_named_cases(table).groupby("case", sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.5, squeeze=False, sharey=True)
    by_system: Options = {"hue": "system", "style": "system", "palette": SYSTEM_COLORS}
    for ax, (case, rows) in zip(axes.flat, cases, strict=True):  # relplot cannot draw a table without root: all is NaN
        sns.lineplot(rows, x="elapsed_s", y="loss", **by_system, legend=ax is axes.flat[0], ax=ax)
        ax.set(title=case, xlabel="Time (s)", ylabel="Training loss (nats)")
    sns.move_legend(axes.flat[0], "upper right", title=None)
    return figure


def _named_cases(table: pd.DataFrame) -> pd.DataFrame:
    names = [f"{workload}, n = {n}, {rate:g} Mb/s" for workload, n, rate in table[CASE].itertuples(index=False)]
    return table.assign(case=names)


def largest_wire_excess_pct(table: pd.DataFrame) -> float:
    """Largest difference, in %, of wire bytes from counted payload, of the rank that sends most, over schemes."""
    rows = table.dropna(subset=["counted_bytes", "wire_bytes"])
    return float(100 * (rows["wire_bytes"] / rows["counted_bytes"] - 1).abs().max()) if len(rows) else NAN


def hook_loss_difference(table: pd.DataFrame) -> float:
    """Largest difference of the loss, over all steps, between stock DDP and the hook by rows."""
    curves = table.pivot(index=[*CASE, "step"], columns="system", values="loss")
    return float((curves["Zen (rows)"] - curves["Stock DDP"]).abs().max())


def hook_overhead_pct(table: pd.DataFrame) -> float:
    """The hook's own seconds, by rows, over what it saves of stock DDP (dense gradients); worst case, in %."""
    return _overhead_pct(table, "Stock DDP, dense")


def hook_overhead_sparse_pct(table: pd.DataFrame) -> float:
    """The hook's own seconds, by rows, over what it saves of stock DDP (sparse gradients); worst case, in %."""
    return _overhead_pct(table, "Stock DDP")


def _overhead_pct(table: pd.DataFrame, base: str) -> float:
    """100 where nothing is saved."""
    longest = table.groupby([*CASE, "system"])[["elapsed_s", "own_s"]].max().unstack()
    own = longest["own_s"]["Zen (rows)"]
    saved = longest["elapsed_s"][base] - longest["elapsed_s"]["Zen (rows)"] + own
    return 100 * float((own / saved).where((saved > own) | saved.isna(), 1.0).max())


FIGURES = {
    "zen-links": Picture(
        "38_links",
        plot_links,
        "One synchronisation between processes on rate-limited links: median of the repeats.",
        interval="from the fastest to the slowest repeat",
    ),
    "zen-links-training": Picture(
        "38_training",
        plot_links_training,
        "Training on rate-limited links: stock DDP with sparse and dense gradients, and the hook.",
    ),
}
