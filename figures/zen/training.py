"""What it is worth to training: throughput, and the same loss (Zen, sections 5.2, 5.5; figures 11 to 14, 18)."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import style
from figures.reducers import STAND_IN
from figures.style import Picture, facets
from figures.zen.panels import Options, lines, numbered_log

FULL_SIZE = {"LSTM": ("lstm:28", 406e6, 20e6, 3.1), "DeepFM": ("deepfm", 214e6, 68e6, np.nan)}
"""By model: the workload that stands in, parameters of the embedding and of the rest (Zen, table 1), and Zen's gain
over AllReduce in training throughput on 16 machines at 25 Gb/s (section 5.2), where it is given."""
STRAWMAN = "Lossy strawman"


def throughput(
    *,
    names: list[str],
    workers: list[int],
    schemes: list[str],
    steps: int,
    repeats: int,
    bandwidths_gbps: list[float],
    seed: int = 0,
) -> pd.DataFrame:
    """Samples a second of all workers: measured compute, then modelled communication, without overlap of the two.

    Embeddings go by the scheme, everything else by the dense ring; of a top-k workload everything goes by the scheme.
    One row per (workload, workers, system, bandwidth_gbps). Zen, figures 11 to 14
    """
    compute = _step_time(names, repeats, seed)
    costs = _busiest_bytes(names, workers, schemes, steps, seed)
    rows = costs.merge(compute, on="workload").merge(pd.DataFrame({"bandwidth_gbps": bandwidths_gbps}), how="cross")
    n = rows["workers"]
    others = (2 * (n - 1) / n * rows["dense_elements"] * 4).mask(rows["workload"].str.contains("topk-"), 0)
    seconds = rows["compute_s"] + (rows["busiest_bytes"] + others) * 8 / (rows["bandwidth_gbps"] * 1e9)
    rows["samples_per_s"] = n * rows["batch"] / seconds
    rows["communication_share_pct"] = 100 * (1 - rows["compute_s"] / seconds)
    kept = ["workload", "workers", "scheme", "system", "bandwidth_gbps", "samples_per_s", "communication_share_pct"]
    return rows[kept]


def _step_time(names: list[str], repeats: int, seed: int) -> pd.DataFrame:
    """Median seconds of one worker's forward and backward on this machine, and its parameters. One row a workload."""
    from artifact.sparse_sync import workloads

    rows = []
    for workload in names:
        name, _, batch = workload.partition(":")
        job = workloads.task(name, seed, limit_batch=int(batch) if batch else None)
        model, seconds = job.model(), []
        for step in range(repeats + 1):
            start = time.perf_counter()
            job.loss(model, job.batch(0, step)).backward()
            seconds.append(time.perf_counter() - start)
            model.zero_grad()
        others = sum(weights.numel() for weights in model.parameters()) - model.embedding.weight.numel()
        rows.append((workload.replace(name, job.workload), float(np.median(seconds[1:])), job.batch_size, others))
    return pd.DataFrame(rows, columns=["workload", "compute_s", "batch", "dense_elements"])


def full_size(*, schemes: list[str], steps: int, bandwidths_gbps: list[float], seed: int = 0) -> pd.DataFrame:
    """The paper's models at their size, 16 machines: traffic from ratios counted here, compute from one of its numbers.

    The embedding's cost over the dense ring's is that of the workload that stands in, the rest of the model goes by the
    ring. Compute is what makes Zen's published gain over AllReduce at 25 Gb/s come out, NaN where the paper gives none.
    One row per (model, system, bandwidth_gbps). schemes must have ring and zen
    """
    n, tables = 16, []
    counted = _busiest_bytes([workload for workload, *_ in FULL_SIZE.values()], [n], schemes, steps, seed)
    for model, (workload, embedding, others, gain) in FULL_SIZE.items():
        costs = counted[counted["workload"].str.removeprefix(STAND_IN) == workload].set_index("scheme")
        over_ring = costs["busiest_bytes"] / costs["busiest_bytes"]["ring"]
        bits = 2 * (n - 1) / n * 32 * (embedding * over_ring + others)
        compute = (bits["ring"] - gain * bits["zen"]) / (gain - 1) / 25e9
        for bandwidth in bandwidths_gbps:
            spent = bits / (bandwidth * 1e9)
            times = {"communication_s": spent, "compute_s": compute, "step_s": compute + spent}
            table = pd.DataFrame({"system": costs["system"], **times}).reset_index()
            tables.append(table.assign(model=model, bandwidth_gbps=bandwidth))
    return pd.concat(tables, ignore_index=True)


def _busiest_bytes(names: list[str], workers: list[int], schemes: list[str], steps: int, seed: int) -> pd.DataFrame:
    """Bytes of the busiest link. One row per (workload, workers, scheme)."""
    shared = {"workers": workers, "schemes": schemes, "steps": steps, "seed": seed}
    return sweep.table(_busiest, [{"name": name, **shared} for name in names], description="workloads")


def _busiest(name: str, workers: list[int], schemes: list[str], steps: int, seed: int) -> pd.DataFrame:
    label, tensors = sparse_sync.workload_tensors(name, max(workers), steps, seed)
    table = pd.DataFrame(product([label], workers, schemes), columns=["workload", "workers", "scheme"])
    counted = [sparse_sync.traffic_of(scheme, tensors[:n], seed) for n, scheme in product(workers, schemes)]
    systems = [sparse_sync.SCHEMES[scheme].label for scheme in table["scheme"]]
    return table.assign(system=systems, busiest_bytes=[traffic.busiest_bytes for traffic in counted])


def accuracy(
    *, names: list[str], num_workers: int, steps: int, systems: list[str], strawman_slots: float, seed: int = 0
) -> pd.DataFrame:
    """Loss by step where the sparse gradient travels by each system; everything else is summed as it is (figure 18).

    systems:        names of schemes, and `strawman`: Algorithm 3, which loses gradients
    strawman_slots: memory of the strawman, slots an index
    One row per (workload, system, step).
    """
    grid = sweep.grid(name=names, system=systems)
    shared = {"num_workers": num_workers, "steps": steps, "strawman_slots": strawman_slots, "seed": seed}
    return sweep.table(_trained, [{**case, **shared} for case in grid], description="training")


def _trained(name: str, system: str, num_workers: int, steps: int, strawman_slots: float, seed: int) -> pd.DataFrame:
    import torch

    from artifact.sparse_sync import workloads

    job = workloads.task(name, seed)
    model = job.model()
    table = model.embedding.weight
    others = [parameter for parameter in model.parameters() if parameter is not table]
    curve = []
    for step in range(steps):
        losses = [job.loss(model, job.batch(worker, step)) for worker in range(num_workers)]
        found = [torch.autograd.grad(loss, [table, *others], materialize_grads=True) for loss in losses]
        total = _sum(system, [sparse_sync.as_sparse(first) for first, *_ in found], strawman_slots, seed)
        with torch.no_grad():
            flat = table.data.view(total.num_units, total.width)
            flat[total.index_N] -= job.learning_rate / num_workers * total.value_ND
            for parameter, first, *rest in zip(others, *(gradients[1:] for gradients in found), strict=True):
                parameter -= job.learning_rate / num_workers * sum(rest, first)
        curve.append(float(torch.stack([loss.detach() for loss in losses]).mean()))
    label = STRAWMAN if system == "strawman" else sparse_sync.SCHEMES[system].label
    shared = {"workload": job.workload, "system": label, "workers": num_workers}
    return pd.DataFrame({**shared, "step": range(steps), "loss": curve})


def _sum(system: str, tensors: list[sparse_sync.SparseTensor], slots: float, seed: int) -> sparse_sync.SparseTensor:
    import torch

    from artifact.sparse_sync.tensors.hashing import strawman

    if system == "strawman":
        tensors, system = [tensor.elements() for tensor in tensors], "zen"
        for worker, tensor in enumerate(tensors):
            order = strawman(tensor.index_N.numpy(), len(tensors), seed, slots_per_index=slots).order_N
            kept = torch.from_numpy(np.sort(order))
            tensors[worker] = sparse_sync.SparseTensor(tensor.index_N[kept], tensor.value_ND[kept], tensor.num_units)
    return sparse_sync.run_counted(sparse_sync.SCHEMES[system], tensors, seed)[0][0]()


def plot_throughput(table: pd.DataFrame) -> Figure:
    """Compute measured here, bytes counted here, over links of the given rate (in the manner of Zen's figures 11 to
    14). Dashed: one index per row."""
    speeds = sorted(table["bandwidth_gbps"].unique())
    panels: Options = {"row": "bandwidth_gbps", "row_order": speeds, "col": "workload", "facet_kws": {"sharey": False}}
    grid = lines(table, "workers", "samples_per_s", height_in=1.6 * len(speeds) + 0.4, **panels)
    grid.set_axis_labels("Workers", "")
    for (speed, workload), ax in grid.axes_dict.items():
        numbered_log(ax)
        ax.set_title(workload if speed == speeds[0] else "")
        if workload == table["workload"].iloc[0]:
            ax.set_ylabel(f"Samples a second\n{speed:g} Gb/s")
    return grid.figure


def plot_full_size(table: pd.DataFrame) -> Figure:
    """A training step on 16 machines at the paper's size; the compute time is what Zen's published gain over AllReduce
    at 25 Gb/s implies (figures 11a and 12a)."""
    rows = table.dropna(subset=["compute_s"])
    speeds = sorted(rows["bandwidth_gbps"].unique())
    figure, axes = style.subplots(1, len(speeds), height_in=2.4, squeeze=False, sharey=True)
    for ax, speed in zip(axes.flat, speeds, strict=True):
        shown = rows[rows["bandwidth_gbps"] == speed]
        for column, color, label in (("step_s", style.BLUE, "communicating"), ("compute_s", style.GREY, "computing")):
            sns.barplot(shown, x=column, y="system", color=color, saturation=1, label=label, legend=False, ax=ax)
        ax.set(title=f"{', '.join(shown['model'].unique())} at the paper's size, {speed:g} Gb/s", ylabel="")
        ax.set_xlabel("Seconds a step")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plot_accuracy(table: pd.DataFrame) -> Figure:
    """Training loss by step (Zen, figure 18). Lines that coincide are drawn one inside the other."""
    keys, names = ["workload", "step"], ["Training loss (nats)", "Loss - AllReduce's (nats)"]
    ring = table[table["system"] == "AllReduce"].set_index(keys)["loss"]
    rows = table.rename(columns={"loss": names[0]}).join(ring, on=keys)
    rows[names[1]] = rows[names[0]] - rows["loss"]
    rows = rows.melt([*keys, "system"], names, var_name="quantity")
    systems = table["system"].unique()
    widths = dict(zip(systems, np.linspace(5, 0.8, len(systems)), strict=True))  # all seen where they coincide
    curves: Options = {"kind": "line", "x": "step", "y": "value", "hue": "system", "row": "quantity", "col": "workload"}
    panels: Options = {"facet_kws": {"sharey": False, "margin_titles": True}}
    grid = facets(sns.relplot, rows, size="system", sizes=widths, height_in=3.8, **curves, **panels)
    grid.set_titles(col_template="{col_name}", row_template="").set_axis_labels("Step", "")
    for ax, quantity in zip(grid.axes[:, 0], names, strict=True):
        ax.set_ylabel(quantity)
    return grid.figure


def strawman_loss_difference(table: pd.DataFrame) -> float:
    """Mean over the last quarter of the steps of what the lossy strawman's loss is above AllReduce's."""
    curves = table.pivot(index=["workload", "step"], columns="system", values="loss").dropna()
    step = curves.index.get_level_values("step")
    late = curves[step >= 0.75 * step.max()]
    return float((late[STRAWMAN] - late["AllReduce"]).mean())


FIGURES = {
    "zen-fig11-14": Picture("36_throughput", plot_throughput),
    "zen-fig11-full-size": Picture("36_full_size", plot_full_size),
    "zen-fig18": Picture("37_accuracy", plot_accuracy),
}
