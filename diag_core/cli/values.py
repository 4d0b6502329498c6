"""Types of command-line values; a wrong one is refused with the value and what it should look like."""

from __future__ import annotations

import argparse
import math
import re

DTYPES = ("float32", "bfloat16", "float16")


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT in pixels, such as 832x480, got {text!r}")
    return int(match[1]), int(match[2])


def window(text: str) -> int | str:
    """A number of latent frames, or "all"."""
    return text if text == "all" else _whole(text, 1, 'it must be a number of latent frames, or "all"')


def positive(text: str) -> int:
    return _whole(text, 1, "it must be a whole number from 1 on")


def count(text: str) -> int:
    return _whole(text, 0, "it must be a whole number from 0 on")


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it must be a number, got {text!r}")
    return value


def _whole(text: str, least: int, rule: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
    return int(text)
