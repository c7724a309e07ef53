"""What gradients look like, and what each scheme sends for them (Zen, sections 2, 3 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from artifact import sweep
from artifact.sparse_sync import workloads
from artifact.sparse_sync.links.accounting import synchronise, traffic_of
from artifact.sparse_sync.schemes import cost_model
from artifact.sparse_sync.tensors.partitions import partition, pull_imbalance, push_imbalance
from artifact.sparse_sync.workloads import workload_tensors
from figures.zen import closed_forms


def characterisation(
    *, names: Sequence[str], num_workers: int, parts: Sequence[int], steps: int, seed: int = 0
) -> pd.DataFrame:
    """Density, overlap, densification and skewness of real gradients (Zen, section 2.1; figures 1 to 3).

    One row per (workload, quantity, x): x is a number of workers for densification, of parts for skewness, a part for
    share_in_eight (the mean over workers), a pair for overlap, nothing for density and the two imbalances.
    """
    grid = sweep.grid(name=names, num_workers=[num_workers], parts=[list(parts)], steps=[steps], seed=[seed])
    return sweep.table(_characterise, grid, description="workloads")


def _characterise(*, name: str, num_workers: int, parts: list[int], steps: int, seed: int) -> pd.DataFrame:
    label, tensors = workload_tensors(name, num_workers, steps, seed)
    rows: list[tuple[str, float, float]] = [
        ("density", 0, float(np.mean([closed_forms.density(tensor) for tensor in tensors])))
    ]
    rows += [("overlap", pair, value) for pair, value in enumerate(closed_forms.overlap_ratios(tensors))]
    counts = [1 << i for i in range(num_workers.bit_length()) if 1 << i <= num_workers]
    rows += [("densification", k, closed_forms.densification_ratio(tensors[:k])) for k in counts]
    rows += [("skewness", each, closed_forms.skewness_ratio(tensors[0], each)) for each in parts]
    shares = np.mean([closed_forms.part_shares(tensor, 8) for tensor in tensors], axis=0)
    rows += [("share_in_eight", part, float(share)) for part, share in enumerate(shares)]
    hashed = partition("hashed", tensors[0].size, num_workers, seed)
    elements = [tensor.elements() for tensor in tensors]
    rows.append(("push_imbalance", num_workers, push_imbalance(elements, hashed)))
    rows.append(("pull_imbalance", num_workers, pull_imbalance(elements, hashed)))
    table = pd.DataFrame(rows, columns=["quantity", "x", "value"])
    table.insert(0, "workload", label)
    return table.assign(units=tensors[0].num_units, width=tensors[0].width, workers=num_workers)


def counted(
    *,
    names: Sequence[str],
    workers: Sequence[int],
    schemes: Sequence[str],
    bandwidth_gbps: float,
    steps: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Every scheme on each workload's gradients, counted, checked for exactness, and predicted by the closed form.

    One row per (workload, workers, scheme). Zen, figures 8 and 15 and table 3.
    """
    largest = max(workers)
    parameters = sweep.grid(
        name=names, workers=[list(workers)], schemes=[list(schemes)], bandwidth_gbps=[bandwidth_gbps], steps=[steps]
    )
    return sweep.table(_counted, [{**each, "largest": largest, "seed": seed} for each in parameters])


def _counted(
    *, name: str, workers: list[int], schemes: list[str], bandwidth_gbps: float, steps: int, largest: int, seed: int
) -> pd.DataFrame:
    label, tensors = workload_tensors(name, largest, steps, seed)
    rows = []
    for n in workers:
        statistics = cost_model.measure_statistics(tensors[:n], seed)
        predicted = cost_model.predict_bytes(statistics)
        chosen = cost_model.choose_scheme(statistics, bandwidth_gbps=bandwidth_gbps)
        for scheme in schemes:
            seen = synchronise(scheme, tensors[:n], bandwidth_gbps=bandwidth_gbps, seed=seed).as_dict()
            rows.append(
                {
                    "workload": label,
                    "system": seen.pop("label"),
                    **seen,
                    "busiest_bytes": traffic_of(scheme, tensors[:n], seed).busiest_bytes,
                    "predicted_bytes": predicted.get(scheme, np.nan),
                    "chosen": chosen,
                }
            )
    return pd.DataFrame(rows)


def design_space(*, workers: Sequence[int], rows: int, tokens_per_worker: int, seed: int = 0) -> pd.DataFrame:
    """Cost over the dense ring's against the number of workers, up to more than can be run (Zen, figure 8).

    Supports are a Zipf embedding's (rows of the width of NMT's table), the costs are the paper's formulas on measured
    density and densification. One row per (workers, system).
    """
    everyone = workloads.zipf_embedding(
        rows=rows, width=1, tokens_per_worker=tokens_per_worker, num_workers=max(workers), seed=seed
    )
    table = []
    for n in workers:
        tensors = everyone[:n]
        d = float(np.mean([closed_forms.density(tensor) for tensor in tensors]))
        gammas = [closed_forms.densification_ratio(everyone[:k]) for k in (1 << i for i in range((n - 1).bit_length()))]
        gamma = closed_forms.densification_ratio(tensors)
        # A block of 256 elements is half of a row of 512 columns: blocks are as dense as rows.
        costs = {
            "AllReduce": closed_forms.dense_ring(1, n),
            "AGsparse": closed_forms.all_gather(1, d, n),
            "SparCML": closed_forms.hierarchical_centralization(1, d, gammas),
            "OmniReduce": closed_forms.omnireduce(1, d, gamma, n) * closed_forms.skewness_ratio(tensors[0], n),
            "Balanced Parallelism": closed_forms.balanced_parallelism(1, d, gamma, n),
            "Zen": closed_forms.zen(1, d, gamma, n),
        }
        ring = costs["AllReduce"]
        table += [
            {"workers": n, "system": system, "cost_over_ring": cost / ring, "density": d, "densification": gamma}
            for system, cost in costs.items()
        ]
    return pd.DataFrame(table)


def selector_map(
    *,
    workers: Sequence[int],
    overlaps: Sequence[float],
    densities: Sequence[float],
    size: int,
    candidates: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """Every candidate counted over a grid of supports, against what the selector and the published rule choose.

    One row per (workers, overlap, density): cheapest, chosen, published, and how much more than the cheapest they cost.
    """
    grid = sweep.grid(num_workers=workers, overlap=overlaps, density=densities, size=[size], seed=[seed])
    grid = [{**each, "candidates": list(candidates)} for each in grid if each["overlap"] >= each["density"]]
    return sweep.table(_selected, grid, description="selector")


def _selected(
    *, num_workers: int, overlap: float, density: float, size: int, seed: int, candidates: list[str]
) -> pd.DataFrame:
    tensors = workloads.uniform(size=size, density=density, overlap=overlap, num_workers=num_workers, seed=seed)
    bytes_of = {name: traffic_of(name, tensors, seed).busiest_bytes for name in candidates}
    statistics = cost_model.measure_statistics(tensors, seed)
    best = min(bytes_of, key=lambda name: bytes_of[name])
    chosen = cost_model.choose_scheme(statistics, candidates=candidates)
    published = closed_forms.published_choice(statistics)
    row = {"workers": num_workers, "overlap": overlap, "density": density, "cheapest": best, "chosen": chosen}
    return pd.DataFrame(
        [
            {
                **row,
                "published": published,
                "chosen_over_cheapest": bytes_of[chosen] / bytes_of[best],
                "published_over_cheapest": bytes_of[published] / bytes_of[best],
                "zen_over_sparcml": bytes_of["zen"] / bytes_of["sparcml"],
            }
        ]
    )


def break_even(*, workers: Sequence[int]) -> pd.DataFrame:
    """Overlap above which Balanced Parallelism beats Hierarchical Centralization, by equations 1 and 2 (theorem 1)."""
    return pd.DataFrame([{"workers": n, "overlap": closed_forms.break_even_overlap(n)} for n in workers])
