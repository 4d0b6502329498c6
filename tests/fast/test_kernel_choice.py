"""Triton's kernels are taken where they run, which an import does not tell."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
import torch

from diag_core.fast import kernel_choice, torch_ops
from diag_core.fast.kernel_choice import operations

kernels = pytest.importorskip("diag_core.fast.kernels", reason="NOT TESTED HERE: Triton comes with PyTorch on Linux")
GPU = torch.device("cuda", 0)


@pytest.fixture
def launches(monkeypatch):
    """What was launched, on a card that is not there: tensors lie on the CPU."""
    tried = []
    for name in ("zeros", "ones"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *size, make=make, device: make(*size))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(kernels, "rms_norm", lambda x, *_: tried.append(x))
    kernel_choice._those_that_run.cache_clear()
    yield tried
    kernel_choice._those_that_run.cache_clear()


def test_they_are_tried_once_a_device(launches):
    assert operations("auto", GPU) is kernels and operations("auto", GPU) is kernels
    assert len(launches) == 1
    operations("auto", torch.device("cuda", 1))
    assert len(launches) == 2
    assert operations("triton", GPU) is kernels and operations("torch", GPU) is torch_ops
    assert operations("auto", torch.device("cpu")) is torch_ops and len(launches) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC\nenvironment"), "Failed to find C compiler"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "'gcc', 'main.c'"),
    ],
)
def test_without_a_compiler_pytorchs_operations_run(launches, monkeypatch, caplog, error, said):
    def fail(*arguments):
        launches.append(arguments)
        raise error

    monkeypatch.setattr(kernels, "rms_norm", fail)
    assert operations("auto", GPU) is torch_ops and operations("auto", GPU) is torch_ops
    assert len(launches) == 1 and len(caplog.records) == 1
    assert "without its Triton kernels" in caplog.text and said in caplog.text and type(error).__name__ in caplog.text
    assert operations("triton", GPU) is kernels  # whoever asks for it is told why it does not run
