"""The demo's prompt encoder: no weights, no download, the same vectors on every machine.

Each word is a fixed pseudo-random vector with entries of unit variance, drawn from a hash of the word, so words are
nearly orthogonal and any word has a vector. A smaller fixed vector for the position is added, so that word order can
be read. There is no notion of meaning: a model learns what the words of its own prompt grammar stand for.

Shapes: B prompts, L text length, D text width.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch

# A word, or a punctuation mark on its own.
_TOKEN = re.compile(r"\w+|[^\w\s]")
_POSITION_SCALE = 0.3


class DemoTextEncoder:
    """Prompts to context [B,L,D], float32, zero past each prompt's last word.

    The empty prompt, used as the unconditional one, is a single fixed token of its own."""

    def __init__(self, text_len: int = 32, text_dim: int = 4096) -> None:
        if text_len < 1 or text_dim < 1:
            raise ValueError(f"text_len and text_dim must be positive, got {text_len} and {text_dim}")
        self.text_len = text_len
        self.text_dim = text_dim
        self._words: dict[str, torch.Tensor] = {}
        positions = [_seeded_vector(f"position {i}", text_dim) for i in range(text_len)]
        self._position_LD = _POSITION_SCALE * torch.stack(positions)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Context [B,L,D] of the prompts, case and spacing ignored. ValueError for a prompt of more than text_len
        words."""
        context_BLD = torch.zeros(len(prompts), self.text_len, self.text_dim)
        for b, prompt in enumerate(prompts):
            words = _TOKEN.findall(prompt.lower())
            if len(words) > self.text_len:
                raise ValueError(
                    f"prompt {b} has {len(words)} words and punctuation marks, more than text_len={self.text_len}: "
                    f"{prompt!r}; shorten it"
                )
            vectors = [self._word(f"word {word}") for word in words] or [self._word("empty prompt")]
            context_BLD[b, : len(vectors)] = torch.stack(vectors) + self._position_LD[: len(vectors)]
        return context_BLD

    def _word(self, key: str) -> torch.Tensor:
        if key not in self._words:
            self._words[key] = _seeded_vector(key, self.text_dim)
        return self._words[key]


def _seeded_vector(key: str, size: int) -> torch.Tensor:
    """Uniform entries of mean 0 and variance 1 from SHAKE-256 of the key: integers only, so no generator's stream
    matters."""
    raw = hashlib.shake_256(f"diag_core demo text: {key}".encode()).digest(2 * size)
    integers = np.frombuffer(raw, dtype="<u2").astype(np.float64)
    unit = (integers + 0.5) / 2**16 - 0.5
    return torch.from_numpy((unit * np.sqrt(12.0)).astype(np.float32))
