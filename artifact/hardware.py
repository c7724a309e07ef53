"""What this machine offers, which device to use, and why."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """The device to compute on with the reason for it, and what else is at hand."""

    device: str
    """`cuda` or `cpu`."""
    reason: str
    """Why this device, in words."""
    gpu: str | None
    """Name of the first GPU; None on `cpu`."""
    triton: bool
    """Triton can be imported; without CUDA its kernels run under TRITON_INTERPRET=1 only."""
    mamba_kernels: bool
    """The compiled kernels of mamba-ssm are there, not only its reference functions."""
    nvcc: bool
    """A CUDA compiler is on the PATH."""
    cpu: str
    """Model of the processor."""
    cores: int
    """Cores that this process may use."""
    memory_gib: float
    """Physical memory in GiB (2^30 bytes)."""
    root: bool
    """Runs as root: network namespaces can be made."""
    tc: bool
    """`tc` is on the PATH: links can be rate limited."""


@cache
def detect() -> Hardware:
    """Look once. torch is imported only where a driver and a CUDA build leave the answer open."""
    device, reason, gpu = _device()
    return Hardware(
        device=device,
        reason=reason,
        gpu=gpu,
        triton=find_spec("triton") is not None,
        mamba_kernels=find_spec("selective_scan_cuda") is not None,
        nvcc=shutil.which("nvcc") is not None,
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        root=hasattr(os, "geteuid") and os.geteuid() == 0,
        tc=shutil.which("tc") is not None,
    )


def _device() -> tuple[str, str, str | None]:
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        return "cpu", "torch is not installed", None
    if torch_version.endswith("+cpu"):
        return "cpu", f"torch {torch_version} is built without CUDA", None
    if not Path("/proc/driver/nvidia/version").exists() and shutil.which("nvidia-smi") is None:
        return "cpu", "no NVIDIA driver is installed", None
    import torch

    if not torch.cuda.is_available():
        return "cpu", f"torch {torch_version} finds a driver but no CUDA device that it can use", None
    gpu = torch.cuda.get_device_name(0)
    return "cuda", f"torch {torch_version} finds {gpu}", gpu


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
