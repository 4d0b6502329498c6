"""The demo's prompt encoder: no weights, no download, the same vectors on every machine.

Each word is a fixed pseudo-random vector with entries of unit variance, drawn from a hash of the word, so words are
nearly orthogonal and any word has a vector. A smaller fixed vector for the position is added, so that word order can
be read. There is no notion of meaning: a model learns what the words of its own prompt grammar stand for.

Every word also carries what its clause says (clauses end at ";"), as the vectors of a trained encoder do: the sum of
the clause's words, read backwards so that it is not mistaken for them. Without it a prompt of two digits would be
little more than a bag of words: which colour belongs to which digit would take two steps of attention to find out.

Shapes: B prompts, L text length, D text width.
"""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import torch

# A word, or a punctuation mark on its own.
_TOKEN = re.compile(r"\w+|[^\w\s]")
_POSITION_SCALE = 0.3
_CLAUSE_SCALE = 0.4
_END_OF_CLAUSE = ";"

DEMO_ENCODER = "demo-clauses"
"""its name in the settings of checkpoints; "demo" was an older one, of words alone"""


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
            if words:
                context_BLD[b, : len(vectors)] += _CLAUSE_SCALE * _clause_sums(words, torch.stack(vectors))
        return context_BLD

    def _word(self, key: str) -> torch.Tensor:
        if key not in self._words:
            self._words[key] = _seeded_vector(key, self.text_dim)
        return self._words[key]


def _clause_sums(words: list[str], vectors_LD: torch.Tensor) -> torch.Tensor:
    """For every word the sum of its clause's vectors, read backwards: [L,D]."""
    ends = [i + 1 for i, word in enumerate(words) if word == _END_OF_CLAUSE]
    starts = [0, *ends, len(words)]
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    return torch.cat([part.sum(0, keepdim=True).flip(-1).expand_as(part) for part in vectors_LD.split(lengths)])


def _seeded_vector(key: str, size: int) -> torch.Tensor:
    """Uniform entries of mean 0 and variance 1 from SHAKE-256 of the key: integers only, so no generator's stream
    matters."""
    raw = hashlib.shake_256(f"diag_core demo text: {key}".encode()).digest(2 * size)
    integers = np.frombuffer(raw, dtype="<u2").astype(np.float64)
    unit = (integers + 0.5) / 2**16 - 0.5
    return torch.from_numpy((unit * np.sqrt(12.0)).astype(np.float32))
