"""Marconi (prefix caching), Lazarus (elastic MoE training), Zen (sparse gradients): evaluations run again.

A system's public names are those of its package: `from artifact.prefix_cache import PrefixCache`.
"""

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact import (
        datasets as datasets,
        elastic_moe as elastic_moe,
        hardware as hardware,
        prefix_cache as prefix_cache,
        sparse_sync as sparse_sync,
        sweep as sweep,
    )

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy(__name__, __file__)
