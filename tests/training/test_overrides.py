from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from training.overrides import with_overrides
from training.recipes.moving_digits import RECIPES, cpu


@dataclass(frozen=True)
class Inner:
    low: int = 1
    high: int = 2
    name: str = "a"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    rate: float = 0.5
    on: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = (1,)
    window: int | None = 12


def test_values_take_their_fields_type() -> None:
    changed = with_overrides(
        Outer(), ["rate=1e-4", "on=true", "pair=0.5, 0.9", "many=1,2,3", "window=none", "inner.name=b=c"]
    )
    assert changed == Outer(Inner(name="b=c"), 1e-4, True, (0.5, 0.9), (1, 2, 3), None)
    assert with_overrides(Outer(), ["window=9"]).window == 9
    assert with_overrides(Outer(), []) == Outer()


def test_fields_that_must_agree_are_changed_together() -> None:
    assert with_overrides(Outer(), ["inner.low=5", "inner.high=7"]).inner == Inner(5, 7)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("rat=1", "no field 'rat'; did you mean rate?"),
        ("inner.hihg=1", "no field 'inner.hihg'; did you mean inner.high?"),
        ("zzz=1", "no field 'zzz'; there are inner, rate"),
        ("rate", "'rate' is no field=value"),
        ("rate=fast", "rate=fast: it takes a number"),
        ("many=1,x", "many=1,x: it takes a whole number"),
        ("on=maybe", "it takes true or false"),
        ("pair=1", "it takes 2 values"),
        ("inner=3", "inner is a group of fields: set one of inner.low, inner.high, inner.name"),
        ("rate.x=3", "rate has no field 'x'"),
        ("inner.low=9", "inner: low 9 is above high 2"),
    ],
)
def test_what_is_wrong_is_named(assignment: str, told: str) -> None:
    with pytest.raises(ValueError) as error:
        with_overrides(Outer(), [assignment])
    assert told in str(error.value)


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="rate is given twice"):
        with_overrides(Outer(), ["rate=1", "rate=2"])


def test_recipes_can_be_changed_deep_down() -> None:
    changed = with_overrides(cpu(), ["stage2.weights.gamma=0.5", "stage1.steps=7", "stage2.noise.shift=3"])
    assert (changed.stage2.weights.gamma, changed.stage1.steps, changed.stage2.noise.shift) == (0.5, 7, 3.0)
    with pytest.raises(ValueError, match="stage2: recipe: batch must be at least 1, got 0"):
        with_overrides(cpu(), ["stage2.batch=0"])
    with pytest.raises(ValueError, match=r"stage2.*schedule"):
        with_overrides(cpu(), ["stage2.schedule=9x"])
    with pytest.raises(ValueError, match="stage1 has no frozen student"):
        with_overrides(cpu(), ["stage1.weights.gamma=1"])
    with pytest.raises(ValueError, match="same chunk_frames"):
        with_overrides(cpu(), ["stage1.chunk_frames=1"])


@pytest.mark.parametrize("make", RECIPES.values(), ids=RECIPES)
def test_another_seed_reaches_every_stage(make) -> None:
    recipe = make().with_seed(5)
    assert {recipe.ode_pairs.seed, recipe.ode_init.seed} == {5}
    assert (recipe.stage1.seed, recipe.stage2.seed) == (10, 11)  # which share the form of their draws
    preparation = recipe.preparation
    seeds = [part.seed for part in preparation.parts.values()]
    assert preparation.autoencoder.seed == 5
    assert seeds[0] == 5 * len(seeds) and len({*seeds, *(part.seed for part in make().preparation.parts.values())}) == (
        2 * len(seeds)
    )


def test_the_long_recipe_has_a_part_more_before_the_last() -> None:
    assert list(RECIPES["toy"]().preparation.parts) == ["looks", "motion", "videos", "teacher"]
    assert list(RECIPES["toy-long"]().preparation.parts) == ["looks", "motion", "videos", "whole", "teacher"]
    changed = with_overrides(RECIPES["toy-long"](), ["preparation.whole.steps=7"])
    assert changed.preparation.parts["whole"].steps == 7
