"""Lazarus (arXiv 2407.04656): resilient, elastic training of Mixture-of-Experts models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact.elastic_moe.failures import FailureEvent as FailureEvent
    from artifact.elastic_moe.failures import FailureTrace as FailureTrace
    from artifact.elastic_moe.failures import infinitehbd_failures as infinitehbd_failures
    from artifact.elastic_moe.failures import parse_failures as parse_failures
    from artifact.elastic_moe.failures import periodic_failures as periodic_failures
    from artifact.elastic_moe.failures import poisson_failures as poisson_failures
    from artifact.elastic_moe.failures import spot_failures as spot_failures
    from artifact.elastic_moe.placement.allocation import allocate as allocate
    from artifact.elastic_moe.placement.methods import METHODS as METHODS
    from artifact.elastic_moe.placement.methods import mro_group_sizes as mro_group_sizes
    from artifact.elastic_moe.placement.methods import place as place
    from artifact.elastic_moe.placement.migration import ExpertKey as ExpertKey
    from artifact.elastic_moe.placement.migration import Transfer as Transfer
    from artifact.elastic_moe.placement.migration import Unrecoverable as Unrecoverable
    from artifact.elastic_moe.placement.migration import assign_nodes as assign_nodes
    from artifact.elastic_moe.placement.migration import holdings_of as holdings_of
    from artifact.elastic_moe.placement.migration import transfers as transfers
    from artifact.elastic_moe.placement.placements import Placement as Placement
    from artifact.elastic_moe.placement.probability import Recovery as Recovery
    from artifact.elastic_moe.placement.probability import domain_recovery as domain_recovery
    from artifact.elastic_moe.placement.probability import mro_closed_form as mro_closed_form
    from artifact.elastic_moe.placement.probability import recovery as recovery
    from artifact.elastic_moe.placement.probability import survival as survival
    from artifact.elastic_moe.placement.probability import upper_bound as upper_bound
    from artifact.elastic_moe.presets import PRESETS as PRESETS
    from artifact.elastic_moe.presets import Preset as Preset
    from artifact.elastic_moe.routing import LOAD_TRACES as LOAD_TRACES
    from artifact.elastic_moe.routing import LoadTrace as LoadTrace
    from artifact.elastic_moe.routing import drifting_loads as drifting_loads
    from artifact.elastic_moe.routing import esft_loads as esft_loads
    from artifact.elastic_moe.routing import olmoe_loads as olmoe_loads
    from artifact.elastic_moe.routing import smartmoe_loads as smartmoe_loads
    from artifact.elastic_moe.routing import top_experts as top_experts
    from artifact.elastic_moe.simulation.simulator import simulate as simulate
    from artifact.elastic_moe.simulation.step_time import TESTBEDS as TESTBEDS
    from artifact.elastic_moe.simulation.step_time import WORKLOADS as WORKLOADS
    from artifact.elastic_moe.simulation.step_time import Testbed as Testbed
    from artifact.elastic_moe.simulation.step_time import TimeModel as TimeModel
    from artifact.elastic_moe.simulation.step_time import Workload as Workload
    from artifact.elastic_moe.simulation.step_time import calibrated_testbed as calibrated_testbed
    from artifact.elastic_moe.simulation.step_time import gpt_workload as gpt_workload
    from artifact.elastic_moe.simulation.step_time import preset_workload as preset_workload
    from artifact.elastic_moe.simulation.systems import SIMULATED_SYSTEMS as SIMULATED_SYSTEMS
    from artifact.elastic_moe.simulation.systems import LayoutCache as LayoutCache
    from artifact.elastic_moe.simulation.systems import SimulatedSystem as SimulatedSystem
    from artifact.elastic_moe.simulation.systems import default_loads as default_loads
    from artifact.elastic_moe.simulation.timeline import PHASES as PHASES
    from artifact.elastic_moe.simulation.timeline import Segment as Segment
    from artifact.elastic_moe.simulation.timeline import SimulationResult as SimulationResult
    from artifact.elastic_moe.training.controller import TrainingSettings as TrainingSettings
    from artifact.elastic_moe.training.journal import TrainingResult as TrainingResult
    from artifact.elastic_moe.training.planning import TRAINED_SYSTEMS as TRAINED_SYSTEMS
    from artifact.elastic_moe.training.run import ForkLauncher as ForkLauncher
    from artifact.elastic_moe.training.run import train as train

_NAMES_OF = {
    "failures": "FailureEvent FailureTrace infinitehbd_failures "
    "parse_failures periodic_failures poisson_failures spot_failures",
    "placement.allocation": "allocate",
    "placement.methods": "METHODS mro_group_sizes place",
    "placement.placements": "Placement",
    "placement.migration": "ExpertKey Transfer Unrecoverable assign_nodes holdings_of transfers",
    "placement.probability": "Recovery domain_recovery mro_closed_form recovery survival upper_bound",
    "presets": "PRESETS Preset",
    "routing": "LOAD_TRACES LoadTrace drifting_loads esft_loads olmoe_loads smartmoe_loads top_experts",
    "simulation.simulator": "simulate",
    "simulation.step_time": "TESTBEDS WORKLOADS TimeModel Testbed "
    "Workload calibrated_testbed gpt_workload preset_workload",
    "simulation.systems": "SIMULATED_SYSTEMS LayoutCache SimulatedSystem default_loads",
    "simulation.timeline": "PHASES Segment SimulationResult",
    "training.controller": "TrainingSettings",
    "training.planning": "TRAINED_SYSTEMS",
    "training.journal": "TrainingResult",
    "training.run": "ForkLauncher train",
}
__all__ = [name for names in _NAMES_OF.values() for name in names.split()]
__getattr__, __dir__ = lazy(__name__, {name: module for module, names in _NAMES_OF.items() for name in names.split()})
