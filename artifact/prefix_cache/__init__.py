"""Marconi (MLSys 2025): prefix caching for hybrid attention and recurrent language models.

`replay` simulates a cache on a trace, `HybridEngine` serves a real model from one. A name is imported when it is first
used: the simulator needs no torch.
"""

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    # isort: off
    from artifact.prefix_cache.index.admission import AtBranch as AtBranch, CheckpointPolicy as CheckpointPolicy
    from artifact.prefix_cache.index.admission import ChunkAligned as ChunkAligned, EndOnly as EndOnly
    from artifact.prefix_cache.index.admission import EveryBlocks as EveryBlocks
    from artifact.prefix_cache.index.admission import parse_checkpoint_policy as parse_checkpoint_policy
    from artifact.prefix_cache.index.base import Index as Index
    from artifact.prefix_cache.index.block_cache import BlockCache as BlockCache
    from artifact.prefix_cache.index.cache import PrefixCache as PrefixCache
    from artifact.prefix_cache.index.eviction import FlopAware as FlopAware, Lru as Lru, Tuned as Tuned
    from artifact.prefix_cache.index.fidelity import CORRECTED as CORRECTED, PUBLISHED as PUBLISHED
    from artifact.prefix_cache.index.fidelity import Fidelity as Fidelity
    from artifact.prefix_cache.index.tiers import TieredCache as TieredCache
    from artifact.prefix_cache.presets import PRESETS as PRESETS, preset as preset
    from artifact.prefix_cache.serving.engine import HybridEngine as HybridEngine
    from artifact.prefix_cache.serving.hybrid_models import build_model as build_model, spec_of as spec_of
    from artifact.prefix_cache.serving.model_states import DoesNotResume as DoesNotResume, ModelStates as ModelStates
    from artifact.prefix_cache.serving.resume_cases import conformance as conformance
    from artifact.prefix_cache.simulation import SIMULATED_SYSTEMS as SIMULATED_SYSTEMS, Replay as Replay
    from artifact.prefix_cache.simulation import replay as replay, request_table as request_table
    from artifact.prefix_cache.spec import HybridSpec as HybridSpec
    from artifact.prefix_cache.workloads.importers import block_hash_trace as block_hash_trace
    from artifact.prefix_cache.workloads.importers import load_trace as load_trace
    from artifact.prefix_cache.workloads.trace_file import TraceError as TraceError
    from artifact.prefix_cache.workloads.trace_file import read_jsonl as read_jsonl, write_jsonl as write_jsonl
    from artifact.prefix_cache.workloads.traces import Request as Request, RequestTrace as RequestTrace
    # isort: on

_NAMES = {
    "index.admission": "AtBranch CheckpointPolicy ChunkAligned EndOnly EveryBlocks parse_checkpoint_policy",
    "index.base": "Index",
    "index.block_cache": "BlockCache",
    "index.cache": "PrefixCache",
    "index.eviction": "FlopAware Lru Tuned",
    "index.fidelity": "CORRECTED PUBLISHED Fidelity",
    "index.tiers": "TieredCache",
    "presets": "PRESETS preset",
    "serving.engine": "HybridEngine",
    "serving.hybrid_models": "build_model spec_of",
    "serving.model_states": "DoesNotResume ModelStates",
    "serving.resume_cases": "conformance",
    "simulation": "SIMULATED_SYSTEMS Replay replay request_table",
    "spec": "HybridSpec",
    "workloads.importers": "block_hash_trace load_trace",
    "workloads.trace_file": "TraceError read_jsonl write_jsonl",
    "workloads.traces": "Request RequestTrace",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy(__name__, _MODULE_OF)
