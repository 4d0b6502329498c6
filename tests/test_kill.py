"""A stream that is killed leaves a file that holds all it had said was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from diag_core.mp4_writer import part_path

KILLS = 50
SCRIPT = Path(__file__).with_name("killed_streams.py")


def decode(path: Path) -> Tensor:
    """uint8 [T,H,W,3], read to the end without complaint."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return torch.stack(frames)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED ON WINDOWS: killing streams takes fork and SIGKILL")
def test_what_a_killed_stream_had_announced_plays(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(KILLS)], stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert run.returncode == 0
    whole = decode(tmp_path / "whole.mp4")
    kills = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kills) == KILLS
    parts = complete = 0
    for number, kill in enumerate(kills):
        path = tmp_path / f"{number}.mp4"
        part = part_path(path)
        assert not (path.exists() and part.exists()), kill
        if kill["announced"] == ["closed"]:
            assert path.exists(), kill
        if not kill["frames"] and not path.exists():
            continue  # nothing was announced, and nothing or a header is there
        frames = decode(path if path.exists() else part)
        assert frames.shape[0] >= kill["frames"], kill
        assert torch.equal(frames, whole[: frames.shape[0]]), kill
        parts, complete = parts + part.exists(), complete + path.exists()
    # They were killed all along the way.
    assert parts >= KILLS // 4, (parts, complete)
    assert len({kill["frames"] for kill in kills}) > 5
