"""Key maps: wrappers, prefixes, diffusers' names, sizes from tensors, and errors that say what a file is."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diag_core import WanConfig, WanDiT
from diag_core.state_dict import (
    CheckpointError,
    check_keys,
    expected_shapes,
    from_diffusers_name,
    infer_config,
    original_names,
    to_diffusers_name,
    unwrap,
)

SMALL = WanConfig(dim=24, ffn_dim=40, num_heads=2, num_layers=2, in_dim=4, out_dim=4, freq_dim=8, text_dim=16)


def shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}


def small_shapes() -> dict[str, Any]:
    return shaped(dict(expected_shapes(SMALL)))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return WanDiT(SMALL).state_dict()


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(WanConfig.wan_1_3b(), 825, 1_418_996_800), (WanConfig.wan_14b(), 1095, 14_288_491_584)],
)
def test_published_sizes(config: WanConfig, tensors: int, parameters: int) -> None:
    shapes = expected_shapes(config)
    assert len(shapes) == tensors
    assert sum(map(math.prod, shapes.values())) == parameters
    assert infer_config(shaped(shapes)) == config


def to_diffusers(keys: dict[str, Any]) -> dict[str, Any]:
    return {to_diffusers_name(name): value for name, value in keys.items()}


def opened(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by original key."""
    tensors, _ = unwrap(checkpoint)
    return {key: tensors[name] for key, name in original_names(tensors).items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda keys: keys,
        lambda keys: {"generator": keys},
        lambda keys: {"generator_ema": {f"model.{k}": v for k, v in keys.items()}, "step": 3},
        lambda keys: {"model": keys, "optimizer": {"lr": 1.0}},
        lambda keys: {"state_dict": {"model": {f"_orig_mod.{k}": v for k, v in keys.items()}}},
        lambda keys: {f"model.diffusion_model.{k}": v for k, v in keys.items()},
        lambda keys: {f"diffusion_model.{k}": v for k, v in keys.items()},
        lambda keys: {
            "generator": {
                "model._fsdp_wrapped_module."
                + k.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."): v
                for k, v in keys.items()
            }
        },
        to_diffusers,
        lambda keys: {f"model.{k}": v for k, v in to_diffusers(keys).items()},
    ],
)
def test_every_wrapper_is_opened(wrap: Any, weights: dict[str, torch.Tensor]) -> None:
    found = opened(wrap(weights))
    assert set(found) == set(weights)
    assert all(found[name] is weights[name] for name in weights)


def test_ema_is_preferred_and_the_other_can_be_chosen() -> None:
    checkpoint = {"generator": {"a": torch.zeros(1)}, "generator_ema": {"a": torch.ones(1)}, "critic": {"a": 1}}
    assert unwrap(checkpoint)[1] == "generator_ema"
    tensors, wrapper = unwrap(checkpoint, "generator")
    assert wrapper == "generator" and tensors["a"].item() == 0
    with pytest.raises(CheckpointError, match="no entry 'teacher'; entries it has: generator, generator_ema, critic"):
        unwrap(checkpoint, "teacher")


def test_other_models_beside_the_dit_are_left_out(weights: dict[str, torch.Tensor]) -> None:
    whole = {f"model.diffusion_model.{k}": v for k, v in weights.items()}
    whole |= {"first_stage_model.encoder.conv1.weight": torch.ones(1), "text_encoders.shared.weight": torch.ones(1)}
    assert set(opened(whole)) == set(weights)


def test_two_keys_for_one_tensor_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"both .* stand for 'blocks\.0\.norm3\.weight'"):
        original_names(["patch_embedding.weight", "blocks.0.norm3.weight", "blocks.0._orig_mod.norm3.weight"])


def test_diffusers_names_go_both_ways() -> None:
    shapes = expected_shapes(SMALL)
    theirs = to_diffusers(shapes)
    assert len(theirs) == len(shapes)
    assert {from_diffusers_name(name): shape for name, shape in theirs.items()} == shapes
    assert theirs["blocks.1.attn2.to_out.0.bias"] == shapes["blocks.1.cross_attn.o.bias"]
    assert theirs["blocks.0.norm2.weight"] == shapes["blocks.0.norm3.weight"]
    assert theirs["scale_shift_table"] == shapes["head.modulation"]


def test_sizes_are_inferred_and_the_unknown_ones_given() -> None:
    with pytest.raises(CheckpointError, match="width 24 is no multiple of 128"):
        infer_config(small_shapes())
    config = infer_config(small_shapes(), {"num_heads": 2, "text_len": 7, "eps": 1e-5})
    assert config == WanConfig(**{**SMALL.to_dict(), "text_len": 7, "eps": 1e-5})
    for wrong in ({"num_heads": 5}, {"num_heads": "2"}, {"num_heads": 2, "eps": "small"}):
        with pytest.raises(CheckpointError):
            infer_config(small_shapes(), wrong)


def test_faults_are_listed_ten_at_most_with_their_count() -> None:
    tensors = small_shapes()
    check_keys(tensors, SMALL)
    for name in [name for name in tensors if name.startswith("blocks.0.")][:12]:
        del tensors[name]
    tensors["blocks.1.surplus"] = SimpleNamespace(shape=(1,))
    tensors["head.head.bias"] = SimpleNamespace(shape=(5,))
    with pytest.raises(CheckpointError) as caught:
        check_keys(tensors, SMALL)
    text = str(caught.value)
    assert "12 missing keys: " in text and text.count("blocks.0.") == 10 and "and 2 more" in text
    assert "1 unexpected key: blocks.1.surplus" in text
    assert "1 key of another shape: head.head.bias is [5], not [16]" in text


def added(*names: str) -> Any:
    return lambda: small_shapes() | shaped({name: (3,) for name in names})


@pytest.mark.parametrize(
    ("tensors", "cause"),
    [
        (added("blocks.0.cross_attn.k_img.weight", "img_emb.proj.0.bias"), "image-to-video"),
        (added("condition_embedder.image_embedder.norm1.weight"), "image-to-video"),
        (added("vace_blocks.0.after_proj.weight"), "VACE"),
        (added("scaled_fp8", "blocks.0.ffn.0.scale_weight"), "fp8"),
        (added("control_adapter.conv.weight"), "further conditions"),
        (lambda: shaped({"blocks.0.self_attn.q.lora_A.weight": (4, 24)}), "LoRA"),
        (lambda: shaped({"lora_unet_blocks_0_ffn_0.alpha": ()}), "LoRA"),
        (lambda: shaped({"decoder.conv1.weight": (8, 16, 3, 3, 3)}), "VAE"),
        (lambda: shaped({"decoder.1.weight": (8, 16, 3, 3)}), "tiny autoencoder"),
        (lambda: shaped({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}), "text encoder"),
        (lambda: shaped({"token_embedding.weight": (9, 4), "blocks.0.attn.q.weight": (4, 4)}), "text encoder"),
        (lambda: shaped({"double_blocks.0.img_attn.qkv.weight": (4, 4)}), "another family"),
        (lambda: shaped(dict(expected_shapes(WanConfig.wan_14b()))), "Wan 2.1 14B .* not Wan 2.1 1.3B"),
        (lambda: shaped({"patch_embedding.weight": (1536, 16, 1, 2, 2)}), "one shard of several"),
    ],
)
def test_the_likely_cause_is_named(tensors: Any, cause: str) -> None:
    config = WanConfig.wan_1_3b() if "1.3B" in cause else SMALL
    with pytest.raises(CheckpointError, match=cause):
        check_keys(tensors(), config)


def test_a_model_conditioned_on_images_is_refused_by_its_channels() -> None:
    tensors = small_shapes() | shaped({"patch_embedding.weight": (24, 36, 1, 2, 2)})
    with pytest.raises(CheckpointError, match="takes 36 channels and gives 4"):
        infer_config(tensors, {"num_heads": 2})


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(expected_shapes(SMALL))) | st.text(max_size=20),
        st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
        max_size=8,
    ),
    st.booleans(),
)
def test_any_set_of_tensors_fits_or_is_refused_in_words(changes: dict[str, tuple[int, ...]], whole: bool) -> None:
    tensors = (small_shapes() if whole else {}) | shaped(changes)
    try:
        names = original_names(tensors)
        found = {name: tensors[stored] for name, stored in names.items()}
        check_keys(found, infer_config(found, {"num_heads": 2}))
    except CheckpointError:
        return
    assert {name: value.shape for name, value in found.items()} == expected_shapes(SMALL)
