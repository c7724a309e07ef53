"""The experiments of Lazarus's evaluation: parameters in, a tidy table out. Seeded, without files or plots."""

from figures.lazarus.experiments.simulation import (
    controlled_failures,
    deepseek_v3,
    large_cluster,
    load_ratio,
    sixteen_nodes,
    spot_trace,
    timeline,
    without_failures,
)
from figures.lazarus.experiments.theory import (
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
from figures.lazarus.experiments.tradeoffs import (
    choosing_f,
    drift,
    losses_at_once,
    rack_failures,
    rebalances,
)
from figures.lazarus.experiments.training import equal_losses, recoveries, systems

__all__ = [
    "balance_and_survival",
    "choosing_f",
    "controlled_failures",
    "counterexamples",
    "deepseek_v3",
    "drift",
    "equal_losses",
    "hot_expert",
    "large_cluster",
    "load_ratio",
    "load_skew",
    "losses_at_once",
    "model_recovery",
    "node_orders",
    "placement_time",
    "rack_failures",
    "rebalances",
    "recoveries",
    "sixteen_nodes",
    "small_cases",
    "spot_trace",
    "systems",
    "timeline",
    "transferred",
    "without_failures",
    "worked_examples",
]
