"""The embedded checkpoint, which needs no download."""

from __future__ import annotations

from pathlib import Path

DEMO_NAME = "demo (embedded)"
_FOLDER = Path(__file__).resolve().parents[1] / "demo"


def dit_path() -> Path:
    return _FOLDER / "dit.safetensors"


def vae_path() -> Path:
    return _FOLDER / "vae.safetensors"
