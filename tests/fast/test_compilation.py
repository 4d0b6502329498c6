"""Feed-forward layers by torch.compile: the same results, and a second start that finds them compiled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from goldens_reader import small_model

from diag_core.fast import FastDiT, accelerated

ROOT = Path(__file__).parents[2]
START = """
import copy, json, sys
sys.path.insert(0, "tests")
import torch
from torch._dynamo.utils import counters
from goldens_reader import small_model
from diag_core import CacheConfig, DiagonalSchedule, SeededNoise, generate
from diag_core.fast import FastDiT

def video(model):
    prompt = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    return generate(
        model, prompt, DiagonalSchedule.parse("21"), noise=SeededNoise(0), num_latent_frames=6, height=4, width=6,
        cache=CacheConfig(9, 3),
    )

model = small_model()
right, ours = video(model), video(FastDiT(copy.deepcopy(model), compiled=True))
print(json.dumps({"off": float((ours - right).abs().max()), **{
    name: counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss")
}}))
"""


def test_the_same_video_and_a_second_start_that_compiles_nothing(tmp_path: Path):
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    starts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        starts.append(json.loads(done.stdout.splitlines()[-1]))
    assert all(start["off"] < 1e-5 for start in starts)
    assert [(start["miss"], start["hit"]) for start in starts] == [(1, 0), (0, 1)]  # all blocks share it


def test_it_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="either in FP8 or compiled"):
        FastDiT(small_model(dim=256, ffn_dim=512, num_heads=2), fp8=True, compiled=True)
    with pytest.raises(ValueError, match="must be on"):
        accelerated(small_model(), "auto", compiled=True)
    other = small_model()
    other.blocks[0].ffn[1] = torch.nn.SiLU()
    with pytest.raises(ValueError, match="not those of Wan"):
        FastDiT(other, compiled=True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=r"C\+\+ compiler"):
        FastDiT(small_model(), compiled=True)
