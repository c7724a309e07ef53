"""A selective scan that starts from a state, for models whose scan takes none (Mamba-1 in `transformers`: Jamba).

The scan is linear in its initial state. Of h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t and y_t = C_t h_t, a state h_0 is
carried to exp(A (dt_1 + ... + dt_t)) h_0: that times C_t is added to y_t, and the last of it to the final state. So
several tokens resume in one call, and whatever kernel does the scan still does it.

Shape legend: L = tokens, D = inner width, N = state dimension; batch size 1
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_SCAN = "mamba_selective_scan"
_replacing = Lock()


def has_selective_scan(model: Any) -> bool:
    """The model's module scans with the function that `carried` replaces."""
    return hasattr(sys.modules[type(model).__module__], _SCAN)


@contextmanager
def carried(model: Any, states_1DN: list[Tensor]) -> Iterator[None]:
    """Within it, one forward pass of several tokens starts from `states_1DN`, one for each recurrent layer in order."""
    module: Any = sys.modules[type(model).__module__]
    with _replacing:
        scan = getattr(module, _SCAN)
        setattr(module, _SCAN, _starting_from(iter(states_1DN), scan))
        try:
            yield
        finally:
            setattr(module, _SCAN, scan)


def _starting_from(states: Iterator[Tensor], scan: Callable[..., Any]) -> Callable[..., Any]:
    def resumed(
        u_1DL: Tensor,
        dt_1DL: Tensor,
        A_DN: Tensor,
        B_1NL: Tensor,
        C_1NL: Tensor,
        D: Tensor | None = None,
        z: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        bias = {"delta_bias": delta_bias, "delta_softplus": delta_softplus}
        output_1DL, last_1DN = scan(u_1DL, dt_1DL, A_DN, B_1NL, C_1NL, D=D, z=z, **bias, **options)
        state_DN, C_NL = next(states)[0].float(), C_1NL[0].float()
        step_DL = dt_1DL[0] if delta_bias is None else dt_1DL[0] + delta_bias.to(dt_1DL.dtype)[:, None]
        step_DL = functional.softplus(step_DL) if delta_softplus else step_DL
        elapsed_DL = step_DL.float().cumsum(-1)
        added_DL = torch.zeros_like(elapsed_DL)
        for n in range(state_DN.shape[1]):  # [D, L] at a time: with N it would be as large as all states of the scan
            carried_DL = torch.exp(A_DN[:, n, None] * elapsed_DL) * state_DN[:, n, None]
            added_DL += C_NL[n] * carried_DL
        if z is not None:
            added_DL *= functional.silu(z[0].float())
        last_1DN = last_1DN + torch.exp(A_DN * elapsed_DL[:, -1:]) * state_DN
        return output_1DL + added_DL.to(output_1DL.dtype), last_1DN

    return resumed
