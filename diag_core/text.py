"""Prompts to context: umT5 as Wan uses it, a cache of embeddings on disk, and the demo's encoder.

Encoders share `.encode(prompts) -> [B,L,D]`, float32 on the CPU, zero past each prompt's length; callers never ask
which one they hold. Legend: B prompts, L text length (Wan: 512), D text width (Wan: 4096), N tokens of one prompt.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .demo_text import DemoTextEncoder
from .safetensors_file import FormatError, SafetensorsFile, TensorSpec, write_safetensors
from .state_dict import CheckpointError
from .umt5 import embedded_tokenizer, find_weights, load_umt5, open_umt5

__all__ = ["CachedEncoder", "DemoTextEncoder", "EmbeddingCache", "TextEncoder", "UMT5Encoder", "clean_prompt"]

TEXT_LEN = 512
_END = "</s>"
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")  # the first is preferred: it is complete in itself
_TOKENIZER_FOLDERS = ("tokenizer", "google/umt5-xxl", ".")
_QUOTES = str.maketrans(
    {**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f", '"')}
)
_WIDE_OR_LIGATURE = re.compile("[\u3000\uff01-\uffef\ufb00-\ufb06]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufff9-\ufffc]")
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16

Tokenize = Callable[[str], list[int]]  # without the end token


class TextEncoder(Protocol):
    def encode(self, prompts: list[str]) -> Tensor: ...


def clean_prompt(text: str) -> str:
    """A prompt as Wan's tokenizer sees it: entities resolved, characters normalised, white space collapsed.

    Wan calls the library ftfy for the characters. What of it changes ordinary prompts is done here (straight quotes,
    full-width forms, ligatures, control characters, NFC), so that embeddings do not depend on what is installed; its
    repair of text decoded with a wrong encoding is left out.
    """
    text = html.unescape(html.unescape(text)).translate(_QUOTES)
    text = _WIDE_OR_LIGATURE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    return re.sub(r"\s+", " ", text).strip()


class UMT5Encoder:
    """umT5-XXL's encoder. Each prompt is encoded alone, so that its embedding does not depend on its company."""

    def __init__(self, model: Any, tokenize: Tokenize, end_token: int, text_len: int = TEXT_LEN) -> None:
        self.model, self.tokenize, self.end_token, self.text_len = model, tokenize, end_token, text_len

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        text_len: int = TEXT_LEN,
    ) -> UMT5Encoder:
        """Load the encoder of a diffusers pipeline folder, ComfyUI's safetensors file, or Wan's .pth or its folder.

        Args:
            tokenizer: tokenizer.json, spiece.model, or a folder with one of them; None looks inside the weights, then
                beside them (`tokenizer/`, `google/umt5-xxl/`).

        Raises:
            CheckpointError: (a ValueError) what is missing or wrong, and what to do.
        """
        weights = open_umt5(path)
        inside = embedded_tokenizer(weights) if tokenizer is None else None
        if inside is not None:
            tokenize, end = _sentencepiece(inside, str(weights.path))
        else:
            tokenize, end = _open_tokenizer(find_tokenizer(path) if tokenizer is None else Path(tokenizer))
        try:
            model = load_umt5(weights, dtype=dtype, device=torch.device(device))
        except CheckpointError as error:
            raise CheckpointError(f"{weights.path}: {error}") from error
        return cls(model, tokenize, end, text_len)

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Tensor:
        """[B,L,D], float32 on the CPU, zero past each prompt's tokens; a longer prompt is cut, with a warning."""
        rows = [self._encode_one(prompt) for prompt in prompts]
        return pad_rows(rows, self.text_len, self.model.config.d_model)

    def _encode_one(self, prompt: str) -> Tensor:
        tokens = self.tokenize(clean_prompt(prompt))
        if len(tokens) >= self.text_len:
            warnings.warn(
                f"the prompt has {len(tokens)} tokens and is cut to {self.text_len - 1}: {prompt[:60]!r}..",
                stacklevel=3,
            )
        tokens = [*tokens[: self.text_len - 1], self.end_token]
        ids = torch.tensor([tokens], device=self.model.device)
        states = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states[0].float().cpu()


def pad_rows(rows: Sequence[Tensor], text_len: int, width: int) -> Tensor:
    """Embeddings [N,D] of single prompts -> [B,text_len,D], zero past each."""
    padded = torch.zeros(len(rows), text_len, width)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def find_tokenizer(path: str | Path) -> Path:
    """The tokenizer beside a umT5 encoder; raises CheckpointError where there is none."""
    weights = find_weights(Path(path))
    for folder in (weights.parent, weights):
        for name in _TOKENIZER_FOLDERS:
            for file in _TOKENIZER_FILES:
                if (folder / name / file).is_file():
                    return folder / name / file
    raise CheckpointError(
        f"{path}: there is no tokenizer beside these weights. Put umT5's tokenizer.json or spiece.model into a folder "
        "`tokenizer` beside them, or give its path"
    )


def _open_tokenizer(path: Path) -> tuple[Tokenize, int]:
    if path.is_dir():
        path = next((path / name for name in _TOKENIZER_FILES if (path / name).is_file()), path)
    try:
        if path.suffix != ".json":
            return _sentencepiece(path.read_bytes(), str(path))
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
    except ImportError as error:
        raise CheckpointError(f"{path} needs the library tokenizers: pip install tokenizers") from error
    except Exception as error:  # the library raises plain Exception
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: it is no tokenizer that can be read ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    end = tokenizer.token_to_id(_END)
    if end is None:
        raise CheckpointError(f"{path}: it has no end token {_END}, so it is not umT5's tokenizer")
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, end


def _sentencepiece(model: bytes, where: str) -> tuple[Tokenize, int]:
    try:
        import sentencepiece
    except ImportError as error:
        raise CheckpointError(f"the tokenizer in {where} needs the library sentencepiece: pip install it") from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: its sentencepiece model cannot be read ({error})") from error
    return lambda text: list(processor.encode(text)), processor.eos_id()


def encoder_identity(path: str | Path, *, dtype: torch.dtype = torch.bfloat16, text_len: int = TEXT_LEN) -> str:
    """A name for what an encoder computes, without loading it: files by size and samples of their content.

    Raises:
        CheckpointError: there are no such files.
    """
    weights = find_weights(Path(path))
    digest = hashlib.sha256()
    try:
        files = sorted(weights.iterdir()) if weights.is_dir() else [weights]
        for file in files:
            if weights.is_dir() and file.suffix != ".safetensors":
                continue
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with open(file, "rb") as stream:
                for sample in range(_SAMPLES):
                    stream.seek(sample * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                    digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{weights}: it cannot be read ({error.strerror or error})") from error
    return f"umt5 {digest.hexdigest()[:32]} {dtype} {text_len}"


class EmbeddingCache:
    """Embeddings on disk, one safetensors file a prompt, unpadded; the least recently used go when it grows too large.

    Files are written whole or not at all, and a damaged one counts as absent.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = 2 << 30) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes

    def get(self, encoder: str, prompt: str) -> Tensor | None:
        """[N,D] float32, or None."""
        path = self._path(encoder, prompt)
        try:
            file = SafetensorsFile(path)
            embedding = file.read("embedding")
        except (OSError, FormatError, KeyError):
            return None
        if file.metadata != {**_describe(encoder, prompt, embedding), "format": "pt"}:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return embedding.float()

    def put(self, encoder: str, prompt: str, embedding_ND: Tensor) -> None:
        """Store an embedding, in bf16 where that loses nothing."""
        exact = torch.equal(embedding_ND.bfloat16().float(), embedding_ND.float())
        stored = embedding_ND.to("cpu", torch.bfloat16 if exact else torch.float32).contiguous()
        spec = TensorSpec(tuple(stored.shape), stored.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, description = self._path(encoder, prompt), _describe(encoder, prompt, stored)
        write_safetensors(path, {"embedding": spec}, lambda _: stored, description)
        self._shrink()

    def _path(self, encoder: str, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(_key(encoder, prompt).encode()).hexdigest()}.safetensors"

    def _shrink(self) -> None:
        if self.max_bytes is None:
            return
        with contextlib.suppress(OSError):  # another process may remove files at the same time
            found = [(path.stat(), path) for path in self.folder.glob("*.safetensors")]
            excess = sum(stat.st_size for stat, _ in found) - self.max_bytes
            for stat, path in sorted(found, key=lambda item: item[0].st_mtime_ns)[:-1]:
                if excess <= 0:
                    return
                path.unlink()
                excess -= stat.st_size


class CachedEncoder:
    """An encoder that is loaded only when a prompt is not in the cache.

    Args:
        identity: what the encoder computes (`encoder_identity`): embeddings of another are not taken.
        load: makes the encoder.
    """

    def __init__(
        self, cache: EmbeddingCache, identity: str, load: Callable[[], TextEncoder], *, text_len: int = TEXT_LEN
    ) -> None:
        self.cache, self.identity, self.load, self.text_len = cache, identity, load, text_len
        self._encoder: TextEncoder | None = None

    def encode(self, prompts: list[str]) -> Tensor:
        """[B,L,D], as the encoder itself gives it."""
        rows = {prompt: self.cache.get(self.identity, prompt) for prompt in prompts}
        for prompt, row in rows.items():
            if row is None:
                self._encoder = self._encoder or self.load()
                rows[prompt] = row = _unpadded(self._encoder.encode([prompt])[0])
                self.cache.put(self.identity, prompt, row)
        found = [row for prompt in prompts if (row := rows[prompt]) is not None]
        return pad_rows(found, self.text_len, found[0].shape[1] if found else 0)

    def release(self) -> None:
        """Drop the encoder, and the memory it holds; the next unknown prompt loads it again."""
        self._encoder = None


def _unpadded(row_LD: Tensor) -> Tensor:
    used = row_LD.ne(0).any(dim=1).nonzero()
    return row_LD[: int(used[-1]) + 1] if len(used) else row_LD[:0]


def _key(encoder: str, prompt: str) -> str:
    return json.dumps([encoder, prompt])


def _describe(encoder: str, prompt: str, embedding: Tensor) -> dict[str, str]:
    """By which an entry is known to be the right one, and whole."""
    digest = hashlib.sha256(f"{embedding.dtype} {list(embedding.shape)} ".encode())
    digest.update(embedding.reshape(-1).view(torch.uint8).numpy().data)
    return {"key": _key(encoder, prompt), "sha256": digest.hexdigest()}
