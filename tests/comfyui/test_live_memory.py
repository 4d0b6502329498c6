"""Encoding a prompt can push the model out of VRAM: what is kept free for sampling when it comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_room_is_left_for_the_cache_until_it_is_there(comfyui: Path) -> None:
    script = Path(__file__).with_name("live_in_process.py")
    done = subprocess.run([sys.executable, script, comfyui], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    asked, cache = found["asked"], found["cache"]
    running = asked["after chunk 0"]
    assert cache > 0 and running > found["decoding"] and asked["after chunk 1"] == running
    for early in ("a slot", "before the first chunk"):
        assert asked[early] - running == pytest.approx(cache), early
