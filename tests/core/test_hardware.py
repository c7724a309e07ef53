"""The device, and the reason for it, in each state a machine can be in."""

import shutil
import sys
import types
from pathlib import Path

import pytest

from artifact import hardware


@pytest.fixture
def machine(monkeypatch):
    """Set which torch is installed, whether there is a driver, and which GPU torch then finds."""

    def make(torch_version, driver=False, gpu=None):
        cuda = types.SimpleNamespace(is_available=lambda: gpu is not None, get_device_name=lambda index: gpu)
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))

        def version(package):
            if torch_version is None:
                raise hardware.PackageNotFoundError
            return torch_version

        monkeypatch.setattr(hardware, "version", version)
        monkeypatch.setattr(Path, "exists", lambda path: driver)
        monkeypatch.setattr(shutil, "which", lambda command: None)
        return hardware._device()

    return make


def test_without_torch_it_is_the_cpu(machine):
    assert machine(None) == ("cpu", "torch is not installed", None)


def test_a_torch_without_cuda_is_the_reason_even_beside_a_gpu(machine):
    assert machine("2.13.0+cpu", driver=True, gpu="H100") == (
        "cpu",
        "torch 2.13.0+cpu is built without CUDA",
        None,
    )


def test_without_a_driver_torch_is_not_asked(machine):
    assert machine("2.13.0", driver=False, gpu="H100") == ("cpu", "no NVIDIA driver is installed", None)


def test_a_driver_without_a_device_is_told_apart(machine):
    device, reason, gpu = machine("2.13.0", driver=True)
    assert (device, gpu) == ("cpu", None)
    assert "finds a driver but no CUDA device" in reason


def test_a_gpu_is_used_and_named(machine):
    assert machine("2.13.0", driver=True, gpu="H100") == ("cuda", "torch 2.13.0 finds H100", "H100")


def test_this_machine_is_described_once():
    seen = hardware.detect()
    assert seen is hardware.detect()
    assert seen.device in ("cpu", "cuda") and (seen.device == "cuda") == (seen.gpu is not None)
    assert seen.reason and seen.cpu
    assert seen.cores >= 1 and seen.memory_gib > 0


@pytest.mark.gpu
def test_the_device_is_the_one_torch_computes_on():
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no CUDA device: nvidia-smi is not there")
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"no CUDA device: {hardware.detect().reason}")
    assert hardware.detect().device == "cuda"
    assert hardware.detect().gpu == torch.cuda.get_device_name(0)
