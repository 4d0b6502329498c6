from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag_core.demo_text import DemoTextEncoder
from training.data.prompts import (
    COLOURS,
    DIRECTIONS,
    EDGES,
    GROUNDS,
    PHRASINGS,
    SPEEDS,
    Scene,
    held_out_scenes,
    is_held_out,
    parse,
    random_prompt,
    sample_scene,
    to_prompt,
)

any_scene = st.builds(
    Scene,
    digit=st.integers(0, 9),
    colour=st.sampled_from(sorted(COLOURS)),
    ground=st.sampled_from(sorted(GROUNDS)),
    direction=st.sampled_from(sorted(DIRECTIONS)),
    speed=st.sampled_from(SPEEDS),
    edge=st.sampled_from(EDGES),
)


@given(any_scene, st.integers(0, len(PHRASINGS) - 1), st.booleans())
def test_every_phrasing_parses_back(scene: Scene, phrasing: int, digit_as_word: bool) -> None:
    assert parse(to_prompt(scene, phrasing=phrasing, digit_as_word=digit_as_word)) == scene


@given(any_scene, st.integers(0, 2**32))
def test_prompts_fit_the_encoder(scene: Scene, seed: int) -> None:
    encoder = DemoTextEncoder(text_dim=1)
    encoder.encode([random_prompt(scene, np.random.default_rng(seed))])


def test_phrasings_differ_and_all_occur() -> None:
    scene = Scene(digit=3, colour="red", ground="navy", direction="up", speed="fast", edge="stops")
    rng = np.random.default_rng(0)
    assert len({random_prompt(scene, rng) for _ in range(300)}) == 2 * len(PHRASINGS)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "no digit"),
        ("a red moves right fast and stops on a navy ground", "no digit"),
        ("a red 3 and a 4 move right fast and bounces on navy", "more than one .*digit"),
        ("a red blue 3 moves right fast and bounces on navy", "more than one .*colour"),
        ("a red 3 moves right fast and bounces", "no ground"),
    ],
)
def test_other_prompts_are_refused(prompt: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(prompt)


@given(st.text(max_size=60))
def test_nothing_but_value_errors(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


def test_wrong_attributes_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("digit=10")):
        Scene(digit=10, colour="red", ground="navy", direction="up", speed="fast", edge="stops")
    with pytest.raises(ValueError, match="colour='pink'"):
        Scene(digit=1, colour="pink", ground="navy", direction="up", speed="fast", edge="stops")


def test_split_of_combinations() -> None:
    held_out = {(d, c, m) for d in range(10) for c in COLOURS for m in DIRECTIONS if is_held_out(d, c, m)}
    assert 0.1 < len(held_out) / (10 * len(COLOURS) * len(DIRECTIONS)) < 0.2
    # Every attribute value is in both parts, so only its combinations are new.
    for part in (held_out, {(d, c, m) for d in range(10) for c in COLOURS for m in DIRECTIONS} - held_out):
        assert {d for d, _, _ in part} == set(range(10))
        assert {c for _, c, _ in part} == set(COLOURS)
        assert {m for _, _, m in part} == set(DIRECTIONS)


def test_training_scenes_are_never_held_out() -> None:
    rng = np.random.default_rng(1)
    assert not any(sample_scene(rng).held_out for _ in range(500))
    scenes = held_out_scenes(40, seed=0)
    assert all(scene.held_out for scene in scenes)
    assert [sum(scene.digit == d for scene in scenes) for d in range(10)] == [4] * 10
    assert scenes == held_out_scenes(40, seed=0)
    assert scenes != held_out_scenes(40, seed=1)
