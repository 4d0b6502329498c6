from __future__ import annotations

import contextlib
import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diag_core.demo_text import DemoTextEncoder
from training.data.prompts import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    MOTIONS,
    PAIR_FRACTION,
    Mover,
    Scene,
    across,
    held_out_scenes,
    is_held_out,
    parse,
    phrasings,
    random_prompt,
    sample_scene,
    tell_apart,
    to_prompt,
)

any_scene = st.builds(lambda seed: sample_scene(np.random.default_rng(seed), held_out=None, pairs=0.5), st.integers(0))
RED_3 = Mover(digit=3, colour="red", motion="bounces", direction="right", speed="fast")


@given(any_scene, st.booleans())
def test_every_phrasing_parses_back_and_fits_the_encoder(scene: Scene, digit_as_word: bool) -> None:
    encoder = DemoTextEncoder(text_dim=1)
    for phrasing in range(len(phrasings(scene))):
        prompt = to_prompt(scene, phrasing=phrasing, digit_as_word=digit_as_word)
        assert parse(prompt) == scene
        encoder.encode([prompt])


def test_phrasings_differ_and_all_occur() -> None:
    pair = (RED_3, Mover(digit=7, colour="blue", motion="circles"))
    for scene in (Scene(movers=(RED_3,), ground="navy"), Scene(movers=pair)):
        rng = np.random.default_rng(0)
        ways = {to_prompt(scene, phrasing=i, digit_as_word=w) for i, w in product(range(len(phrasings(scene))), (0, 1))}
        assert len(ways) >= 2 * 9
        assert {random_prompt(scene, rng) for _ in range(1000)} == ways


def test_known_prompts() -> None:
    slow = Mover(digit=3, colour="red", motion="bounces", direction="right", speed="slowly")
    assert parse("a red 3 moves right slowly and bounces, on a navy ground") == Scene(movers=(slow,), ground="navy")
    seven = Mover(digit=7, colour="yellow", motion="stops", direction="down", speed="fast")
    assert parse("a yellow 7 moves down fast and stops, on a black ground") == Scene(movers=(seven,))
    circling = Mover(digit=7, colour="blue", motion="circles")
    assert parse("a red 3 moves right, fast, and bounces; a blue 7 circles") == Scene(movers=(RED_3, circling))
    turning = Mover(digit=0, colour="white", motion="turns", direction="up", speed="fast", turn="left")
    assert parse("on a forest ground, a white zero fast moves up and turns left").movers == (turning,)


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "no digit"),
        ("a red moves right fast and stops on a navy ground", "no digit"),
        ("a red 3 and a 4 move right fast and bounces on navy", "more than one .*digit"),
        ("a red blue 3 moves right fast and bounces on navy", "more than one .*colour"),
        ("a red 3 moves right fast on navy", "no motion"),
        ("a red 3 moves fast and bounces", "no direction"),
        ("a red 3 moves right fast and turns, on navy", "which way it turns"),
        ("a red 3 moves right fast and turns left", "turn='left'"),
        ("a red 3 circles on a navy maroon ground", "more than one ground"),
        ("a red 3 circles; a blue 4 circles; a white 5 circles", "3 digits"),
        ("a red 3 circles; an orange 4 circles", "cannot be told apart"),
    ],
)
def test_other_prompts_are_refused(prompt: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(prompt)


@given(st.text(max_size=60))
def test_nothing_but_value_errors(text: str) -> None:
    with contextlib.suppress(ValueError):
        scene = parse(text)
        assert parse(to_prompt(scene)) == scene


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"digit": 10}, "digit=10"),
        ({"colour": "pink"}, "colour='pink'"),
        ({"motion": "circles"}, "direction='right'"),
        ({"motion": "turns"}, "turn=None"),
        ({"turn": "up"}, "turn='up'"),
    ],
)
def test_wrong_attributes_are_refused(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Mover(**{"digit": 3, "colour": "red", "motion": "stops", "direction": "right", "speed": "fast", **change})


def test_corners_are_square() -> None:
    assert set(across("right")) == set(across("left")) == {"up", "down"}
    assert set(across("up")) == set(across("down")) == {"left", "right"}


def test_split_of_combinations() -> None:
    everything = set(product(range(10), COLOURS, (*DIRECTIONS, "circles")))
    held_out = {combination for combination in everything if is_held_out(*combination)}
    assert len(held_out) == 40 and len(everything) == 400
    # Every attribute value is in both parts, so only its combinations are new.
    for part in (held_out, everything - held_out):
        assert [set(values) for values in zip(*part, strict=True)] == [
            set(range(10)), set(COLOURS), {*DIRECTIONS, "circles"}
        ]  # fmt: skip


def test_training_scenes_are_never_held_out() -> None:
    rng = np.random.default_rng(1)
    assert not any(mover.held_out for _ in range(500) for mover in sample_scene(rng).movers)
    scenes = held_out_scenes(40, seed=0)
    assert all(mover.held_out for scene in scenes for mover in scene.movers)
    assert [sum(scene.movers[0].digit == d for scene in scenes) for d in range(10)] == [4] * 10
    assert scenes == held_out_scenes(40, seed=0)
    assert scenes != held_out_scenes(40, seed=1)


def test_scenes_use_the_whole_grammar() -> None:
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng, held_out=None) for _ in range(1000)]
    movers = [mover for scene in scenes for mover in scene.movers]
    assert {mover.motion for mover in movers} == set(MOTIONS)
    assert {mover.turn for mover in movers} == {*DIRECTIONS, None}
    assert {scene.ground for scene in scenes} == set(GROUNDS)
    assert abs(sum(len(scene.movers) == 2 for scene in scenes) / 1000 - PAIR_FRACTION) < 0.05
    assert all(tell_apart(*(m.colour for m in scene.movers)) for scene in scenes if len(scene.movers) == 2)
