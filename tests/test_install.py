"""install.py: what it checks, and where downloaded weights go."""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from hub_stand_in import serving

from diag_core import hub
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


TEXT, VAE, MODEL = "umt5_xxl_fp16", "wan_2.1_vae", "wan2.1_t2v_1.3B_bf16"
PLACES = {TEXT: "text_encoders", VAE: "vae", MODEL: "diffusion_models"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """What answers `install.py --download`, into the folder models, which is there."""
    (tmp_path / "models").mkdir()
    with serving() as server:
        server.files = {
            f"split_files/{folder}/{name}.safetensors": name.encode() * 1000 for name, folder in PLACES.items()
        }
        monkeypatch.setattr(hub, "download", functools.partial(hub.download, endpoint=server.endpoint))
        yield server


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    def run(name: str) -> int:
        monkeypatch.setattr(sys, "argv", ["install.py", "--download", name, "--models", str(tmp_path / "models")])
        return install.main()

    return run


def arrived(models: Path) -> dict[str, bytes]:
    """All files but those of the folder that things are fetched into."""
    paths = [path for path in models.rglob("*") if path.is_file() and ".diagdistill" not in path.parts]
    return {path.relative_to(models).as_posix(): path.read_bytes() for path in paths}


def expected() -> dict[str, bytes]:
    return {f"{folder}/{name}.safetensors": name.encode() * 1000 for name, folder in PLACES.items()}


def test_weights_arrive_in_their_folders_and_progress_is_said(server, fetch, tmp_path, capsys):
    assert fetch("comfyui-1.3b") == 0
    assert arrived(tmp_path / "models") == expected()
    assert not list((tmp_path / "models").rglob("*.part"))
    out, err = capsys.readouterr()
    assert out.count("safetensors\n") == 3
    assert all(f"{name}.safetensors: " in err for name in PLACES)


def test_what_is_in_its_place_is_not_fetched_again(server, fetch, tmp_path):
    """Neither by a second run nor by a download that shares files with the first; what is wrong there is replaced."""
    assert fetch("comfyui-1.3b") == 0
    (tmp_path / "models" / "vae" / f"{VAE}.safetensors").write_bytes(b"damaged")
    server.requests.clear()
    assert fetch("comfyui-1.3b") == 0
    fetched = [path for method, path, _ in server.requests if method == "GET" and "resolve" in path]
    assert [Path(path).stem for path in fetched] == [VAE]
    assert arrived(tmp_path / "models") == expected()
    server.files[f"split_files/text_encoders/{TEXT.replace('fp16', 'fp8_e4m3fn_scaled')}.safetensors"] = b"half"
    server.requests.clear()
    assert fetch("comfyui-encoders") == 0
    fetched = [path for method, path, _ in server.requests if method == "GET" and "resolve" in path]
    assert [Path(path).stem for path in fetched] == ["umt5_xxl_fp8_e4m3fn_scaled"]


@pytest.fixture
def disks(monkeypatch):
    """The folder that things are fetched into is on another disk than the models folders."""
    replace = os.replace

    def on_two_disks(source, target):
        if (".diagdistill" in Path(source).parts) != (".diagdistill" in Path(target).parts):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", on_two_disks)
    monkeypatch.setattr(os, "rename", on_two_disks)


def test_models_on_another_disk(server, fetch, disks, tmp_path, capsys):
    assert fetch("comfyui-1.3b") == 0
    assert arrived(tmp_path / "models") == expected()
    assert "vae, on another disk" in capsys.readouterr().err
    assert not list((tmp_path / "models" / ".diagdistill").rglob("*.safetensors"))


def test_a_copy_that_fails_leaves_no_part_and_is_made_by_the_next_run(server, fetch, disks, tmp_path, monkeypatch):
    def full(old, new, length):
        new.write(old.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(install.shutil, "copyfileobj", full)
        assert fetch("comfyui-1.3b") == 1
    assert arrived(tmp_path / "models") == {}
    server.requests.clear()
    assert fetch("comfyui-1.3b") == 0
    assert arrived(tmp_path / "models") == expected()
    assert not [path for method, path, _ in server.requests if method == "GET" and "resolve" in path]
