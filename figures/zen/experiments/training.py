"""What synchronisation is worth to training: throughput by model, and the same loss (Zen, sections 5.2 and 5.5)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from artifact import sweep
from artifact.sparse_sync import workloads
from artifact.sparse_sync.links.transport import run_counted
from artifact.sparse_sync.schemes import SCHEMES
from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, as_sparse

FULL_SIZE = {"LSTM": ("lstm", 406e6, 20e6, 3.1), "DeepFM": ("deepfm", 214e6, 68e6, np.nan)}
"""By model: the workload that stands in, parameters of the embedding and of the rest (Zen, table 1), and Zen's gain
over AllReduce in training throughput on 16 machines at 25 Gb/s (section 5.2), where it is given."""


def step_time(*, names: Sequence[str], repeats: int, seed: int = 0) -> pd.DataFrame:
    """Seconds of forward and backward of one worker's batch on this machine, and the parameters that it trains.

    One row a workload: the median over `repeats`.
    """
    rows = []
    for workload in names:
        name, _, batch = workload.partition(":")
        job = workloads.task(name, seed, limit_batch=int(batch) if batch else None)
        model = job.model()
        seconds = []
        for step in range(repeats + 1):
            start = time.perf_counter()
            job.loss(model, job.batch(0, step)).backward()
            seconds.append(time.perf_counter() - start)
            model.zero_grad()
        table = model.embedding.weight
        dense = sum(parameter.numel() for parameter in model.parameters()) - table.numel()
        rows.append(
            {
                "workload": job.workload + (f":{batch}" if batch else ""),
                "compute_s": float(np.median(seconds[1:])),
                "batch": job.batch_size,
                "embedding_elements": table.numel(),
                "dense_elements": dense,
            }
        )
    return pd.DataFrame(rows)


def throughput(*, steps: pd.DataFrame, costs: pd.DataFrame, bandwidths_gbps: Sequence[float]) -> pd.DataFrame:
    """Samples a second of all workers: measured compute, then modelled communication, without overlap of the two.

    Embeddings go by the scheme, everything else by the dense ring; of a top-k workload everything goes by the scheme.
    steps, costs: tables of `step_time` and `counted`
    One row per (workload, workers, system, bandwidth_gbps). Zen, figures 11 to 14
    """
    rows = []
    for cost in costs.merge(steps, on="workload").to_dict("records"):
        n = cost["workers"]
        everything = cost["workload"].removeprefix("synthetic-").startswith("topk-")
        others = 0 if everything else 2 * (n - 1) / n * cost["dense_elements"] * 4
        for bandwidth in bandwidths_gbps:
            seconds = cost["compute_s"] + (cost["busiest_bytes"] + others) * 8 / (bandwidth * 1e9)
            rows.append(
                {
                    **{key: cost[key] for key in ("workload", "workers", "scheme", "system")},
                    "bandwidth_gbps": bandwidth,
                    "samples_per_s": n * cost["batch"] / seconds,
                    "communication_share_pct": 100 * (1 - cost["compute_s"] / seconds),
                }
            )
    return pd.DataFrame(rows)


def full_size(*, costs: pd.DataFrame, bandwidths_gbps: Sequence[float]) -> pd.DataFrame:
    """The paper's models at their size: traffic from the ratios counted here, compute from one published number.

    The embedding's cost over the dense ring's is from `costs` (16 workers), the rest of the model goes by the ring.
    Compute is what makes Zen's published gain over AllReduce at 25 Gb/s come out; every other gain then follows. It is
    NaN where the paper gives none.
    One row per (model, system, bandwidth_gbps).
    """
    n, tables = 16, []
    for model, (workload, embedding, others, gain) in FULL_SIZE.items():
        names = costs["workload"].str.split(":").str[0].str.removeprefix("synthetic-")
        chosen = costs[(costs["workers"] == n) & (names == workload)].set_index("scheme")
        if "ring" not in chosen.index:
            continue
        over_ring = chosen["busiest_bytes"] / chosen["busiest_bytes"]["ring"]
        bits = 2 * (n - 1) / n * 32 * (embedding * over_ring + others)
        compute = (bits["ring"] - gain * bits["zen"]) / (gain - 1) / 25e9
        for bandwidth in bandwidths_gbps:
            rows = {"model": model, "scheme": bits.index, "system": chosen["system"], "bandwidth_gbps": bandwidth}
            spent = bits / (bandwidth * 1e9)
            times = {"communication_s": spent, "compute_s": compute, "step_s": compute + spent}
            tables.append(pd.DataFrame({**rows, **times}).reset_index(drop=True))
    return pd.concat(tables, ignore_index=True)


def accuracy(*, name: str, num_workers: int, steps: int, systems: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Loss by step where the sparse gradient travels by each system; everything else is summed as it is (figure 18).

    systems: names of schemes, and `strawman`: Algorithm 3 at half a slot an index, which loses gradients
    One row per (system, step).
    """
    grid = sweep.grid(system=systems, name=[name], num_workers=[num_workers], steps=[steps], seed=[seed])
    return sweep.table(_trained, grid, description="training")


def _trained(*, system: str, name: str, num_workers: int, steps: int, seed: int) -> pd.DataFrame:
    job = workloads.task(name, seed)
    model = job.model()
    table = model.embedding.weight
    others = [parameter for parameter in model.parameters() if parameter is not table]
    rows = []
    for step in range(steps):
        losses = [job.loss(model, job.batch(worker, step)) for worker in range(num_workers)]
        found = [torch.autograd.grad(loss, [table, *others], materialize_grads=True) for loss in losses]
        tensors = [as_sparse(each[0]) for each in found]
        total = _synchronised(system, tensors, seed)
        with torch.no_grad():
            flat = table.data.view(total.num_units, total.width)
            flat[total.index_N] -= job.learning_rate / num_workers * total.value_ND
            for parameter, first, *rest in zip(others, *(each[1:] for each in found), strict=True):
                parameter -= job.learning_rate / num_workers * sum(rest, first)
        label = "Lossy strawman" if system == "strawman" else SCHEMES[system].label
        loss = float(torch.stack([each.detach() for each in losses]).mean())
        rows.append({"workload": job.workload, "system": label, "workers": num_workers, "step": step, "loss": loss})
    return pd.DataFrame(rows)


def _synchronised(system: str, tensors: list[SparseTensor], seed: int) -> SparseTensor:
    if system != "strawman":
        return run_counted(SCHEMES[system], tensors, seed)[0][0]()
    kept = []
    for tensor in (each.elements() for each in tensors):
        order = hashing.strawman(tensor.index_N.numpy(), len(tensors), seed, slots_per_index=0.5).order_N
        chosen = torch.from_numpy(np.sort(order))
        kept.append(SparseTensor(tensor.index_N[chosen], tensor.value_ND[chosen], tensor.num_units))
    return run_counted(SCHEMES["zen"], kept, seed)[0][0]()
