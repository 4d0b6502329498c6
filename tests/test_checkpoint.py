"""Checkpoints: every layout loads to the same model, what is saved comes back, and bad files give one named error."""

from __future__ import annotations

import errno
import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diag_core import WanConfig, WanDiT, replacing
from diag_core import weights as weights_module
from diag_core.checkpoint import (
    PRESETS,
    CheckpointError,
    convert,
    load_dit,
    read_settings,
    save_dit,
)
from diag_core.state_dict import to_diffusers_name

TINY = WanConfig(dim=128, ffn_dim=40, num_heads=1, num_layers=2, in_dim=4, out_dim=4, freq_dim=8, text_dim=4096)
SETTINGS = PRESETS["diagdistill"]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(tensor.shape) * 0.05 for name, tensor in WanDiT(TINY).state_dict().items()}


def same(model: WanDiT, weights: dict[str, Tensor]) -> None:
    loaded = model.state_dict()
    assert set(loaded) == set(weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def save_shards(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir()
    names = sorted(tensors)
    parts = {"a-00001.safetensors": names[::2], "a-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "a.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_diffusers_name(name): tensor for name, tensor in tensors.items()}


def write_diffusers(path: Path, tensors: dict[str, Tensor]) -> None:
    (path / "transformer").mkdir(parents=True)
    save_file(to_diffusers(tensors), path / "transformer" / "model.safetensors")
    (path / "transformer" / "config.json").write_text('{"num_attention_heads": 1, "attention_head_dim": 128}')


LAYOUTS: dict[str, Callable[[Path, dict[str, Tensor]], Any]] = {
    "safetensors": lambda path, tensors: save_file(tensors, path),
    "bare pickle": lambda path, tensors: torch.save(tensors, path),
    "generator_ema": lambda path, tensors: torch.save(
        {"generator_ema": {f"model.{name}": tensor for name, tensor in tensors.items()}, "step": 7}, path
    ),
    "old pickle": lambda path, tensors: torch.save({"model": tensors}, path, _use_new_zipfile_serialization=False),
    "original shards": lambda path, tensors: save_shards(path, tensors, {"num_heads": 1, "model_type": "t2v"}),
    "diffusers shards": lambda path, tensors: save_shards(path, to_diffusers(tensors), {"num_attention_heads": 1}),
    "diffusers pipeline": write_diffusers,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_loads_to_the_same_model(
    layout: Callable[[Path, dict[str, Tensor]], Any], tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / "weights"
    layout(path, weights)
    loaded = load_dit(path)
    assert loaded.config == TINY and loaded.settings is None
    same(loaded.model, weights)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    latents, context = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 3, 4096)
    assert loaded.model(latents, torch.tensor([500.0]), context).shape == latents.shape


def test_index_file_and_chosen_entry(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_shards(tmp_path / "shards", weights, {})
    same(load_dit(tmp_path / "shards" / "a.safetensors.index.json").model, weights)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save({"generator": zeros, "generator_ema": weights}, tmp_path / "x.pt")
    same(load_dit(tmp_path / "x.pt").model, weights)
    same(load_dit(tmp_path / "x.pt", which="generator").model, zeros)
    with pytest.raises(CheckpointError, match="no entry 'critic'"):
        load_dit(tmp_path / "x.pt", which="critic")
    with pytest.raises(CheckpointError, match="one model alone"):
        load_dit(tmp_path / "shards", which="generator")


def test_dtype_is_the_files_own_or_the_one_asked_for(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    mixed = {name: tensor if "modulation" in name else tensor.bfloat16() for name, tensor in weights.items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    same(load_dit(tmp_path / "mixed.safetensors").model, {name: tensor.bfloat16() for name, tensor in weights.items()})
    same(load_dit(tmp_path / "mixed.safetensors", dtype=torch.float32).model, {n: t.float() for n, t in mixed.items()})
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
    save_file(small, tmp_path / "fp8.safetensors")
    same(load_dit(tmp_path / "fp8.safetensors").model, {name: tensor.bfloat16() for name, tensor in small.items()})


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_saved_comes_back(dtype: torch.dtype | None, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    config = replace(TINY, text_len=32)
    model = WanDiT(config)
    model.load_state_dict(weights)
    settings = replace(SETTINGS, title="Prüfung", license="Apache-2.0")
    save_dit(path, model, config, settings, dtype=dtype)
    loaded = load_dit(path)
    assert (loaded.config, loaded.settings) == (config, settings)
    assert read_settings(path) == settings
    same(loaded.model, {name: tensor.to(dtype or torch.float32) for name, tensor in weights.items()})
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_file_is_what_the_public_library_and_comfyui_read(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    save_dit(path, {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, TINY, SETTINGS)
    theirs = load_file(path)
    assert {name: tensor.tolist() for name, tensor in theirs.items()} == {n: t.tolist() for n, t in weights.items()}
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {"transformer": {"causal_ar": True}}
    assert json.loads(metadata["diagdistill"])["settings"]["schedule"] == "4322222"
    # What ComfyUI's detection reads from a Wan 2.1 text-to-video file, with no prefix on the keys.
    assert theirs["head.modulation"].shape[-1] == TINY.dim == 128 * TINY.num_heads
    assert theirs["head.head.weight"].shape[0] // 4 == TINY.out_dim
    save_dit(path, weights, TINY, PRESETS["wan"])
    with safetensors.safe_open(path, "pt") as file:
        assert "config" not in file.metadata()  # a bidirectional model is none for causal sampling


def test_a_model_comfyui_would_misread_is_warned_of(tmp_path: Path) -> None:
    config = replace(TINY, num_heads=2)
    with pytest.warns(UserWarning, match="ComfyUI will misread"):
        save_dit(tmp_path / "x.safetensors", WanDiT(config), config)
    assert load_dit(tmp_path / "x.safetensors").config == config


def test_saving_refuses_what_does_not_fit(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"missing keys: blocks\.2"):
        save_dit(tmp_path / "x.safetensors", weights, replace(TINY, num_layers=3))
    assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_dit(path, weights, TINY, SETTINGS)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(replacing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_dit(path, weights, TINY)
    with pytest.raises(OSError, match="No space left"):
        convert(path, tmp_path / "folder", "diffusers")
    assert os.listdir(tmp_path) == ["model.safetensors"] and path.read_bytes() == before


def test_a_pickle_is_read_where_it_is_not_mapped(tmp_path: Path, weights: dict[str, Tensor], monkeypatch) -> None:
    torch.save(weights, tmp_path / "x.pt")
    load, asked = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k["mmap"]), load(*a, **k))[1])
    for mapped in (True, False):
        monkeypatch.setattr(weights_module, "_MAPS_PICKLES", mapped)
        same(load_dit(tmp_path / "x.pt").model, weights)
    assert asked == [True, False]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes.")]
)
def test_no_memory_to_read_in_is_not_called_damage(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    torch.save(weights, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match="not enough memory to read it: close other programs"):
        load_dit(tmp_path / "x.pt")


def test_conversion_goes_both_ways_and_keeps_settings(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"generator": weights}, tmp_path / "x.pt")
    assert convert(tmp_path / "x.pt", tmp_path / "x.safetensors", settings=SETTINGS) == SETTINGS
    assert convert(tmp_path / "x.safetensors", tmp_path / "d", "diffusers") == SETTINGS
    assert set(load_file(tmp_path / "d" / "diffusion_pytorch_model.safetensors")) == set(to_diffusers(weights))
    assert convert(tmp_path / "d", tmp_path / "y.safetensors", dtype=torch.float16) == SETTINGS
    loaded = load_dit(tmp_path / "y.safetensors")
    assert loaded.config == TINY
    same(loaded.model, {name: tensor.half() for name, tensor in weights.items()})


def test_conversion_refuses_destinations_it_would_spoil(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    for destination, to in (("x.pt", "comfyui"), (".", "diffusers"), ("x.safetensors", "diffusers")):
        with pytest.raises(CheckpointError, match="give"):
            convert(tmp_path / "x.safetensors", tmp_path / destination, to)
    with pytest.raises(ValueError, match="to must be one of comfyui, diffusers"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "gguf")
    convert(tmp_path / "x.safetensors", tmp_path / "x.safetensors", settings=SETTINGS)  # onto itself
    same(load_dit(tmp_path / "x.safetensors").model, weights)


def test_a_lora_is_merged_before_the_cast(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "base.safetensors")
    down, up = torch.randint(-8, 8, (2, 128)).float(), torch.randint(-8, 8, (128, 2)).float()  # exact products
    name = "blocks.1.self_attn.v"
    torch.save(
        {"generator_lora": {f"base_model.model.{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}},
        tmp_path / "lora.pt",
    )
    expected = {n: (t + up @ down / 1024 if n == f"{name}.weight" else t).bfloat16() for n, t in weights.items()}
    loaded = load_dit(
        tmp_path / "base.safetensors", dtype=torch.bfloat16, lora=tmp_path / "lora.pt", lora_strength=1 / 1024
    )
    same(loaded.model, expected)
    convert(
        tmp_path / "base.safetensors",
        tmp_path / "m.safetensors",
        dtype=torch.bfloat16,
        lora=tmp_path / "lora.pt",
        lora_strength=1 / 1024,
    )
    same(load_dit(tmp_path / "m.safetensors").model, expected)
    with pytest.raises(CheckpointError, match=r"lora\.pt: this is a LoRA, not a model"):
        load_dit(tmp_path / "lora.pt")
    save_file({"diffusion_model.blocks.9.ffn.0.lora_A.weight": down}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: 1 of its 1 keys fit nothing"):
        load_dit(tmp_path / "base.safetensors", lora=tmp_path / "other.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("code-was-run",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    new_format: bool, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"generator": weights, "x": Evil()}, "x.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"x\.pt: it holds Python objects \(\w+\.mkdir\).*trust") as caught:
        load_dit("x.pt")
    assert "safetensors" in str(caught.value)
    (tmp_path / "y.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load_dit("y.pt")
    assert not Path("code-was-run").exists()


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "no such file"),
        (write(b""), "empty"),
        (write(b"abc"), "ends inside its header"),
        (write(b"GGUF" + bytes(100)), "GGUF"),
        (write(b"\n<!DOCTYPE html><html>"), "web page"),
        (write(b"version https://git-lfs.github.com/spec/v1\noid"), "Git LFS pointer"),
        (write(bytes(200)), "header cannot be read"),
        (write(b"\x02" + bytes(7) + b"{}"), "no tensors"),
        (write(b"PK\x03\x04" + bytes(200)), "no PyTorch checkpoint"),
        (write(b"\x80\x02]q\x00."), "no PyTorch checkpoint|not weights"),
        (lambda path: torch.save(torch.ones(3), path), "one Tensor, not weights"),
        (lambda path: torch.save({"epoch": 3}, path), "no tensors .* at its top: epoch"),
        (lambda path: torch.save({"a": torch.ones(1).expand(10**9)}, path), "no plain dense tensor"),
        (lambda path: save_file({"decoder.conv1.weight": torch.ones(3)}, path), "no Wan 2.1 DiT. .*VAE"),
        (lambda path: path.mkdir(), r"folder holds no \.safetensors"),
    ],
)
def test_files_that_are_no_checkpoint(make: Callable[[Path], Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_dit(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("end", [9, 200, 0.5, 0.9, -1])
def test_a_download_cut_short(end: float, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    torch.save(weights, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(end * len(whole)) if isinstance(end, float) else end])
        with pytest.raises(CheckpointError, match="Fetch it again"):
            load_dit(tmp_path / name)


def test_damaged_folders(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    folder = tmp_path / "model"
    save_shards(folder, weights, {})
    index = folder / "a.safetensors.index.json"
    whole = index.read_text()
    cases = [
        ("[]", "no JSON object"),
        ("{", "no JSON"),
        ("{}", "lists no tensors"),
        (whole.replace("a-00002", "../a-00002"), "no safetensors file beside it"),
        (whole.replace("a-00002", "a-00003"), r"1 of 2 shards are missing: a-00003\.safetensors"),
        (whole.replace("a-00002", "a-00001"), "not in the shards that should hold them"),
    ]
    for text, complaint in cases:
        index.write_text(text)
        with pytest.raises(CheckpointError, match=complaint):
            load_dit(folder)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"several models \(a-00001"):
        load_dit(folder)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    config = WanConfig(dim=128, ffn_dim=8, num_heads=1, num_layers=1, in_dim=1, out_dim=1, freq_dim=2, text_dim=4096)
    path = tmp_path_factory.mktemp("valid") / "x.safetensors"
    torch.manual_seed(0)
    save_dit(path, WanDiT(config).bfloat16(), config, SETTINGS)
    return path.read_bytes()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_load_or_give_the_named_error(valid: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(valid)
    header = int.from_bytes(valid[:8], "little")
    places = st.integers(0, header + 16) | st.integers(0, len(content) - 1)
    for position in data.draw(st.lists(places, max_size=4)):
        content[position] = data.draw(st.integers(0, 255) | st.sampled_from(list(b'{}[]",:0-9.e ')))
    end = data.draw(st.just(len(content)) | st.integers(0, header + 20) | st.integers(0, len(content)))
    content = content[:end] + data.draw(st.just(b"") | st.binary(max_size=20))
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mutated field name is an unknown setting
        try:
            loaded = load_dit(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            return
    theirs = load_file(path)  # what we accept, the public library accepts, and reads the same
    assert all(
        torch.equal(tensor.view(torch.int16), theirs[name].view(torch.int16))
        for name, tensor in loaded.model.state_dict().items()
        if theirs[name].dtype == torch.bfloat16
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_pickles_load_or_give_the_named_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.pt"
    torch.save({"generator": {"head.modulation": torch.ones(1, 2, 128)}}, path)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with pytest.raises(CheckpointError):  # it is one tensor alone: whole or not, it is no model
        load_dit(path)


@pytest.mark.parametrize("metadata", ["[", "[]", '{"settings": {}}', '{"model": {"num_heads": 3}}'])
def test_broken_metadata_is_named(metadata: str, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "x.safetensors", {"diagdistill": metadata})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
        load_dit(tmp_path / "x.safetensors")
