"""Pairs of scenes for prompt switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..data.prompts import Scene, across, random_prompt, sample_scene

Pair = tuple[Scene, Scene]
"""before and after the switch"""


def switch_pairs(count: int, *, seed: int, motions: Sequence[str] = ("stops", "bounces")) -> list[Pair]:
    """`count` pairs of scenes of held-out combinations, one digit each, the same ground; digit and colour differ.

    The new direction is across the old one: along one line, a digit that bounces would sooner or later move the new
    way without being told. Every new digit comes equally often to within one."""
    rng = np.random.default_rng([seed, 0x5317C4])

    def scene() -> Scene:
        while True:
            drawn = sample_scene(rng, held_out=True, pairs=0)
            if drawn.movers[0].motion in motions:
                return drawn

    pairs: list[Pair] = []
    while len(pairs) < count:
        before, after = scene(), scene()
        old, new = before.movers[0], after.movers[0]
        assert old.direction is not None
        if (
            new.digit == len(pairs) % 10
            and new.digit != old.digit
            and new.colour != old.colour
            and new.direction in across(old.direction)
        ):
            pairs.append((before, dataclasses.replace(after, ground=before.ground)))
    return pairs


def prompts_of(pairs: Sequence[Pair], *, seed: int) -> list[tuple[str, str]]:
    """Both scenes of each pair in phrasings that the seed draws."""
    drawn = []
    for number, (before, after) in enumerate(pairs):
        rng = np.random.default_rng([seed, number])
        drawn.append((random_prompt(before, rng), random_prompt(after, rng)))
    return drawn
