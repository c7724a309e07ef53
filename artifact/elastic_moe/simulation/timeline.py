"""What comes of a simulated run: its phases on a time line, and its totals. Times are in s from the start."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

Phase = Literal["training", "checkpointing", "rebalancing", "reconfiguring", "restarting", "stalled"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What a simulated cluster can be doing; stalled: it waits for nodes that hold every expert."""


@dataclass(frozen=True)
class Segment:
    """A stretch of time in one phase.

    nodes:         present, those that wait included; used: that train, or trained when the phase began and survive
    samples:       of the steps finished in it
    samples_per_s: while training, else 0
    """

    start_s: float
    end_s: float
    state: Phase
    nodes: int
    used: int
    samples: int
    samples_per_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass
class SimulationResult:
    """The outcome of a run.

    samples, steps:           that count in the end; lost_samples, lost_steps: done, and undone by a restart
    restarts:                 from a checkpoint, or from the start; reconfigurations, rebalances: finished ones
    moved_states:             expert states that nodes fetched from one another
    """

    system: str
    segments: list[Segment] = field(default_factory=list)
    samples: int = 0
    steps: int = 0
    lost_samples: int = 0
    lost_steps: int = 0
    restarts: int = 0
    reconfigurations: int = 0
    rebalances: int = 0
    moved_states: int = 0

    @property
    def seconds(self) -> dict[Phase, float]:
        """Time in each phase; together they are the time that was simulated."""
        spent: Counter[Phase] = Counter()
        for segment in self.segments:
            spent[segment.state] += segment.seconds  # type: ignore[assignment]
        return {phase: float(spent[phase]) for phase in PHASES}

    @property
    def total_s(self) -> float:
        return self.segments[-1].end_s if self.segments else 0.0

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.total_s if self.total_s else 0.0
