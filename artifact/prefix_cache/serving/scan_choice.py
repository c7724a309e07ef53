"""What scans the recurrent layers of a model of `transformers`: mamba-ssm's compiled kernels, or torch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from artifact import hardware


class Implementation(NamedTuple):
    """What computes the scan, and why."""

    name: str
    """`mamba-ssm` (its compiled kernels) or `torch`."""
    reason: str


def implementation(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Implementation:
    """What scans tensors of `dtype` on `device` (by default the device that `hardware` chooses)."""
    machine = hardware.detect()
    kind = torch.device(device or machine.device).type
    if machine.device != "cuda":
        return Implementation("torch", f"mamba-ssm's kernels need CUDA: {machine.reason}")
    if not machine.mamba_kernels:
        return Implementation("torch", "mamba-ssm's compiled kernels are not installed")
    if kind != "cuda":
        return Implementation("torch", f"mamba-ssm's kernels need CUDA: the tensors are on {kind}")
    if dtype == torch.float64:
        return Implementation("torch", "mamba-ssm's kernels compute in float32: the tensors are float64")
    return Implementation("mamba-ssm", f"its compiled kernels are installed and {machine.reason}")
