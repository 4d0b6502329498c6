"""Prompt embeddings on disk, so that the 11 GB text encoder is not in memory while a model is trained.

    index.json              what the folder was begun with, and its shards
    prompts_00000.safetensors, ...
    negative.safetensors    the negative prompt alone

A shard has for its i-th prompt a tensor `i`, bfloat16 [N,D], N its own tokens; its metadata has the prompts and the
checksums (JSON lists). Shards are written whole or not at all, so embedding goes on where it was stopped.

Legend: B prompts, L text length, N tokens of one prompt, D text width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diag_core.safetensors_file import FormatError, SafetensorsFile
from diag_core.text import TextEncoder

from ..io import checksum, remove_leftovers, save_json, save_tensors

log = logging.getLogger(__name__)

INDEX, NEGATIVE = "index.json", "negative.safetensors"
VERSION = 1


class EmbeddingError(ValueError):
    """Embeddings that cannot be used: names the folder or file, what is wrong, and what to do."""


def shard_name(number: int) -> str:
    return f"prompts_{number:05d}.safetensors"


def make_embeddings(
    folder: Path,
    prompts: Sequence[str],
    negative: str,
    *,
    encoder: str,
    load: Callable[[], TextEncoder],
    text_len: int,
    shard_size: int = 512,
) -> None:
    """Embeds what is not there yet.

    Args:
        encoder: what computes the embeddings (`diag_core.text.encoder_identity`).
        load: makes the encoder; called only where something is missing.
        shard_size: prompts a file.

    Raises:
        EmbeddingError: the folder was begun with other prompts or another encoder.
        OSError: a full disk, say; shards that are there are whole.
    """
    groups = [list(prompts[start : start + shard_size]) for start in range(0, len(prompts), shard_size)]
    begun = {
        "version": VERSION, "encoder": encoder, "text_len": text_len, "prompts": len(prompts), "shard_size": shard_size,
        "sha256": hashlib.sha256("\n".join([*prompts, "", negative]).encode()).hexdigest(),
    }  # fmt: skip
    files = {**{shard_name(number): group for number, group in enumerate(groups)}, NEGATIVE: [negative]}
    _check_begun(folder, begun)
    missing = [name for name in files if not _is_whole(folder / name, files[name])]
    made = load() if missing else None  # before anything is written
    if not (folder / INDEX).exists():
        save_json(folder / INDEX, {**begun, "complete": False})
    remove_leftovers(folder)
    began, done = time.monotonic(), 0
    for name in missing:
        assert made is not None
        rows = [_trimmed(made.encode([prompt])[0]) for prompt in files[name]]
        _write(folder / name, files[name], rows)
        done += len(rows)
        if done == len(rows):
            _check_space(folder, (folder / name).stat().st_size * (len(missing) - 1))
        left = sum(len(files[other]) for other in missing) - done
        minutes = left * (time.monotonic() - began) / done / 60
        log.info("embed: %s, %d prompts to go, %.0f min left", name, left, minutes)
    widths = {SafetensorsFile(folder / name).specs["0"].shape[1] for name in files}
    shards = {name: {"prompts": len(group), "bytes": (folder / name).stat().st_size} for name, group in files.items()}
    save_json(folder / INDEX, {**begun, "text_dim": widths.pop(), "complete": True, "shards": shards})


def _check_begun(folder: Path, begun: Mapping[str, Any]) -> None:
    if not (folder / INDEX).exists():
        return
    before = _index(folder)
    told = {"encoder": "another text encoder", "text_len": "another text length", "shard_size": "another shard size"}
    for name, value in begun.items():
        if before.get(name) != value:
            raise EmbeddingError(
                f"{folder} was begun with {told.get(name, 'other prompts')}. Give those again, or choose another folder"
            )


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EmbeddingError(
            f"{folder}: there are no embeddings ({INDEX} is missing). Make them with `python -m training embed`"
        ) from error
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path}: it cannot be read ({error}). Delete it and run embed again") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise EmbeddingError(f"{path}: it is no index of embeddings that this version knows. Run embed again")
    return content


def _trimmed(row_LD: Tensor) -> Tensor:
    """Without the zeros past the prompt's own tokens."""
    used = row_LD.ne(0).any(dim=1).nonzero()
    return row_LD[: int(used[-1]) + 1] if len(used) else row_LD[:1]


def _write(path: Path, prompts: list[str], rows: Sequence[Tensor]) -> None:
    tensors = {str(i): row.to("cpu", torch.bfloat16).contiguous() for i, row in enumerate(rows)}
    sums = [checksum(tensor) for tensor in tensors.values()]
    save_tensors(path, tensors, {"kind": "embeddings", "prompts": json.dumps(prompts), "checksums": sums})


def _is_whole(path: Path, prompts: list[str]) -> bool:
    if not path.exists():
        return False
    try:
        return _open_shard(path)[1] == prompts
    except EmbeddingError:
        return False  # it is made again


def _open_shard(path: Path) -> tuple[SafetensorsFile, list[str], list[int]]:
    again = "Delete it and run embed again, which makes this one anew"
    try:
        file = SafetensorsFile(path)
        prompts, sums = json.loads(file.metadata["prompts"]), json.loads(file.metadata["checksums"])
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: this shard of the embeddings is missing. Run embed again") from error
    except FormatError as error:
        raise EmbeddingError(f"{path}: {error}. {again}") from error
    except (OSError, ValueError, KeyError) as error:
        raise EmbeddingError(f"{path}: it is no shard of embeddings ({error}). {again}") from error
    if set(file.specs) != {str(i) for i in range(len(prompts))} or len(sums) != len(prompts):
        raise EmbeddingError(f"{path}: it does not hold its {len(prompts)} prompts. {again}")
    return file, prompts, sums


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EmbeddingError(
            f"{folder}: the other shards need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free. Free some "
            "space and run the same command again, or embed fewer prompts (--limit)"
        )


class Embeddings:
    """Embeddings of a folder, read a prompt at a time.

    Args:
        text_len: tokens that prompts are padded to, the model's own.

    Raises:
        EmbeddingError: there are none, they are not finished, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path, text_len: int | None = None) -> None:
        index = _index(folder)
        if not index.get("complete"):
            raise EmbeddingError(f"{folder}: the embeddings are not finished. Run the same embed command again")
        self.folder = folder
        self.text_dim, self.longest = int(index["text_dim"]), int(index["text_len"])
        self.text_len = text_len or self.longest
        self.bytes = sum(int(shard["bytes"]) for shard in index["shards"].values())
        self.digest = str(index["sha256"])
        self.encoder = str(index["encoder"])
        self._places: dict[str, tuple[SafetensorsFile, str, int]] = {}
        self.prompts: list[str] = []
        for name in index["shards"]:
            file, prompts, sums = _open_shard(folder / name)
            places = {prompt: (file, str(i), sums[i]) for i, prompt in enumerate(prompts)}
            if name == NEGATIVE:
                self.negative = prompts[0]
                self._places = {**places, **self._places}
            else:
                self.prompts += prompts
                self._places.update(places)

    def check(self, part: int, parts: int) -> None:
        """Reads every `parts`-th embedding, from number `part`, so that a damaged one is known before training.

        Raises:
            EmbeddingError: one that is damaged.
        """
        for prompt in [*self.prompts, self.negative][part::parts]:
            self._read(prompt)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._places

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """Prompts to train on, with repetition."""
        return [self.prompts[i] for i in rng.integers(len(self.prompts), size=count)]

    def encode(self, prompts: list[str]) -> Tensor:
        """[B,L,D] float32, zero past each prompt's own tokens, as the encoder itself gives it.

        Raises:
            EmbeddingError: a prompt that was not embedded, or a damaged embedding.
        """
        padded = torch.zeros(len(prompts), self.text_len, self.text_dim)
        for place, prompt in zip(padded, prompts, strict=True):
            row = self._read(prompt)
            place[: len(row)] = row[: self.text_len]
        return padded

    def _read(self, prompt: str) -> Tensor:
        if prompt not in self._places:
            raise EmbeddingError(
                f"{self.folder} has no embedding of {prompt[:60]!r}. Add it to the prompts (or give it to embed as "
                "--negative) and embed them into a new folder"
            )
        file, name, stored = self._places[prompt]
        try:
            row = file.read(name)
            right = checksum(row) == stored
        except (OSError, FormatError):
            right = False
        if not right:
            raise EmbeddingError(
                f"{file.path}: embedding {name} is damaged. Delete the file and run embed again, which makes this one "
                "anew"
            )
        return row
