"""The experiments of Zen's evaluation: parameters in, a tidy table out. Pure, seeded, without files or plots."""

from figures.zen.experiments.communication import (
    break_even,
    characterisation,
    counted,
    design_space,
    selector_map,
)
from figures.zen.experiments.hashes import (
    bitmap_index_bytes,
    format_sizes,
    hashing_methods,
    imbalance,
    serial_region,
    strawman_loss,
)
from figures.zen.experiments.links import links, links_training
from figures.zen.experiments.training import accuracy, full_size, step_time, throughput

__all__ = [
    "accuracy",
    "bitmap_index_bytes",
    "break_even",
    "characterisation",
    "counted",
    "design_space",
    "format_sizes",
    "full_size",
    "hashing_methods",
    "imbalance",
    "links",
    "links_training",
    "selector_map",
    "serial_region",
    "step_time",
    "strawman_loss",
    "throughput",
]
