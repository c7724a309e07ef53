"""Lazarus (arXiv 2407.04656): resilient, elastic training of Mixture-of-Experts models."""

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact.elastic_moe.failures import (
        FailureEvent as FailureEvent,
        FailureTrace as FailureTrace,
        infinitehbd_failures as infinitehbd_failures,
        parse_failures as parse_failures,
        periodic_failures as periodic_failures,
        poisson_failures as poisson_failures,
        spot_failures as spot_failures,
    )
    from artifact.elastic_moe.placement.allocation import allocate as allocate
    from artifact.elastic_moe.placement.methods import (
        METHODS as METHODS,
        mro_group_sizes as mro_group_sizes,
        place as place,
    )
    from artifact.elastic_moe.placement.migration import (
        Transfer as Transfer,
        Unrecoverable as Unrecoverable,
        assign_nodes as assign_nodes,
        holdings_of as holdings_of,
        transfers as transfers,
    )
    from artifact.elastic_moe.placement.placements import Placement as Placement
    from artifact.elastic_moe.placement.probability import (
        Recovery as Recovery,
        domain_recovery as domain_recovery,
        mro_closed_form as mro_closed_form,
        recovery as recovery,
        survival as survival,
        upper_bound as upper_bound,
    )
    from artifact.elastic_moe.presets import PRESETS as PRESETS, Preset as Preset
    from artifact.elastic_moe.routing import (
        LOAD_TRACES as LOAD_TRACES,
        LoadTrace as LoadTrace,
        drifting_loads as drifting_loads,
        esft_loads as esft_loads,
        olmoe_loads as olmoe_loads,
        smartmoe_loads as smartmoe_loads,
        top_experts as top_experts,
    )
    from artifact.elastic_moe.simulation.simulator import simulate as simulate
    from artifact.elastic_moe.simulation.step_time import (
        TESTBEDS as TESTBEDS,
        WORKLOADS as WORKLOADS,
        Testbed as Testbed,
        TimeModel as TimeModel,
        Workload as Workload,
        calibrated_testbed as calibrated_testbed,
        gpt_workload as gpt_workload,
    )
    from artifact.elastic_moe.simulation.systems import (
        SIMULATED_SYSTEMS as SIMULATED_SYSTEMS,
        LayoutCache as LayoutCache,
        default_loads as default_loads,
    )
    from artifact.elastic_moe.simulation.timeline import PHASES as PHASES, SimulationResult as SimulationResult
    from artifact.elastic_moe.training.controller import TrainingSettings as TrainingSettings
    from artifact.elastic_moe.training.journal import TrainingResult as TrainingResult
    from artifact.elastic_moe.training.planning import TRAINED_SYSTEMS as TRAINED_SYSTEMS
    from artifact.elastic_moe.training.run import ForkLauncher as ForkLauncher, train as train

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
