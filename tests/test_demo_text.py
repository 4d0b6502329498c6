from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diag_core.demo_text import DemoTextEncoder


@pytest.fixture(scope="module")
def encoder() -> DemoTextEncoder:
    return DemoTextEncoder()


def test_shape_and_zeros_past_the_end(encoder: DemoTextEncoder) -> None:
    context = encoder.encode(["a red 3 moves right, fast", "blue"])
    assert context.shape == (2, 32, 4096)
    assert context.dtype == torch.float32
    # "a red 3 moves right , fast": the comma counts.
    assert context[0].abs().sum(-1).count_nonzero() == 7
    assert context[1].abs().sum(-1).count_nonzero() == 1


def test_vectors_never_change(encoder: DemoTextEncoder) -> None:
    # Checkpoints are trained on these very numbers.
    red = encoder.encode(["red"])[0, 0, :4]
    expected = torch.tensor([-0.176279, -0.972130, -1.136841, -0.911581])
    torch.testing.assert_close(red, expected, atol=1e-6, rtol=0)


def test_words_are_of_one_size_and_nearly_orthogonal(encoder: DemoTextEncoder) -> None:
    bare = encoder.encode(["red", "green"])[:, 0] - encoder._position_LD[0]
    # Its own, and what its clause says: itself again.
    torch.testing.assert_close(bare.var(dim=1), torch.full((2,), 1 + 0.4**2), atol=0.06, rtol=0)
    assert torch.cosine_similarity(bare[0], bare[1], dim=0).abs() < 0.06


def test_case_and_spacing_do_not_matter_but_order_does(encoder: DemoTextEncoder) -> None:
    plain, shouted, turned = encoder.encode(["red blue", "  RED   Blue ", "blue red"])
    assert torch.equal(plain, shouted)
    assert not torch.equal(plain, turned)
    # The same word elsewhere differs by positions only.
    moved = (plain[0] - turned[1]) - (encoder._position_LD[0] - encoder._position_LD[1])
    assert moved.abs().max() < 1e-6


def test_empty_prompt_is_a_token_of_its_own(encoder: DemoTextEncoder) -> None:
    empty, spaces, word = encoder.encode(["", "   ", "empty"])
    assert torch.equal(empty, spaces)
    assert empty.abs().sum(-1).count_nonzero() == 1
    assert torch.cosine_similarity(empty[0], word[0], dim=0) < 0.5


def test_too_long_is_refused(encoder: DemoTextEncoder) -> None:
    assert encoder.encode(["go " * 32]).abs().sum(-1).count_nonzero() == 32
    with pytest.raises(ValueError, match=r"prompt 1 has 33 .*text_len=32"):
        encoder.encode(["fine", "go " * 33])


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="positive"):
        DemoTextEncoder(text_len=0)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_encodes_alone_as_in_a_batch(text: str) -> None:
    encoder = DemoTextEncoder(text_len=64, text_dim=8)
    assert torch.equal(encoder.encode([text])[0], encoder.encode(["a", text])[1])


def test_a_word_carries_what_its_clause_says(encoder: DemoTextEncoder) -> None:
    prompts = ["a red 3 moves up; a blue 7", "a red 7 moves up; a blue 3"]
    first, second = encoder.encode(prompts)
    three, seven = (_word(encoder, digit) for digit in "37")
    # The first clause has six words with its semicolon, the second three; nothing follows them. What differs is the
    # digit, read backwards, and the digit itself in its place.
    said = 0.4 * (three - seven).flip(-1)
    for i in range(9):
        own = {2: three - seven, 8: seven - three}.get(i, torch.zeros(4096))
        torch.testing.assert_close(first[i] - second[i], own + (said if i < 6 else -said), atol=1e-5, rtol=0)
    assert not first[9:].any()


def _word(encoder: DemoTextEncoder, word: str) -> torch.Tensor:
    """A word's own vector: alone it is its whole clause."""
    alone = encoder.encode([word])[0, 0] - encoder._position_LD[0]
    return (alone - 0.4 * alone.flip(-1)) / (1 - 0.4**2)
