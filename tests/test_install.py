"""install.py: what it checks, and where downloaded weights go."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from diag_core.hub import SOURCES

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("install", ROOT / "install.py")
assert spec is not None and spec.loader is not None
install = importlib.util.module_from_spec(spec)
spec.loader.exec_module(install)


def test_nothing_is_missing_here_and_what_is_would_be_named(monkeypatch):
    assert install.missing() == []
    monkeypatch.setattr(install, "NEEDED", {"no_such_module": "no-such-module>=3"})
    assert install.missing() == ["no-such-module>=3"]


def test_requirements_are_those_that_are_checked():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == list(install.NEEDED.values())


@pytest.mark.parametrize(
    ("name", "file", "where"),
    [
        ("comfyui-1.3b", "split_files/vae/wan_2.1_vae.safetensors", "vae/wan_2.1_vae.safetensors"),
        ("self-forcing", "checkpoints/self_forcing_dmd.pt", "diffusion_models/self-forcing/self_forcing_dmd.pt"),
        ("longlive", "models/lora.pt", "loras/longlive/lora.pt"),
        ("longlive", "models/longlive_base.pt", "diffusion_models/longlive/longlive_base.pt"),
        ("taehv", "taew2_1.pth", "vae_approx/taew2_1.pth"),
    ],
)
def test_files_go_where_comfyui_looks(name, file, where):
    assert install.place(name, file) == Path(where)


def test_what_it_offers_can_be_fetched():
    assert set(install.WEIGHTS) <= set(SOURCES)


def test_a_wrong_name_or_folder_fetches_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["install.py", "--download", "everything"])
    assert install.main() == 2 and "choose one of" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["install.py", "--download", "taehv", "--models", str(tmp_path / "no")])
    assert install.main() == 2 and "--models" in capsys.readouterr().err
