"""The prompt grammar of moving digits: a `Scene` to text and back.

A prompt names one digit or two, joined by ";". Of each it says the figure (or word), the colour and the motion: a
direction and a speed, and then that it stops or bounces at the edge or turns a corner half-way; or just that it
circles. It names the ground's colour too; where it names none, the ground is black. Attribute words never overlap
between attributes, so `parse` finds them in any order and any phrasing, except that the way a digit turns to follows
the word "turns".

Combinations (digit, colour, direction or circling) are split once and for all by a hash: 40 of the 400 are held out
of training, so that a score on them measures whether attributes combine and not whether a prompt was seen.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

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
DEFAULT_GROUND = "black"
# Unit displacement (x to the right, y downwards).
DIRECTIONS: dict[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = ("slowly", "fast")
MOTIONS = ("stops", "bounces", "turns", "circles")

HELD_OUT_FRACTION = 0.15
PAIR_FRACTION = 0.2
"""share of scenes with two digits"""
# Two digits are told apart by colour; orange and red, or blue and purple, lie closer than this in 8-bit RGB.
_LEAST_COLOUR_DISTANCE = 150

# A clause for each digit of a scene, moving and circling, and an end that names the ground.
CLAUSES = (
    ("a {colour} {digit} moves {direction} {speed} and {end}", "a {colour} {digit} circles"),
    ("a {colour} {digit} moves {direction}, {speed}, and {end}", "a {colour} {digit} circles"),
    ("the {colour} {digit} goes {direction} {speed} and {end}", "the {colour} {digit} circles"),
)
ENDINGS = (", on a {ground} ground", "; the ground is {ground}", ", over {ground}")
# Further phrasings of scenes with one digit.
SINGLE = (
    (
        "a {colour} {digit} moves {speed} to the {direction} and {end} {where}; the ground is {ground}",
        "a {colour} {digit} circles round and round; the ground is {ground}",
    ),
    (
        "on a {ground} ground, a {colour} {digit} {speed} moves {direction} and {end}",
        "on a {ground} ground, a {colour} {digit} circles",
    ),
    (
        "{ground} ground: the digit {digit} in {colour} goes {direction}, {speed}, and {end}",
        "{ground} ground: the digit {digit} in {colour} circles",
    ),
    (
        "the {colour} digit {digit} goes {speed} {direction}, then {end}, over {ground}",
        "the {colour} digit {digit} goes in circles over {ground}",
    ),
    ("{colour} {digit}, {direction}, {speed}, {end}, {ground}", "{colour} {digit}, circles, {ground}"),
)

_TOKEN = re.compile(r"\w+|[^\w\s]")
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Mover:
    """One digit of a scene: what it is and how it moves."""

    digit: int
    """0 to 9"""
    colour: str
    """a key of COLOURS"""
    motion: str
    """one of MOTIONS"""
    direction: str | None = None
    """a key of DIRECTIONS: the way it moves first; None when it circles"""
    speed: str | None = None
    """one of SPEEDS; None when it circles"""
    turn: str | None = None
    """a key of DIRECTIONS across `direction`: the way it turns to, when it turns"""

    def __post_init__(self) -> None:
        _check("digit", self.digit, range(10))
        _check("colour", self.colour, COLOURS)
        _check("motion", self.motion, MOTIONS)
        if self.motion == "circles":
            for name in ("direction", "speed", "turn"):
                _check(name, getattr(self, name), (None,))
            return
        _check("direction", self.direction, DIRECTIONS)
        _check("speed", self.speed, SPEEDS)
        assert self.direction is not None
        _check("turn", self.turn, across(self.direction) if self.motion == "turns" else (None,))

    @property
    def held_out(self) -> bool:
        """Whether training never shows this digit in this colour moving this way."""
        return is_held_out(self.digit, self.colour, self.direction or self.motion)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a prompt says: the attributes that a video is scored against."""

    movers: tuple[Mover, ...]
    """one or two, in the order in which the prompt names them; a later one passes in front"""
    ground: str = DEFAULT_GROUND
    """a key of GROUNDS"""

    def __post_init__(self) -> None:
        _check("ground", self.ground, GROUNDS)
        if len(self.movers) not in (1, 2):
            raise ValueError(f"a scene has one digit or two, got {len(self.movers)}")
        if len(self.movers) == 2 and not tell_apart(*(mover.colour for mover in self.movers)):
            colours = " and ".join(mover.colour for mover in self.movers)
            raise ValueError(f"two digits in {colours} cannot be told apart: give them colours that differ more")

    @property
    def held_out(self) -> bool:
        """Whether training never shows one of its digits so coloured and moving."""
        return any(mover.held_out for mover in self.movers)


def across(direction: str) -> tuple[str, ...]:
    """The two directions at right angles to one."""
    x, y = DIRECTIONS[direction]
    return tuple(other for other, step in DIRECTIONS.items() if x * step[0] + y * step[1] == 0)


def tell_apart(colour: str, other: str) -> bool:
    """Whether digits in these two colours can be told apart by colour."""
    return bool(np.linalg.norm(np.subtract(COLOURS[colour], COLOURS[other])) >= _LEAST_COLOUR_DISTANCE)


def is_held_out(digit: int, colour: str, way: str) -> bool:
    """The split of combinations: a hash, so it is the same on every machine and does not move when attributes are
    added. `way` is a direction or "circles"."""
    key = f"moving digits|{digit}|{colour}|{way}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") < HELD_OUT_FRACTION * 2**64


def sample_scene(rng: np.random.Generator, *, held_out: bool | None = False, pairs: float = PAIR_FRACTION) -> Scene:
    """Draw a scene, with two digits in a share `pairs` of the cases.

    Every digit of it is one of the training combinations (False), of the held-out ones (True) or of all (None)."""
    pair = rng.random() < pairs
    movers = [_sample_mover(rng, held_out)]
    while pair and len(movers) < 2:
        other = _sample_mover(rng, held_out)
        if tell_apart(movers[0].colour, other.colour):
            movers.append(other)
    return Scene(movers=tuple(movers), ground=_pick(rng, tuple(GROUNDS)))


def held_out_scenes(count: int, *, seed: int) -> list[Scene]:
    """`count` scenes of held-out combinations, every (first) digit equally often to within one, for scoring."""
    rng = np.random.default_rng([seed, 0x5C0E])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, held_out=True)
        if scene.movers[0].digit == len(scenes) % 10:
            scenes.append(scene)
    return scenes


def phrasings(scene: Scene) -> tuple[str, ...]:
    """All ways to say the scene, with digits as figures. The first is the plainest."""
    return tuple(_fill(scene, template, False) for template in _templates(scene))


def to_prompt(scene: Scene, *, phrasing: int = 0, digit_as_word: bool = False) -> str:
    """The scene in words, in phrasing `phrasing` of `phrasings`."""
    return _fill(scene, _templates(scene)[phrasing], digit_as_word)


def random_prompt(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in a random phrasing, digits as figures or words."""
    return to_prompt(scene, phrasing=int(rng.integers(len(_templates(scene)))), digit_as_word=bool(rng.integers(2)))


def parse(prompt: str) -> Scene:
    """The scene that a prompt of this grammar describes.

    Raises ValueError when an attribute is missing or named twice with different values."""
    tokens = _TOKEN.findall(prompt.lower())
    grounds = _named(tokens, {word: word for word in GROUNDS})
    if len(grounds) > 1:
        raise ValueError(f"prompt {prompt!r} names more than one ground ({', '.join(grounds)}); name one")
    clauses = [list(part) for semicolon, part in itertools.groupby(tokens, ";".__eq__) if not semicolon]
    described = [part for part in clauses if any(token in words for words in _WORDS.values() for token in part)]
    if len(described) > 2:
        raise ValueError(f"prompt {prompt!r} describes {len(described)} digits; describe one or two")
    movers = tuple(_parse_mover(prompt, clause) for clause in described or [tokens])
    return Scene(movers=movers, ground=grounds[0] if grounds else DEFAULT_GROUND)


_WORDS: dict[str, Mapping[str, int | str]] = {
    "digit": {word: value for value, word in enumerate(DIGIT_WORDS)} | {str(value): value for value in range(10)},
    "colour": {word: word for word in COLOURS},
    "motion": {word: word for word in MOTIONS},
    "direction": {word: word for word in DIRECTIONS} | {f"{word}wards": word for word in ("up", "down")},
    "speed": {word: word for word in SPEEDS},
}


def _parse_mover(prompt: str, tokens: list[str]) -> Mover:
    found: dict[str, int | str] = {}
    directions = _WORDS["direction"]
    for token, following in itertools.pairwise(tokens):
        if token == "turns" and following in directions:
            found["turn"] = directions[following]
            at = tokens.index("turns")
            tokens = tokens[: at + 1] + tokens[at + 2 :]
            break
    for name, words in _WORDS.items():
        if found.get("motion") == "circles" and name in ("direction", "speed"):
            continue
        values = _named(tokens, words)
        if len(values) != 1:
            what = "no" if not values else f"more than one ({', '.join(map(str, values))})"
            raise ValueError(f"prompt {prompt!r} names {what} {name}; name one of {', '.join(map(str, words))}")
        found[name] = values[0]
    if found["motion"] == "turns" and "turn" not in found:
        raise ValueError(f"prompt {prompt!r} does not say which way it turns: write, say, 'turns up'")
    return Mover(**found)  # type: ignore[arg-type]


def _named(tokens: list[str], words: Mapping[str, _Value]) -> list[_Value]:
    return sorted({words[token] for token in tokens if token in words}, key=str)


def _sample_mover(rng: np.random.Generator, held_out: bool | None) -> Mover:
    while True:
        motion = _pick(rng, MOTIONS)
        digit, colour = int(rng.integers(10)), _pick(rng, tuple(COLOURS))
        if motion == "circles":
            mover = Mover(digit=digit, colour=colour, motion=motion)
        else:
            direction = _pick(rng, tuple(DIRECTIONS))
            turn = _pick(rng, across(direction)) if motion == "turns" else None
            mover = Mover(
                digit=digit, colour=colour, motion=motion, direction=direction, speed=_pick(rng, SPEEDS), turn=turn
            )
        if held_out is None or mover.held_out == held_out:
            return mover


_Template = tuple[tuple[str, str], str]
"""a clause (moving, circling) for each digit, and what follows"""


def _templates(scene: Scene) -> list[_Template]:
    endings = ENDINGS + (("",) if scene.ground == DEFAULT_GROUND else ())
    joined: list[_Template] = [(clause, ending) for clause in CLAUSES for ending in endings]
    return joined + ([(clause, "") for clause in SINGLE] if len(scene.movers) == 1 else [])


def _fill(scene: Scene, template: _Template, digit_as_word: bool) -> str:
    (moving, circling), ending = template
    clauses = []
    for mover in scene.movers:
        clause = (circling if mover.motion == "circles" else moving).format(
            digit=DIGIT_WORDS[mover.digit] if digit_as_word else mover.digit,
            colour=mover.colour,
            direction=mover.direction,
            speed=mover.speed,
            end=f"turns {mover.turn}" if mover.motion == "turns" else mover.motion,
            where="half-way" if mover.motion == "turns" else "at the edge",
            ground=scene.ground,
        )
        clauses.append(clause.replace("to the up", "upwards").replace("to the down", "downwards"))
    return "; ".join(clauses) + ending.format(ground=scene.ground)


def _check(name: str, value: object, allowed: object) -> None:
    if value not in allowed:  # type: ignore[operator]
        raise ValueError(f"scene has {name}={value!r}; use one of {', '.join(map(str, allowed))}")  # type: ignore[call-overload]


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]
