"""What the published simulator does, and the corrections to it, one switch for each.

B1 to B8 number the defects as this project's notebooks do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple


class Fixes(NamedTuple):
    """The switches that the compiled cache reads."""

    leaf_bytes: bool
    mlp_saving: bool
    freed_memory: bool
    pin_path: bool
    refuse_oversized: bool
    true_prefix: bool
    no_stale_states: bool


@dataclass(frozen=True)
class Fidelity:
    """Which corrections are on. All off follows the authors' simulator; all on is the sound system.

    leaf_bytes:        B1. A leaf's eviction counts the victim's bytes, not those of the last candidate.
    mlp_saving:        B2. An MLP saves F(depth) - F(parent depth) of the MLP, not of attention at the parent.
    freed_memory:      B3. Efficiency divides by the bytes that the eviction frees, not by the whole path's.
    pin_path:          B4. The matched path is not evicted to make room for its own continuation, and exactly the
                       bytes needed are freed.
    refuse_oversized:  B5. A sequence that cannot fit is served but not cached.
    true_prefix:       B6. Matching stops where an edge diverges; a hit is a prefix of the request.
    robust_tuner:      B7. The tuner replays its window from a snapshot, maximises the token hit rate, breaks ties
                       towards the smallest alpha, and never takes one that is worse than 0 on the window.
    no_stale_states:   B8. A node that is merged away is dropped: no grandchild points at it and keeps its state
                       reachable. Hits do not depend on it; what stays reachable is counted.
    """

    leaf_bytes: bool = True
    mlp_saving: bool = True
    freed_memory: bool = True
    pin_path: bool = True
    refuse_oversized: bool = True
    true_prefix: bool = True
    robust_tuner: bool = True
    no_stale_states: bool = True

    def fixes(self) -> Fixes:
        """The switches of the tree and its eviction."""
        return Fixes(*(getattr(self, name) for name in Fixes._fields))

    @staticmethod
    def parse(text: str) -> Fidelity:
        """`published` or `corrected`, then any of `+B3` and `-B3`: "published+B1", "corrected-B7".

        `artifact` is another spelling of `published`.

        Raises: ValueError naming what is not known.
        """
        head, *changes = fidelity_label(text).replace("-", "\n-").replace("+", "\n+").split("\n")
        if head not in ("published", "corrected"):
            raise ValueError(f"fidelity must start with published or corrected, got {text!r}")
        values = dict.fromkeys(CORRECTIONS.values(), head == "corrected")
        for change in changes:
            if change[1:] not in CORRECTIONS:
                raise ValueError(f"fidelity knows the corrections {', '.join(CORRECTIONS)}, got {change!r}")
            values[CORRECTIONS[change[1:]]] = change[0] == "+"
        return Fidelity(**values)


def fidelity_label(text: str) -> str:
    """The text of a fidelity as tables and reports store it: `artifact`, an older spelling, becomes `published`."""
    return "published" + text.removeprefix("artifact") if text.startswith("artifact") else text


CORRECTIONS = {f"B{number}": field.name for number, field in enumerate(fields(Fidelity), start=1)}
"""Correction by its number."""

PUBLISHED = Fidelity.parse("published")
"""The authors' simulator, defects included."""

CORRECTED = Fidelity()
"""Every correction."""
