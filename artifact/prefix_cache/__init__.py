"""Marconi (MLSys 2025): prefix caching for hybrid attention and recurrent language models.

`replay` simulates a cache on a trace, `HybridEngine` serves a real model from one. A name is imported when it is first
used: the simulator needs no torch.
"""

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact.prefix_cache.index.admission import (
        AtBranch as AtBranch,
        CheckpointPolicy as CheckpointPolicy,
        ChunkAligned as ChunkAligned,
        EndOnly as EndOnly,
        EveryBlocks as EveryBlocks,
        parse_checkpoint_policy as parse_checkpoint_policy,
    )
    from artifact.prefix_cache.index.base import Index as Index
    from artifact.prefix_cache.index.block_cache import BlockCache as BlockCache
    from artifact.prefix_cache.index.cache import PrefixCache as PrefixCache
    from artifact.prefix_cache.index.eviction import FlopAware as FlopAware, Lru as Lru, Tuned as Tuned
    from artifact.prefix_cache.index.fidelity import (
        CORRECTED as CORRECTED,
        PUBLISHED as PUBLISHED,
        Fidelity as Fidelity,
    )
    from artifact.prefix_cache.index.tiers import TieredCache as TieredCache
    from artifact.prefix_cache.presets import PRESETS as PRESETS, preset as preset
    from artifact.prefix_cache.serving.engine import HybridEngine as HybridEngine
    from artifact.prefix_cache.serving.hybrid_models import build_model as build_model, spec_of as spec_of
    from artifact.prefix_cache.serving.model_states import DoesNotResume as DoesNotResume, ModelStates as ModelStates
    from artifact.prefix_cache.serving.resume_cases import conformance as conformance
    from artifact.prefix_cache.simulation import (
        SIMULATED_SYSTEMS as SIMULATED_SYSTEMS,
        Replay as Replay,
        replay as replay,
        request_table as request_table,
    )
    from artifact.prefix_cache.spec import HybridSpec as HybridSpec
    from artifact.prefix_cache.workloads.importers import block_hash_trace as block_hash_trace, load_trace as load_trace
    from artifact.prefix_cache.workloads.trace_file import (
        TraceError as TraceError,
        read_jsonl as read_jsonl,
        write_jsonl as write_jsonl,
    )
    from artifact.prefix_cache.workloads.traces import Request as Request, RequestTrace as RequestTrace

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
