"""Synchronisation and training on rate-limited links between real processes (see `links.testbed`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
    schemes, tables = [name for name in systems if name in sparse_sync.SCHEMES], []
    for workload, n, rate in cases:
        label, tensors = sparse_sync.workload_tensors(workload, n, steps, seed)
        if possible:
            table = sparse_sync.measure_links(tensors, rate, systems=systems, repeats=repeats, seed=seed)
        else:
            counted = {name: sparse_sync.traffic_of(name, tensors, seed).max_sent_bytes for name in schemes}
            table = pd.DataFrame({"system": systems, "workers": n, "rate_mbps": testbed.rate_bps(rate) / 1e6})
            table["label"] = table["system"].replace({name: sparse_sync.SCHEMES[name].label for name in schemes})
            table["counted_bytes"] = table["system"].map(counted)
            table = table.assign(repeat=0, seconds=NAN, wire_bytes=NAN)
        tables.append(table.assign(workload=label, state="measured" if possible else f"needs root: {reason}"))
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
    labels = [names[system] for system in systems]
    possible, reason = testbed.available()
    tables = []
    for workload, n, rate in cases:
        job = task(workload, seed)
        if possible:
            # What is passed is loaded before the ranks fork, with all that it imports: they share it.
            train = partial(_train, job, sparse_sync.register_sparse_sync, steps, systems, seed)
            with sparse_sync.Testbed(n, rate) as bed:
                ranks = bed.run(train, timeout_s=1800)
            runs = [_over_ranks(runs).assign(system=name) for name, *runs in zip(labels, *ranks, strict=True)]
            table = pd.concat(runs).assign(state="measured")
        else:
            empty = dict.fromkeys(("loss", "elapsed_s", "samples_per_s", "own_s", "exchange_s"), NAN)
            table = pd.DataFrame({"system": labels, "step": 0, **empty, "state": f"needs root: {reason}"})
        tables.append(table.assign(workload=job.workload, workers=n, rate_mbps=testbed.rate_bps(rate) / 1e6))
    return pd.concat(tables, ignore_index=True)


def _over_ranks(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """The mean loss and the slowest rank's time of one training, a row a step."""
    elapsed_s = np.max([run["elapsed_s"] for run in runs], axis=0)
    table = pd.DataFrame({"loss": np.mean([run["loss"] for run in runs], axis=0), "elapsed_s": elapsed_s})
    table["samples_per_s"] = len(runs) * runs[0]["batch"] * (len(elapsed_s) - 1) / elapsed_s[-1]
    table["own_s"], table["exchange_s"] = (max(run[name] for run in runs) for name in ("own_s", "exchange_s"))
    table["ranks_agree"] = all(runs[0]["parameters"].equal(run["parameters"]) for run in runs)
    return table.rename_axis("step").reset_index()


def _train(
    job: Task, register: Callable[..., Any], steps: int, systems: list[str], seed: int, rank: int, _: int
) -> tuple[dict[str, Any], ...]:
    """One rank: the systems take each step in turn, so that a machine that slows down slows all of them."""
    trainings = [_training(job, register, steps, system, seed, rank) for system in systems]
    return list(zip(*trainings, strict=True))[-1]


def _training(
    job: Task, register: Callable[..., Any], steps: int, system: str, seed: int, rank: int
) -> Iterator[dict[str, Any]]:
    """One rank's training by one system: yields when it is set up, after each step, and what it measured at the end."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = job.model()
    if system == "stock-dense":
        for module in model.modules():
            if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
                module.sparse = False
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    state = None if system in STOCK else register(wrapped, system, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
    losses, seconds, spent = [], [], []
    yield {}
    for step in range(steps):
        batch = job.batch(rank, step)
        torch.distributed.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = job.loss(wrapped, batch)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start if step else 0.0)  # the first step connects and chooses
        losses.append(float(loss.detach()))
        spent.append(np.array([state.own_seconds, state.exchange_seconds] if state else [NAN, NAN]))
        yield {}
    own_s, exchange_s = (spent[-1] - spent[0]).tolist()
    parameters = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    measured = {"loss": losses, "elapsed_s": np.cumsum(seconds), "own_s": own_s, "exchange_s": exchange_s}
    yield {**measured, "batch": job.batch_size, "parameters": parameters}


def plot_links(table: pd.DataFrame) -> Figure:
    """One synchronisation between processes on rate-limited links: median of the repeats."""
    rows = _named_cases(table)
    bars: Options = {"kind": "bar", "x": "seconds", "y": "label", "hue": "label", "legend": False, "saturation": 1}
    spread: Options = {"estimator": "median", "errorbar": ("pi", 100), "err_kws": {"linewidth": 1, "color": "black"}}
    height_in = 1.9 * -(-rows["case"].nunique() // 3)
    grid = facets(sns.catplot, rows, col="case", col_wrap=3, sharex=False, height_in=height_in, **bars, **spread)
    grid.set_titles("{col_name}").set_axis_labels("Seconds", "")
    return grid.figure


def plot_links_training(table: pd.DataFrame) -> Figure:
    """Training on rate-limited links: stock DDP with sparse and dense gradients, and the hook."""
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


def _overhead_pct(table: pd.DataFrame, base: str) -> float:
    """The hook's own seconds, by rows, over what it saves of `base`; worst case, in %. 100 where nothing is saved."""
    longest = table.groupby([*CASE, "system"])[["elapsed_s", "own_s"]].max().unstack()
    own = longest["own_s"]["Zen (rows)"]
    saved = longest["elapsed_s"][base] - longest["elapsed_s"]["Zen (rows)"] + own
    return 100 * float((own / saved).where((saved > own) | saved.isna(), 1.0).max())


hook_overhead_pct = partial(_overhead_pct, base=STOCK["stock-dense"])
hook_overhead_sparse_pct = partial(_overhead_pct, base=STOCK["stock"])

FIGURES = {
    "zen-links": Picture("38_links", plot_links, interval="from the fastest to the slowest repeat"),
    "zen-links-training": Picture("38_training", plot_links_training),
}
