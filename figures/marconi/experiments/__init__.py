"""The experiments of Marconi's evaluation: parameters in, a tidy table out. Seeded, without files or plots.

Those on real tensors are in `serving`, which imports torch and transformers, and is therefore not imported here.
"""

from figures.marconi.experiments.simulation import (
    ALPHAS,
    BEST_STATIC,
    CLAIRVOYANT,
    block_reuse,
    correction_labels,
    layer_costs,
    limit,
    nodes,
    policies,
    policy_sweep,
    request_lengths,
    requests,
    state_sizes,
    static_alphas,
    trace_of,
)

__all__ = [
    "ALPHAS",
    "BEST_STATIC",
    "CLAIRVOYANT",
    "block_reuse",
    "correction_labels",
    "layer_costs",
    "limit",
    "nodes",
    "policies",
    "policy_sweep",
    "request_lengths",
    "requests",
    "state_sizes",
    "static_alphas",
    "trace_of",
]
