"""Where videos go: names that say what is in them, and nothing overwritten unless asked."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..mp4_writer import part_path
from ..sinks import numbered_pngs
from .request import VideoRequest

FOLDER = Path("outputs")
LAYOUTS = ("vbench",)
VBENCH_COUNT = 5  # videos of each prompt that VBench looks for
_SLUG_LENGTH = 48
_NAME_BYTES = 255  # of a file, on the usual file systems


def output_paths(
    out: str | None, requests: Sequence[VideoRequest], *, overwrite: bool, png: bool = False
) -> list[Path]:
    """A path for each video, all different.

    Args:
        out: a name ending in .mp4, numbered when there are several videos; or a folder (there already, or ending in a
            slash) in which they are named after prompt and seed; None is the folder `outputs`.
        png: each is a folder of pictures, whose name has no ending. A folder of numbered pictures that is there already
            can be overwritten itself.

    Raises:
        ValueError: another ending.
        OSError: a folder that cannot be written to, or overwritten. Nothing is created here.
    """
    ending = "" if png else ".mp4"
    again = overwrite and png and len(requests) == 1 and out is not None and _is_png_sequence(Path(out))
    if out is None or out.endswith(("/", os.sep)) or (Path(out).is_dir() and not again):
        folder = FOLDER if out is None else Path(out)
        wanted = [folder / f"{_slug(request.prompt_text())}-{request.seed}{ending}" for request in requests]
    else:
        path = Path(out)
        if path.suffix.lower() != ending:
            what = "the folder of pictures a name without an ending" if png else "the video a name that ends in .mp4"
            raise ValueError(f"--out {out}: give {what}, or a folder (ending in /)")
        digits = len(str(len(requests)))
        wanted = [path] if len(requests) == 1 else [
            path.with_name(f"{path.stem}-{number:0{digits}d}{path.suffix}") for number in range(1, len(requests) + 1)
        ]  # fmt: skip
    check_writable(wanted[0].parent)
    paths: list[Path] = []
    for path in wanted:
        paths.append(_free(path, paths, overwrite))
        if png and paths[-1].exists():  # to be overwritten
            numbered_pngs(paths[-1])
    return paths


def vbench_paths(out: str | None, requests: Sequence[VideoRequest], count: int) -> list[Path]:
    """`{prompt}-{index}.mp4` for each video, as VBench's scripts look for them; index counts a prompt's videos from 0.

    Args:
        out: the folder; None is `outputs`.
        count: videos of each prompt, which follow each other in `requests`.

    Raises:
        ValueError: a file instead of a folder, or a prompt that no file can be named after, or is there twice.
        OSError: a folder that cannot be written to. Nothing is created here.
    """
    folder = FOLDER if out is None else Path(out)
    if folder.suffix.lower() == ".mp4" or folder.is_file():
        raise ValueError(f"--out {out}: with --layout vbench, give a folder")
    check_writable(folder)
    names = [f"{request.prompt_text()}-{number % count}.mp4" for number, request in enumerate(requests)]
    for name in names:
        if "/" in name or "\0" in name or (os.sep != "/" and re.search(r'[<>:"\\|?*]', name)):
            raise ValueError(f"--layout vbench: no file can be named {name!r}; leave out this prompt")
        if len(part_path(Path(name)).name.encode()) > _NAME_BYTES:
            raise ValueError(f"--layout vbench: the prompt {name[:40]!r}.. is too long for the name of a file")
    kept = [os.path.normcase(name) for name in names]  # Windows tells no capitals from small letters
    if len(set(kept)) < len(kept):
        twice = next(name for name, key in zip(names, kept, strict=True) if kept.count(key) > 1)
        raise ValueError(f"--layout vbench: {twice!r} would be made twice; give each prompt once")
    return [folder / name for name in names]


def _free(path: Path, taken: Sequence[Path], overwrite: bool) -> Path:
    """`path`, or the first of `path`-2, -3, .. that nothing bears, not even an unfinished video."""
    candidate, number = path, 1
    while candidate in taken or (not overwrite and (candidate.exists() or part_path(candidate).exists())):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _is_png_sequence(folder: Path) -> bool:
    try:
        return bool(numbered_pngs(folder))
    except OSError:
        return False


def check_writable(folder: Path) -> None:
    """Raises OSError unless `folder` can be written to, or made."""
    there = folder.absolute()
    while not there.exists():
        if there == there.parent:
            raise FileNotFoundError(f"{folder}: {there} is not there")  # a drive or share, on Windows
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: {there} is a file, not a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()  # what os.access says on Windows counts for files alone
    except OSError as error:
        raise PermissionError(f"{folder}: {there} cannot be written to ({error.strerror})") from error


def _slug(text: str) -> str:
    """Letters, digits and hyphens, at most 48 of them."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")
    return words[:_SLUG_LENGTH].strip("-_") or "video"
