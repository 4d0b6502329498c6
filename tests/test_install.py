"""install.py: what it checks, and where downloaded weights go."""

from __future__ import annotations

import importlib.util
import json
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
        ("self-forcing", "checkpoints/self_forcing_dmd.pt", "diffusion_models/self_forcing_dmd.pt"),
        ("longlive", "models/lora.pt", "loras/longlive/lora.pt"),
        ("longlive", "models/longlive_base.pt", "diffusion_models/longlive_base.pt"),
        ("causvid", "autoregressive_checkpoint/model.pt", "diffusion_models/causvid/model.pt"),
        ("taehv", "taew2_1.pth", "vae_approx/taew2_1.pth"),
    ],
)
def test_files_go_where_comfyui_looks(name, file, where):
    assert install.place(name, file) == Path(where)


def test_what_the_example_workflows_name_can_be_fetched_to_where_they_look_for_it():
    fetched = {install.place(name, file).as_posix() for name in install.WEIGHTS for file in SOURCES[name].files}
    places = {
        "DiagDistillModelLoader": "diffusion_models",
        "CLIPLoader": "text_encoders",
        "VAELoader": "vae",
        "DiagDistillTinyVAELoader": "vae_approx",
    }
    for path in (ROOT / "example_workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            name = (node.get("widgets_values") or [""])[0]
            if node["type"] in places and name != "demo (embedded)":
                assert f"{places[node['type']]}/{name}" in fetched, path.name


def test_what_it_offers_can_be_fetched():
    assert set(install.WEIGHTS) <= set(SOURCES)


def test_a_wrong_name_or_folder_fetches_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["install.py", "--download", "everything"])
    assert install.main() == 2 and "choose one of" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["install.py", "--download", "taehv", "--models", str(tmp_path / "no")])
    assert install.main() == 2 and "--models" in capsys.readouterr().err
