"""LoRA merging: every naming gives the same weights, scales are right, and nothing in a file is silently ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diag_core import WanConfig, WanDiT
from diag_core.checkpoint import load_tensors, save_dit
from diag_core.lora import Lora, open_lora
from diag_core.state_dict import CheckpointError, to_diffusers_name

pytestmark = pytest.mark.filterwarnings("ignore:ComfyUI will misread")  # the small width of its heads
SMALL = WanConfig(dim=24, ffn_dim=40, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=8, text_dim=16)
MODULES = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "blocks.0.ffn.2")
RANK = 3

Merge = Callable[..., dict[str, Tensor]]


@pytest.fixture
def base() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in WanDiT(SMALL).state_dict().items()}


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    """Base weights and a LoRA, given as tensors or as a file -> the weights that the loader gives."""

    def load(base: dict[str, Tensor], lora: dict[str, Tensor] | Path, strength: float = 1.0) -> dict[str, Tensor]:
        save_dit(tmp_path / "base.safetensors", base, SMALL)
        path = lora if isinstance(lora, Path) else tmp_path / "lora.safetensors"
        if not isinstance(lora, Path):
            save_file(lora, path)
        return dict(load_tensors(tmp_path / "base.safetensors", lora=path, lora_strength=strength).tensors)

    return load


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    shapes = {name: WanDiT(SMALL).state_dict()[f"{name}.weight"].shape for name in MODULES}
    return {name: (torch.randn(RANK, shape[1]), torch.randn(shape[0], RANK)) for name, shape in shapes.items()}


def theirs(module: str) -> str:
    return to_diffusers_name(f"{module}.weight").removesuffix(".weight")


Naming = Callable[[str], tuple[str, str]]
NAMINGS: dict[str, Naming] = {
    "LongLive, peft": lambda m: (f"base_model.model.{m}.lora_A.weight", f"base_model.model.{m}.lora_B.weight"),
    "peft, adapter name": lambda m: (
        f"base_model.model.{m}.lora_A.default.weight",
        f"base_model.model.{m}.lora_B.default.weight",
    ),
    "under FSDP": lambda m: (f"model._fsdp_wrapped_module.{m}.lora_A.weight", f"model.{m}.lora_B.weight"),
    "ComfyUI": lambda m: (f"diffusion_model.{m}.lora_A.weight", f"diffusion_model.{m}.lora_B.weight"),
    "down and up": lambda m: (f"diffusion_model.{m}.lora_down.weight", f"diffusion_model.{m}.lora_up.weight"),
    "no prefix": lambda m: (f"{m}.lora_down.weight", f"{m}.lora_up.weight"),
    "kohya": lambda m: (
        f"lora_unet_{m.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{m.replace('.', '_')}.lora_up.weight",
    ),
    "kohya, diffusers' modules": lambda m: (
        f"lora_unet_{theirs(m).replace('.', '_')}.lora_down.weight",
        f"lora_unet_{theirs(m).replace('.', '_')}.lora_up.weight",
    ),
    "diffusers": lambda m: (f"transformer.{theirs(m)}.lora_A.weight", f"transformer.{theirs(m)}.lora_B.weight"),
}


def named(pairs: dict[str, tuple[Tensor, Tensor]], naming: Naming) -> dict[str, Tensor]:
    tensors = {}
    for module, (down, up) in pairs.items():
        down_name, up_name = naming(module)
        tensors |= {down_name: down, up_name: up}
    return tensors


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_every_naming_gives_the_same_weights(
    naming: Naming, merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    merged = merge(base, named(pairs, naming), 0.5)
    assert set(merged) == set(base)
    for name, tensor in base.items():
        down, up = pairs.get(name.removesuffix(".weight"), (None, None))
        torch.testing.assert_close(merged[name], tensor if down is None else tensor + 0.5 * up @ down)


def test_alpha_scales_by_rank(merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    module = MODULES[0]
    down, up = pairs[module]
    expected = base[f"{module}.weight"] + 12.0 / RANK * up @ down
    tensors = {f"lora_unet_{module.replace('.', '_')}.alpha": torch.tensor(12.0)}
    merged = merge(base, tensors | named({module: pairs[module]}, NAMINGS["kohya"]))
    torch.testing.assert_close(merged[f"{module}.weight"], expected)


def test_a_small_change_of_a_bf16_weight_is_rounded_once(merge: Merge, base: dict[str, Tensor]) -> None:
    base = {name: tensor.bfloat16() for name, tensor in base.items()}
    down, up = torch.full((200, 24), 0.01), torch.full((24, 200), 0.01)  # 200 times 1e-4, each lost beside 1 in bf16
    base["blocks.0.self_attn.q.weight"] = torch.ones(24, 24, dtype=torch.bfloat16)
    tensors = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    weight = merge(base, tensors)["blocks.0.self_attn.q.weight"]
    assert weight.dtype == torch.bfloat16
    assert torch.all(weight == torch.tensor(1.02).bfloat16())


def test_a_convolution_and_plain_differences(merge: Merge, base: dict[str, Tensor]) -> None:
    down, up = torch.randn(2, 4, 1, 2, 2), torch.randn(24, 2, 1, 1, 1)
    shift = torch.randn(24)
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": down,
        "diffusion_model.patch_embedding.lora_up.weight": up,
        "diffusion_model.blocks.0.norm3.diff": shift,
        "diffusion_model.blocks.1.self_attn.k.diff_b": -shift,
        "diffusion_model.blocks.1.modulation.diff": torch.ones(1, 6, 24),
    }
    changes = {
        "patch_embedding.weight": torch.einsum("or,ricde->oicde", up[..., 0, 0, 0], down),
        "blocks.0.norm3.weight": shift,
        "blocks.1.self_attn.k.bias": -shift,
        "blocks.1.modulation": torch.ones(1, 6, 24),
    }
    merged = merge(base, tensors, 2.0)
    for name, tensor in base.items():
        torch.testing.assert_close(merged[name], tensor + 2 * changes[name] if name in changes else tensor)


def test_unused_keys_are_an_error(
    merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    tensors = named(pairs, NAMINGS["ComfyUI"])
    surplus = {f"diffusion_model.blocks.{i}.cross_attn.k_img.lora_A.weight": torch.ones(1) for i in range(12)}
    with pytest.raises(CheckpointError, match=r"12 of its 20 keys fit nothing .* and 2 more") as caught:
        merge(base, tensors | surplus)
    assert str(caught.value).count("k_img") == 10


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 24)}, "half a pair for 'blocks.0.ffn.0.weight': down alone"),
        ({"blocks.0.ffn.0.alpha": torch.ones(())}, "no pair to scale"),
        (
            {"blocks.0.ffn.0.lora_A.weight": torch.ones(2, 36), "blocks.0.ffn.0.lora_B.weight": torch.ones(40, 2)},
            "a model of another size",
        ),
        (
            {"blocks.0.ffn.0.lora_A.weight": torch.ones(0, 24), "blocks.0.ffn.0.lora_B.weight": torch.ones(40, 0)},
            "a model of another size",
        ),
        ({"blocks.0.norm3.diff": torch.ones(25)}, r"shape \[25\], the model's is \[24\]"),
        ({"blocks.0.modulation.diff_b": torch.ones(24)}, "fit nothing"),
        ({"blocks.0.ffn.0.dora_scale": torch.ones(24)}, "fit nothing"),
        ({}, "it holds no tensors"),
        (
            {"blocks.0.norm3.diff": torch.ones(24), "diffusion_model.blocks.0.norm3.diff": torch.ones(24)},
            "two of its tensors",
        ),
    ],
)
def test_what_cannot_be_merged_is_named(
    tensors: dict[str, Tensor], complaint: str, merge: Merge, base: dict[str, Tensor]
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        merge(base, tensors)


def test_strength_must_be_finite(
    merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    with pytest.raises(ValueError, match="finite"):
        merge(base, named(pairs, NAMINGS["ComfyUI"]), float("nan"))


def test_longlive_file(
    tmp_path: Path, merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    generator = named(pairs, NAMINGS["LongLive, peft"])
    torch.save({"generator_lora": generator, "critic_lora": {"x": torch.ones(1)}}, tmp_path / "lora.pt")
    assert set(open_lora(tmp_path / "lora.pt").tensors) == set(generator)
    expected, merged = merge(base, generator), merge(base, tmp_path / "lora.pt")
    assert all(torch.equal(merged[name], expected[name]) for name in base)


@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_itself_merges_to_the_same(tmp_path: Path, merge: Merge, stabilised: bool) -> None:
    import peft  # here: it is slow to import, and the other tests do without

    torch.manual_seed(2)
    model = WanDiT(SMALL)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=list(MODULES), use_rslora=stabilised)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    ours, theirs = merge(base, tmp_path / "adapter"), wrapped.merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_diffusers_keeps_its_scale_in_metadata(
    tmp_path: Path, merge: Merge, base: dict[str, Tensor], pairs: dict[str, tuple[Tensor, Tensor]]
) -> None:
    module = MODULES[0]
    down, up = pairs[module]
    expected = base[f"{module}.weight"] + 6 / RANK * up @ down
    adapter = {"transformer.lora_alpha": 6, "transformer.r": RANK}
    tensors = named({module: (down, up)}, NAMINGS["diffusers"])
    save_file(tensors, tmp_path / "adapter.safetensors", {"lora_adapter_metadata": json.dumps(adapter)})
    torch.testing.assert_close(merge(base, tmp_path / "adapter.safetensors")[f"{module}.weight"], expected)


@pytest.mark.parametrize(
    "packed", ["[1", "3", '{"transformer.lora_alpha": {}}', '{"lora_alpha": 2, "alpha_pattern": {"q": 1}}']
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, packed: str) -> None:
    save_file({"a.diff": torch.ones(1)}, tmp_path / "lora.safetensors", {"lora_adapter_metadata": packed})
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: the config of this LoRA cannot be used"):
        open_lora(tmp_path / "lora.safetensors")


def test_changes_are_known_before_any_weight_is_read() -> None:
    with torch.device("meta"):
        targets = WanDiT(SMALL).state_dict()
    changes = Lora({"blocks.0.norm3.diff": torch.ones(24)}).changes(targets)
    assert list(changes) == ["blocks.0.norm3.weight"]
