"""A ComfyUI server on the CPU with a folder of its own, and the pack in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "ComfyUI-DiagDistill"
_SECONDS_TO_START = 180  # a busy machine with a cold disk; usually about ten


def link_pack(source: Path, target: Path) -> None:
    """`source` below custom_nodes: a link, or a copy where the system allows none (Windows without developer mode)."""
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "outputs")
        shutil.copytree(source, target, ignore=left_out)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ComfyServer:
    """Started by the constructor, which returns when it answers; `close` ends it.

    Args:
        comfyui: the checkout.
        base: an empty or prepared folder: models, input, output and custom_nodes lie there.
        packs: name in custom_nodes -> folder; they are the only custom nodes loaded.
    """

    def __init__(self, comfyui: Path, base: Path, packs: dict[str, Path], extra: Sequence[str] = ()) -> None:
        self.base, self.port = base, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = base / "server.log"
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, source in packs.items():
            link_pack(source, base / "custom_nodes" / name)
        command = [
            sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(base),
            "--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes",
            "--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs, *extra,
        ]  # fmt: skip
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            command, cwd=comfyui, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while it started:\n{self.log()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                    json.load(answer)
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not answer within {_SECONDS_TO_START} s:\n{self.log()[-4000:]}")

    def log(self) -> str:
        """All that the server has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
