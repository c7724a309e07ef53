"""What happens in a training run: the controller's journal while it runs, and the result at its end. Times in s."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from artifact.elastic_moe.training.wire import Message


@dataclass
class TrainingResult:
    """The outcome of a training run.

    losses, members: of each step, the loss and the nodes that made it
    failures:     of each lost node, when and where it failed, and what that cost
    lost_steps:   done, and undone by a restart from a checkpoint or from the start
    seconds:      from the first generation until training ended
    ended:        "finished", or why training ended before its last step
    step_seconds: (step, number of members, seconds)
    held:         by node, bytes held after the first step of its last generation
    """

    losses: list[float]
    members: list[list[int]]
    failures: list[Message]
    lost_steps: int
    restarts: int
    tokens_per_second: float
    seconds: float
    ended: str
    events: list[Message]
    step_seconds: list[tuple[int, int, float]]
    held: dict[int, Message]


@dataclass
class Journal:
    """What has happened so far, see `TrainingResult`. Times count from the controller's start."""

    epoch: float = field(default_factory=time.time)
    losses: dict[int, float] = field(default_factory=dict)
    members: dict[int, list[int]] = field(default_factory=dict)
    events: list[Message] = field(default_factory=list)
    failures: list[Message] = field(default_factory=list)
    step_seconds: list[tuple[int, int, float]] = field(default_factory=list)
    held: dict[int, Message] = field(default_factory=dict)
    lost_steps: int = 0
    restarts: int = 0
    ended_s: float = 0.0  # when training ended; its processes end later

    def now(self) -> float:
        return time.time() - self.epoch

    def note(self, event: str, **details: Any) -> Message:
        noted = {"at_s": self.now(), "event": event, **details}
        self.events.append(noted)
        return noted

    def lost(self, node: int, why: str, fault: Message) -> Message:
        """A node is lost. fault: what the node reported before an injected fault, or nothing"""
        failed_at_s = fault["at"] - self.epoch if fault else None
        lost = self.note(
            "lost",
            node=node,
            why=why,
            step=len(self.losses),
            kind=fault.get("kind"),
            point=fault.get("point"),
            failed_at_s=failed_at_s,
            detected_after_s=None if failed_at_s is None else self.now() - failed_at_s,
            replanned_after_s=None,
            transferred_bytes=None,
            outage_s=None,
        )
        self.failures.append(lost)
        return lost

    def restart(self, step: int) -> Message:
        """Forget the steps from `step` on: they are to be done again."""
        lost = [done for done in self.losses if done >= step]
        for done in lost:
            del self.losses[done], self.members[done]
        self.lost_steps += len(lost)
        self.restarts += 1
        return self.note("restart", step=step, lost_steps=len(lost))

    def result(self, step_tokens: int, ended: str) -> TrainingResult:
        """step_tokens: tokens of one step"""
        began = next((event["at_s"] for event in self.events if event["event"] == "generation"), 0.0)
        seconds = self.ended_s - began
        return TrainingResult(
            losses=[self.losses[step] for step in sorted(self.losses)],
            members=[self.members[step] for step in sorted(self.members)],
            failures=self.failures,
            lost_steps=self.lost_steps,
            restarts=self.restarts,
            tokens_per_second=len(self.losses) * step_tokens / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            ended=ended,
            events=self.events,
            step_seconds=self.step_seconds,
            held=self.held,
        )
