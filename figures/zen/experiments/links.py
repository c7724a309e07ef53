"""Synchronisation and training on rate-limited links between real processes (see `links.testbed`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from artifact.sparse_sync import workloads
from artifact.sparse_sync.links import testbed
from artifact.sparse_sync.links.accounting import traffic_of
from artifact.sparse_sync.links.ddp_hook import register_sparse_sync
from artifact.sparse_sync.schemes import SCHEMES
from artifact.sparse_sync.workloads import workload_tensors

STOCK, STOCK_DENSE = "stock", "stock-dense"


def links(
    *, cases: Sequence[tuple[str, int, str]], systems: Sequence[str], repeats: int, steps: int, seed: int = 0
) -> pd.DataFrame:
    """One synchronisation of each workload's gradients by each system, timed, with the bytes on the wire.

    Without root or tc, `state` says what is missing, seconds and wire bytes are NaN and the bytes are counted.

    cases: (workload, workers, rate such as "200mbit")
    One row per (workload, workers, rate_mbps, system, repeat).
    """
    possible, reason = testbed.available()
    tables = []
    for name, workers, rate in cases:
        label, tensors = workload_tensors(name, workers, steps, seed)
        if possible:
            table = testbed.measure_links(tensors, rate, systems=systems, repeats=repeats, seed=seed).assign(
                state="measured"
            )
        else:
            table = _only_counted(tensors, rate, systems, seed).assign(state=f"needs root: {reason}")
        table.insert(0, "workload", label)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _only_counted(tensors: Sequence[Any], rate: str, systems: Sequence[str], seed: int) -> pd.DataFrame:
    rows = []
    for system in systems:
        known = system in SCHEMES
        rows.append(
            {
                "system": system,
                "label": SCHEMES[system].label if known else system,
                "workers": len(tensors),
                "rate_mbps": testbed.rate_bps(rate) / 1e6,
                "repeat": 0,
                "seconds": np.nan,
                "counted_bytes": traffic_of(system, tensors, seed).max_sent_bytes if known else np.nan,
                "wire_bytes": np.nan,
            }
        )
    return pd.DataFrame(rows)


def links_training(
    *, cases: Sequence[tuple[str, int, str]], steps: int, systems: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """DistributedDataParallel on rate-limited links, by stock DDP and by the hook: loss against time.

    cases:   (workload, workers, rate such as "200mbit")
    systems: `stock`, `stock-dense` (whole embedding gradients, as modules give them by default), `auto`, or schemes
    One row per (workload, workers, rate_mbps, system, step), time from the end of the first step; without root or tc
    only the state, all else NaN.
    """
    possible, reason = testbed.available()
    tables = []
    for name, workers, rate in cases:
        case: dict[str, Any] = {
            "workload": workloads.task(name, seed).workload,
            "workers": workers,
            "rate_mbps": testbed.rate_bps(rate) / 1e6,
        }
        if possible:
            table = _trained(name, workers, rate, steps, systems, seed).assign(state="measured")
        else:
            rows = [{"system": _label(system), "step": 0} for system in systems]
            empty = dict.fromkeys(("loss", "elapsed_s", "samples_per_s", "own_s", "exchange_s"), np.nan)
            table = pd.DataFrame(rows).assign(**empty, state=f"needs root: {reason}")
        tables.append(table.assign(**case))
    return pd.concat(tables, ignore_index=True)


def _trained(name: str, workers: int, rate: str, steps: int, systems: Sequence[str], seed: int) -> pd.DataFrame:
    tables = []
    with testbed.Testbed(workers, rate) as bed:
        ranks = bed.run(partial(_train_all, name, steps, systems, seed), timeout_s=1800)
    for system in systems:
        runs = [each[system] for each in ranks]
        table = pd.DataFrame(runs[0]["rows"])
        table["loss"] = np.mean([[row["loss"] for row in each["rows"]] for each in runs], axis=0)
        table["elapsed_s"] = np.max([[row["elapsed_s"] for row in each["rows"]] for each in runs], axis=0)
        tables.append(
            table.assign(
                system=_label(system),
                samples_per_s=workers * runs[0]["batch"] * (steps - 1) / table["elapsed_s"].iloc[-1],
                own_s=max(each["own_s"] for each in runs),
                exchange_s=max(each["exchange_s"] for each in runs),
                ranks_agree=all(torch.equal(runs[0]["parameters"], each["parameters"]) for each in runs),
            )
        )
    return pd.concat(tables, ignore_index=True)


def _label(system: str) -> str:
    return {STOCK: "Stock DDP", STOCK_DENSE: "Stock DDP, dense", "auto": "Chosen"}.get(system) or SCHEMES[system].label


class _Training:
    """One rank's training by one system. Time runs from the end of the first step, which connects and chooses."""

    def __init__(self, name: str, system: str, seed: int) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.job = workloads.task(name, seed)
        self.model = self.job.model()
        if system == STOCK_DENSE:
            for module in self.model.modules():
                if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
                    module.sparse = False
        self.wrapped = DistributedDataParallel(self.model, find_unused_parameters=True)
        self.state = None if system in (STOCK, STOCK_DENSE) else register_sparse_sync(self.wrapped, system, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.job.learning_rate)
        self.rows: list[dict[str, float]] = []
        self._own = self._exchange = 0.0

    def step(self, batch: Any) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.job.loss(self.wrapped, batch)
        loss.backward()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        elapsed = self.rows[-1]["elapsed_s"] + seconds if self.rows else 0.0
        if not self.rows and self.state:
            self._own, self._exchange = self.state.own_seconds, self.state.exchange_seconds
        self.rows.append({"step": len(self.rows), "loss": float(loss.detach()), "elapsed_s": elapsed})

    def result(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "batch": self.job.batch_size,
            "parameters": torch.nn.utils.parameters_to_vector(self.model.parameters()).detach(),
            "own_s": self.state.own_seconds - self._own if self.state else np.nan,
            "exchange_s": self.state.exchange_seconds - self._exchange if self.state else np.nan,
        }


def _train_all(
    name: str, steps: int, systems: Sequence[str], seed: int, rank: int, _: int
) -> dict[str, dict[str, Any]]:
    """One rank: the systems take each step in turn, so that a machine that slows down slows all of them."""
    from torch import distributed

    trainings = {system: _Training(name, system, seed) for system in systems}
    for step in range(steps):
        for training in trainings.values():
            batch = training.job.batch(rank, step)
            distributed.barrier()
            training.step(batch)
    return {system: training.result() for system, training in trainings.items()}
