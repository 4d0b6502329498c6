"""The command that measures the whole table on a GPU, rehearsed on a CPU with a tiny model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, gpu_checks
from diag_core.bench import PRESETS
from diag_core.cli.bench import add_arguments, setting_from

NO_TRITON = "NOT TESTED HERE: Triton comes with PyTorch on Linux"


def settings() -> dict:
    """What each part measures."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return {part.name: setting_from(parser.parse_args(list(part.arguments))) for part in gpu.PARTS if part.arguments}


def test_the_parts_measure_what_they_say():
    found = settings()
    assert {part.name for part in gpu.PARTS} == {"checks", "baseline", *found}
    assert found["wan-vae"].decoder == "wan" and found["plain"].fast == "off" and found["fp8"].fp8
    assert found["12-gb-wan-vae"].decode_frames == 1 and found["wan-vae"].decode_frames == 3
    assert not found["no-graphs"].graphs and found["no-kernels"].kernels == "torch"
    assert found["self-forcing"] == PRESETS["self-forcing"] and found["minute"] == PRESETS["minute"]
    assert found["wan-2.1"].forwards == 100 and found["batch-4"].batch == 4 and found["14b"].model.dim == 5120
    assert sum(part.minutes for part in gpu.PARTS) < 75
    assert max(part.minutes for part in gpu.PARTS) < 9 < gpu.LIMIT / 60  # `--minutes 9` can begin any of them


def test_it_measures_prints_and_goes_on(tmp_path, capsys, monkeypatch):
    arguments = ["--small", "--out", str(tmp_path), "--parts", "sage,fp8"]
    assert gpu.main(arguments) == 1  # SageAttention is not here
    out = capsys.readouterr().out
    (table,) = tmp_path.glob("*-cpu-rehearsal-table.md")
    rows = [line for line in table.read_text().splitlines() if line.startswith("| 1.3B")]
    assert [row.split(" | ")[0] for row in rows] == ["| 1.3B, FP8 linear layers"]
    assert all(row in out for row in rows)
    (failed,) = tmp_path.glob("*.failed.txt")
    assert failed.stem.endswith("sage.failed") and "it needs the package sageattention" in failed.read_text()
    for file in tmp_path.glob("*.json"):
        report = json.loads(file.read_text())
        assert report["path"]["taken"] == "fast" and report["work"]["share_of_peak"] > 0 and report["breakdown"]
    monkeypatch.setattr(gpu, "run_part", lambda *a, **k: pytest.fail("this part has a result"))
    assert gpu.main([*arguments[:-1], "fp8"]) == 0
    assert gpu.main(["--small", "--out", str(tmp_path), "--parts", "14b", "--minutes", "0.01"]) == 0
    assert "no time left" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "command", lambda *a, **k: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert not gpu.run_part(gpu.PARTS[1], tmp_path / "x.json", small=True, seconds=0.5)
    assert "ended after" in (tmp_path / "x.failed.txt").read_text()


def test_unknown_parts_and_missing_gpus_are_said():
    with pytest.raises(ValueError, match="no part 'speed'; choose from checks, taehv"):
        gpu.main(["--parts", "speed"])
    if not torch.cuda.is_available():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu"], cwd=gpu.ROOT, capture_output=True, text=True, check=False
        )
        assert (
            done.returncode
            and done.stderr.strip() == "error: there is no device 'cuda' here: PyTorch sees 0 CUDA devices"
        )


def test_a_check_that_needs_no_gpu(monkeypatch):
    some = dict(list(gpu_checks.cases(torch.device("cpu")).items())[:2])
    monkeypatch.setattr(gpu_checks, "cases", lambda device: some)
    function, limit, gpu_only = gpu_checks.CHECKS["videos_equal_the_plain_paths"]
    assert not gpu_only and function(torch.device("cpu")) <= limit


def test_a_check_that_breaks_fails_alone(monkeypatch):
    def broken(device):
        raise RuntimeError("an illegal memory access was encountered")

    checks = {"broken": (broken, 1.0, False), "good": (lambda device: 0.5, 1.0, False), "far": (broken, 1.0, True)}
    monkeypatch.setattr(gpu_checks, "CHECKS", checks)
    found = gpu_checks.run(torch.device("cpu"))["checks"]
    assert [found[name]["passed"] for name in checks] == [False, True, None]
    assert "illegal memory access" in found["broken"]["why"]


def test_checks_of_fp8_are_left_out_on_cards_without_it(monkeypatch):
    pytest.importorskip("diag_core.fast.kernels", reason=NO_TRITON)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(gpu_checks, "fp8_missing", lambda model: "it takes a newer card")
    monkeypatch.setattr(gpu_checks, "model", lambda device: None)
    monkeypatch.setattr(gpu_checks, "describe_machine", lambda device: {})
    monkeypatch.setattr(
        gpu_checks, "CHECKS", {name: check for name, check in gpu_checks.CHECKS.items() if "fp8" in name}
    )
    found = gpu_checks.run(torch.device("cuda", 0))["checks"]
    assert [result["passed"] for result in found.values()] == [None, None]
    assert "compute capability 8.9" in str(found) and "it takes a newer card" in str(found)


def test_the_other_kernels_are_checked_on_any_card(monkeypatch):
    kernels = pytest.importorskip("diag_core.fast.kernels", reason=NO_TRITON)
    for name in ("write_qkv", "norm_modulate", "add_gated", "rms_norm", "norm_silu"):
        monkeypatch.setattr(kernels, name, getattr(gpu_checks.torch_ops, name))

    def no_fp8(x):
        raise RuntimeError("type fp8e4nv not supported in this architecture")

    monkeypatch.setattr(kernels, "quantise", no_fp8)
    assert gpu_checks.kernels_equal_pytorch(torch.device("cpu")) == 0
