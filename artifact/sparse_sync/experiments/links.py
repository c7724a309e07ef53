"""Synchronisation and training on rate-limited links between real processes (see `artifact.sparse_sync.testbed`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from artifact.sparse_sync import testbed, workloads
from artifact.sparse_sync.counting import traffic_of
from artifact.sparse_sync.ddp_hook import register_sparse_sync
from artifact.sparse_sync.schemes import SCHEMES
from artifact.sparse_sync.workloads import workload_tensors

STOCK = "stock"


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
            table = testbed.measure(tensors, rate, systems=systems, repeats=repeats, seed=seed).assign(state="measured")
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
    *, name: str, workers: int, rate: str, steps: int, systems: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """DistributedDataParallel on rate-limited links, by stock DDP and by the hook: loss against time.

    systems: `stock`, `auto` or names of schemes
    One row per (system, step), time from the end of the first step; without root or tc only the state, all else NaN.
    """
    possible, reason = testbed.available()
    if not possible:
        rows = [{"system": _label(system), "step": 0, "state": f"needs root: {reason}"} for system in systems]
        return pd.DataFrame(rows).assign(loss=np.nan, elapsed_s=np.nan, own_s=np.nan, exchange_s=np.nan)
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
                workload=runs[0]["workload"],
                workers=workers,
                rate_mbps=bed.rate_bps / 1e6,
                samples_per_s=workers * runs[0]["batch"] * (steps - 1) / table["elapsed_s"].iloc[-1],
                own_s=max(each["own_s"] for each in runs),
                exchange_s=max(each["exchange_s"] for each in runs),
                ranks_agree=all(torch.equal(runs[0]["parameters"], each["parameters"]) for each in runs),
                state="measured",
            )
        )
    return pd.concat(tables, ignore_index=True)


def _label(system: str) -> str:
    return {STOCK: "Stock DDP", "auto": "Chosen"}.get(system) or SCHEMES[system].label


def _train_all(
    name: str, steps: int, systems: Sequence[str], seed: int, rank: int, _: int
) -> dict[str, dict[str, Any]]:
    return {system: _train(name, steps, system, seed, rank) for system in systems}


def _train(name: str, steps: int, system: str, seed: int, rank: int) -> dict[str, Any]:
    """One rank's training. Time runs from the end of the first step, which connects, compiles and chooses."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    job = workloads.task(name, seed)
    model = job.model()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    state = None if system == STOCK else register_sparse_sync(wrapped, system, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
    batches = [job.batch(rank, step) for step in range(steps)]
    rows, start, own, exchange = [], 0.0, 0.0, 0.0
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = job.loss(wrapped, batch)
        loss.backward()
        optimizer.step()
        if step == 0:
            own, exchange = (state.own_seconds, state.exchange_seconds) if state else (0.0, 0.0)
            distributed.barrier()
            start = time.perf_counter()
        rows.append({"step": step, "loss": float(loss.detach()), "elapsed_s": time.perf_counter() - start})
    return {
        "rows": rows,
        "workload": job.workload,
        "batch": job.batch_size,
        "parameters": torch.nn.utils.parameters_to_vector(model.parameters()).detach(),
        "own_s": state.own_seconds - own if state else np.nan,
        "exchange_s": state.exchange_seconds - exchange if state else np.nan,
    }
