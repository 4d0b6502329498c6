"""Fields of recipes, as `--fields` lists them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from training.fields import documentation, fields_of, listing
from training.overrides import with_overrides
from training.recipes.wan import RECIPES, WanDistilRecipe


@dataclass(frozen=True)
class Part:
    low: float = 2e-6
    """smallest"""


@dataclass(frozen=True)
class Parent:
    count: int | None = 3
    """how
    many"""
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Child(Parent):
    names: tuple[str, ...] = ("c",)
    """of all"""
    part: Part = field(default_factory=Part)
    on: bool = True


def test_fields_of_parents_and_parts() -> None:
    assert list(fields_of(Child())) == [
        ("count", "whole number or none", "3", "how many"),
        ("names", "texts with commas between", "c", "of all"),
        ("part.low", "number", "2e-06", "smallest"),
        ("on", "true or false", "true", ""),
    ]
    assert documentation(Parent) == {"count": "how many"}
    assert listing(Child()).startswith("count=3  (whole number or none)\n    how many\nnames=c")


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_wans_recipes_is_documented_and_can_be_given_as_listed(name: str) -> None:
    recipe = RECIPES[name]()
    listed = list(fields_of(recipe))
    assert [own.name for own in listed if not own.text] == []
    assert with_overrides(recipe, [f"{own.name}={own.default}" for own in listed]) == recipe


def test_published_settings() -> None:
    stage1, stage2 = (RECIPES[name]() for name in ("stage1", "stage2"))
    for stage in (stage1, stage2):
        assert isinstance(stage, WanDistilRecipe)
        assert (stage.learning_rate, stage.critic_learning_rate, stage.betas) == (2e-6, 4e-7, (0.0, 0.999))
        assert stage.ema_start * stage.generator_every == 200
        assert (stage.batch, stage.ema, stage.clip, stage.weight_decay, stage.generator_every) == (
            64,
            0.99,
            10,
            0.01,
            5,
        )
        assert (stage.cfg, stage.shift, stage.kv_noise, stage.window_frames, stage.sink_frames) == (4, 5, 100, 12, 3)
        assert stage.video.shape(16) == (16, 21, 60, 104)
    weights = stage2.weights
    assert (weights.spatial, weights.regression, weights.gamma, weights.flow) == (4, 0, 1, 4)
    assert (stage1.schedule, stage2.schedule) == ("4", "4322222")
    assert stage1.weights.gamma == 0  # there is nothing to compare with yet
    pairs = RECIPES["ode-pairs"]()
    assert (pairs.steps, pairs.cfg, pairs.shards * pairs.pairs_a_shard) == (50, 6, 16384)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("video.width=830", "width must be a multiple of 16"),
        ("video.latent_frames=20", "multiple of chunk_frames"),
        ("lora.targets=self_attn.q,ffn", "lora.targets must be among"),
        ("lora.rank=-1", "lora.rank must be 0 or more"),
        ("weights_precision=fp8", "must be one of bf16, fp32"),
        ("lora.rnk=4", "did you mean lora.rank?"),
    ],
)
def test_wrong_fields(field: str, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("?", "\\?")):
        with_overrides(RECIPES["stage1"](), [field])
