"""Zen (OSDI 2025): near-optimal synchronisation of sparse gradients.

One gradient's way: `SparseTensor` -> a scheme of `SCHEMES`, or the one that `choose_scheme` picks from `Statistics` ->
`partition` among servers -> a `Format` on the wire -> `run_counted` in this process or a `Link` between processes.
`synchronise` does so once and reports; `register_sparse_sync` does so inside DistributedDataParallel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact.sparse_sync.links.accounting import SyncReport, synchronise, traffic_of
    from artifact.sparse_sync.links.ddp_hook import SparseSync, register_sparse_sync
    from artifact.sparse_sync.links.testbed import Testbed, measure_links
    from artifact.sparse_sync.links.transport import Link, Traffic, run_counted
    from artifact.sparse_sync.schemes import COMPARED, SCHEMES, Scheme
    from artifact.sparse_sync.schemes.base import Exchange, RankContext
    from artifact.sparse_sync.schemes.cost_model import (
        Load,
        Statistics,
        choose_scheme,
        measure_statistics,
        predict_bytes,
    )
    from artifact.sparse_sync.tensors.formats import Bitmap, Blocks, Coo, Dense, Format
    from artifact.sparse_sync.tensors.grouping import group_indices, measure_grouping
    from artifact.sparse_sync.tensors.hashing import Grouping, imbalance, partition_of
    from artifact.sparse_sync.tensors.input_file import read_gradients
    from artifact.sparse_sync.tensors.partitions import PARTITIONS, Partition, partition, pull_imbalance, push_imbalance
    from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, as_sparse, sum_in_rank_order, union
    from artifact.sparse_sync.tensors.topk import TopK
    from artifact.sparse_sync.workloads import WorkerGradients, gradients, workload_tensors, zipf_embedding

_NAMES = {
    "links.accounting": ["SyncReport", "synchronise", "traffic_of"],
    "links.ddp_hook": ["SparseSync", "register_sparse_sync"],
    "links.testbed": ["Testbed", "measure_links"],
    "links.transport": ["Link", "Traffic", "run_counted"],
    "schemes": ["COMPARED", "SCHEMES", "Scheme"],
    "schemes.base": ["Exchange", "RankContext"],
    "schemes.cost_model": ["Load", "Statistics", "choose_scheme", "measure_statistics", "predict_bytes"],
    "tensors.formats": ["Bitmap", "Blocks", "Coo", "Dense", "Format"],
    "tensors.grouping": ["group_indices", "measure_grouping"],
    "tensors.hashing": ["Grouping", "imbalance", "partition_of"],
    "tensors.input_file": ["read_gradients"],
    "tensors.partitions": ["PARTITIONS", "Partition", "partition", "pull_imbalance", "push_imbalance"],
    "tensors.sparse_tensor": ["SparseTensor", "as_sparse", "sum_in_rank_order", "union"],
    "tensors.topk": ["TopK"],
    "workloads": ["WorkerGradients", "gradients", "workload_tensors", "zipf_embedding"],
}

__all__ = [
    "COMPARED",
    "PARTITIONS",
    "SCHEMES",
    "Bitmap",
    "Blocks",
    "Coo",
    "Dense",
    "Exchange",
    "Format",
    "Grouping",
    "Link",
    "Load",
    "Partition",
    "RankContext",
    "Scheme",
    "SparseSync",
    "SparseTensor",
    "Statistics",
    "SyncReport",
    "Testbed",
    "TopK",
    "Traffic",
    "WorkerGradients",
    "as_sparse",
    "choose_scheme",
    "gradients",
    "group_indices",
    "imbalance",
    "measure_grouping",
    "measure_links",
    "measure_statistics",
    "partition",
    "partition_of",
    "predict_bytes",
    "pull_imbalance",
    "push_imbalance",
    "read_gradients",
    "register_sparse_sync",
    "run_counted",
    "sum_in_rank_order",
    "synchronise",
    "traffic_of",
    "union",
    "workload_tensors",
    "zipf_embedding",
]

__getattr__, __dir__ = lazy(__name__, {name: module for module, names in _NAMES.items() for name in names})
