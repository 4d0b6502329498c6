"""The prompt grammar of moving digits: `Scene` attributes to text and back.

A prompt names a digit (figure or word), its colour, the direction and speed it moves with, what it does at the edge
and the colour of the ground. Attribute words never overlap between attributes, so `parse` finds them in any order
and any phrasing.

Combinations (digit, colour, direction) are split once and for all by a hash: 37 of the 320 are held out of training,
so that a score on them measures whether attributes combine and not whether a prompt was seen.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# 8-bit RGB. Digits are bright and grounds dark, so that every pair stays readable.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 50, 45),
    "orange": (250, 140, 25),
    "yellow": (250, 225, 60),
    "green": (60, 205, 75),
    "cyan": (50, 220, 230),
    "blue": (60, 105, 255),
    "purple": (180, 70, 235),
    "white": (240, 240, 240),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (8, 8, 10),
    "navy": (10, 16, 62),
    "maroon": (62, 12, 18),
    "forest": (10, 46, 22),
}
# Unit displacement (x to the right, y downwards).
DIRECTIONS: dict[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = ("slowly", "fast")
EDGES = ("stops", "bounces")

HELD_OUT_FRACTION = 0.15

PHRASINGS = (
    "a {colour} {digit} moves {direction} {speed} and {edge}, on a {ground} ground",
    "a {colour} {digit} moves {speed} to the {direction} and {edge} at the edge; the ground is {ground}",
    "on a {ground} ground, a {colour} {digit} {speed} moves {direction} and {edge}",
    "{ground} ground: the digit {digit} in {colour} goes {direction}, {speed}, and {edge}",
    "the {colour} digit {digit} goes {speed} {direction}, then {edge}, over {ground}",
    "{colour} {digit}, {direction}, {speed}, {edge}, {ground}",
)

_TOKEN = re.compile(r"\w+|[^\w\s]")
_DIGIT_OF = {word: value for value, word in enumerate(DIGIT_WORDS)} | {str(value): value for value in range(10)}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a prompt says: the attributes that a video is scored against."""

    digit: int
    """0 to 9"""
    colour: str
    """a key of COLOURS"""
    ground: str
    """a key of GROUNDS"""
    direction: str
    """a key of DIRECTIONS: the way it moves first"""
    speed: str
    """one of SPEEDS"""
    edge: str
    """one of EDGES: what happens when the digit reaches the edge"""

    def __post_init__(self) -> None:
        allowed = (
            ("digit", range(10)),
            ("colour", COLOURS),
            ("ground", GROUNDS),
            ("direction", DIRECTIONS),
            ("speed", SPEEDS),
            ("edge", EDGES),
        )
        for name, values in allowed:
            if getattr(self, name) not in values:
                raise ValueError(f"scene has {name}={getattr(self, name)!r}; use one of {', '.join(map(str, values))}")

    def to_dict(self) -> dict[str, int | str]:
        """Attributes by name, for metadata."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def held_out(self) -> bool:
        """Whether (digit, colour, direction) is one of the combinations that training never shows."""
        return is_held_out(self.digit, self.colour, self.direction)


def is_held_out(digit: int, colour: str, direction: str) -> bool:
    """The split of combinations: a hash, so it is the same on every machine and does not move when attributes are
    added."""
    key = f"moving digits|{digit}|{colour}|{direction}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < HELD_OUT_FRACTION * 2**64


def sample_scene(rng: np.random.Generator, *, held_out: bool | None = False) -> Scene:
    """Draw a scene: uniform over the training combinations (False), the held-out ones (True) or all of them (None)."""
    while True:
        scene = Scene(
            digit=int(rng.integers(10)),
            colour=_pick(rng, tuple(COLOURS)),
            ground=_pick(rng, tuple(GROUNDS)),
            direction=_pick(rng, tuple(DIRECTIONS)),
            speed=_pick(rng, SPEEDS),
            edge=_pick(rng, EDGES),
        )
        if held_out is None or scene.held_out == held_out:
            return scene


def held_out_scenes(count: int, *, seed: int) -> list[Scene]:
    """`count` scenes with held-out combinations, every digit equally often (to within one), for scoring."""
    rng = np.random.default_rng([seed, 0x5C0E])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=True)
        if scene.digit == len(scenes) % 10:
            scenes.append(scene)
    return scenes


def to_prompt(scene: Scene, *, phrasing: int = 0, digit_as_word: bool = False) -> str:
    """The scene in words, in phrasing `phrasing` of PHRASINGS."""
    digit = DIGIT_WORDS[scene.digit] if digit_as_word else str(scene.digit)
    text = PHRASINGS[phrasing].format(**{**scene.to_dict(), "digit": digit})
    return text.replace("to the up", "upwards").replace("to the down", "downwards")


def random_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in a random phrasing, the digit as a figure or a word."""
    return to_prompt(scene, phrasing=int(rng.integers(len(PHRASINGS))), digit_as_word=bool(rng.integers(2)))


_WORDS: dict[str, dict[str, int | str]] = {
    "digit": dict(_DIGIT_OF),
    "colour": {word: word for word in COLOURS},
    "ground": {word: word for word in GROUNDS},
    "direction": {word: word for word in DIRECTIONS} | {f"{word}wards": word for word in ("up", "down")},
    "speed": {word: word for word in SPEEDS},
    "edge": {word: word for word in EDGES},
}


def parse(prompt: str) -> Scene:
    """The scene that a prompt of this grammar describes.

    Raises ValueError when an attribute is missing or named twice with different values."""
    tokens = _TOKEN.findall(prompt.lower())
    found: dict[str, int | str] = {}
    for name, words in _WORDS.items():
        values = sorted({words[token] for token in tokens if token in words}, key=str)
        if len(values) != 1:
            what = "no" if not values else f"more than one ({', '.join(map(str, values))})"
            raise ValueError(f"prompt {prompt!r} names {what} {name}; name one of {', '.join(map(str, words))}")
        found[name] = values[0]
    return Scene(**found)  # type: ignore[arg-type]


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]
