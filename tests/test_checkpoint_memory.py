"""Loading and converting hold one copy of the weights: peak memory of a process of its own, on a file of 300 MB."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import save_dit

PEAK = """
import sys, tempfile, torch
from diag_core.checkpoint import convert, load_dit, save_dit
from diag_core import WanConfig, WanDiT

def peak():  # bytes resident at most since this process began
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

path, dtype, action = sys.argv[1], getattr(torch, sys.argv[2]) if sys.argv[2] != "None" else None, sys.argv[3]
torch.set_num_threads(1)
small = WanConfig(dim=128, ffn_dim=8, num_heads=1, num_layers=1)
# First on a small file: PyTorch loads much of itself on first use, some builds 100 MB of it.
with tempfile.TemporaryDirectory() as folder:
    save_dit(folder + "/a.safetensors", WanDiT(small), small)
    loaded = load_dit(folder + "/a.safetensors", dtype=dtype)
    sum(float(p.flatten()[0]) + float(p.sum()) for p in loaded.model.parameters())
    convert(folder + "/a.safetensors", folder + "/b.safetensors", dtype=dtype)
    del loaded
before = peak()
if action == "load":
    loaded = load_dit(path, dtype=dtype)
    sum(float(p.flatten()[0]) + float(p.sum()) for p in loaded.model.parameters())  # touch every page
else:
    convert(path, path + ".out.safetensors", dtype=dtype)
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model of about 300 MB, as safetensors and as a pickle."""
    config = WanConfig(dim=1024, ffn_dim=2048, num_heads=8, num_layers=5)
    folder = tmp_path_factory.mktemp("large")
    model = WanDiT(config)
    save_dit(folder / "x.safetensors", model, config)
    torch.save({"generator": model.state_dict()}, folder / "x.pt")
    yield folder
    shutil.rmtree(folder)  # pytest would keep it for three runs


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("file", "dtype", "action", "share"),
    [
        ("x.safetensors", "None", "load", 1.35),
        ("x.pt", "None", "load", 1.35),
        ("x.safetensors", "bfloat16", "load", 0.95),
        ("x.safetensors", "bfloat16", "convert", 0.5),
    ],
)
def test_no_second_copy_in_memory(file: str, dtype: str, action: str, share: float, large: Path) -> None:
    path = large / file
    size = path.stat().st_size
    assert size > 280e6
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(path), dtype, action],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < share * size
