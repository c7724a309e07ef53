"""The experiments of Lazarus's evaluation: parameters in, a tidy table out. Seeded, without files or plots."""

from artifact.elastic_moe.experiments.simulation import (
    controlled_failures,
    deepseek_v3,
    large_cluster,
    load_ratio,
    sixteen_nodes,
    spot_trace,
    timeline,
    without_failures,
)
from artifact.elastic_moe.experiments.theory import (
    balance_and_survival,
    counterexamples,
    hot_expert,
    load_skew,
    model_recovery,
    node_orders,
    placement_time,
    small_cases,
    transferred,
    worked_examples,
)

__all__ = [
    "balance_and_survival",
    "controlled_failures",
    "counterexamples",
    "deepseek_v3",
    "hot_expert",
    "large_cluster",
    "load_ratio",
    "load_skew",
    "model_recovery",
    "node_orders",
    "placement_time",
    "sixteen_nodes",
    "small_cases",
    "spot_trace",
    "timeline",
    "transferred",
    "without_failures",
    "worked_examples",
]
