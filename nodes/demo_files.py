"""The embedded checkpoint, which needs no download."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..diag_core.checkpoint import read_settings
from ..diag_core.demo_text import DemoTextEncoder, demo_encoder

DEMO_NAME = "demo (embedded)"
_FOLDER = Path(__file__).resolve().parents[1] / "demo"


def dit_path() -> Path:
    return _FOLDER / "dit.safetensors"


def vae_path() -> Path:
    return _FOLDER / "vae.safetensors"


@cache
def text_encoder() -> DemoTextEncoder:
    """The encoder that the embedded checkpoint was trained with."""
    settings = read_settings(dit_path())
    assert settings is not None
    return demo_encoder(settings.text_encoder)
