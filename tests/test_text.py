"""umT5 from every layout, its tokenizers, Wan's text cleaning, and the cache of embeddings."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from diag_core.state_dict import CheckpointError
from diag_core.text import CachedEncoder, DemoTextEncoder, EmbeddingCache, UMT5Encoder, clean_prompt, encoder_identity
from diag_core.umt5 import ORIGINAL_FILE

LEN = 16
PROMPTS = ["a red 3 moves left", "two digits", ""]
BLOCK = "encoder.block.{}.layer.0.SelfAttention"


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A sentencepiece model with T5's special tokens, trained on a few lines."""
    written = io.BytesIO()
    lines = ["a red 3 moves left", "two blue digits move up and down", "the green 7 bounces", "digits, 0 1 2 4 5 6 8 9"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 3),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def tokenizer_json(spiece: bytes) -> str:
    """The same vocabulary as tokenizer.json has it, with the padding that a saved tokenizer may carry along."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    vocabulary = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def model() -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=64,
        d_model=16,
        d_kv=6,
        d_ff=20,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
    )
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def own_weights(model: UMT5EncoderModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "embed_tokens" not in name}


def original_weights(model: UMT5EncoderModel) -> dict[str, Tensor]:
    """Under the names of Wan's own encoder."""
    theirs = model.state_dict()
    weights = {
        "token_embedding.weight": theirs["shared.weight"],
        "norm.weight": theirs["encoder.final_layer_norm.weight"],
    }
    for i in range(model.config.num_layers):
        block, feed = f"encoder.block.{i}.layer", f"encoder.block.{i}.layer.1.DenseReluDense"
        attention = BLOCK.format(i)
        weights |= {f"blocks.{i}.attn.{x}.weight": theirs[f"{attention}.{x}.weight"] for x in "qkvo"}
        weights |= {
            f"blocks.{i}.norm1.weight": theirs[f"{block}.0.layer_norm.weight"],
            f"blocks.{i}.pos_embedding.embedding.weight": theirs[f"{attention}.relative_attention_bias.weight"],
            f"blocks.{i}.norm2.weight": theirs[f"{block}.1.layer_norm.weight"],
            f"blocks.{i}.ffn.gate.0.weight": theirs[f"{feed}.wi_0.weight"],
            f"blocks.{i}.ffn.fc1.weight": theirs[f"{feed}.wi_1.weight"],
            f"blocks.{i}.ffn.fc2.weight": theirs[f"{feed}.wo.weight"],
        }
    return weights


def write_diffusers(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
    model.save_pretrained(folder / "text_encoder", max_shard_size="4KB")
    assert (folder / "text_encoder" / "model.safetensors.index.json").is_file()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return folder


def write_comfyui(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
    inside = {"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}
    save_file(own_weights(model) | inside, folder / "umt5.safetensors")
    return folder / "umt5.safetensors"


def write_original(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
    torch.save(original_weights(model), folder / ORIGINAL_FILE)
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "spiece.model").write_bytes(spiece)
    return folder


def reference(model: UMT5EncoderModel, spiece: bytes, prompts: list[str]) -> Tensor:
    """As Wan's pipeline does it: one batch padded to the full length, masked, zeroed past each prompt."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    ids, mask = torch.zeros(len(prompts), LEN, dtype=torch.long), torch.zeros(len(prompts), LEN, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens = [*processor.encode(prompt)[: LEN - 1], 1]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states * mask[..., None]


@pytest.mark.parametrize("layout", [write_diffusers, write_comfyui, write_original])
def test_every_layout_encodes_as_transformers_does(
    layout: Callable[..., Path], tmp_path: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str
) -> None:
    path = layout(tmp_path, model, spiece, tokenizer_json)
    encoder = UMT5Encoder.load(path, dtype=torch.float32, text_len=LEN)
    found = encoder.encode(PROMPTS)
    assert found.shape == (3, LEN, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found, reference(model, spiece, PROMPTS), rtol=0, atol=1e-5)
    assert found[2, 0].abs().sum() > 0 and found[2, 1:].eq(0).all()  # an empty prompt is its end token alone
    assert torch.equal(encoder.encode(PROMPTS[:1])[0], found[0])


def test_both_kinds_of_tokenizer_agree(
    tmp_path: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str
) -> None:
    path = write_comfyui(tmp_path, model, spiece, tokenizer_json)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (tmp_path / "spiece.model").write_bytes(spiece)
    encoders = [
        UMT5Encoder.load(path, tokenizer=tmp_path / name if name else None, dtype=torch.float32)
        for name in ("tokenizer.json", "spiece.model", "", ".")
    ]
    for prompt in ("a red 3 moves left", "two  digits, 5 6", "unseen words: zebra!", "x" * 40):
        tokens = [encoder.tokenize(clean_prompt(prompt)) for encoder in encoders]
        assert all(ids == tokens[0] for ids in tokens) and len(tokens[0]) > 1
        assert all(encoder.end_token == 1 for encoder in encoders)


def test_a_long_prompt_is_cut_with_a_warning(
    tmp_path: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str
) -> None:
    encoder = UMT5Encoder.load(write_comfyui(tmp_path, model, spiece, tokenizer_json), text_len=LEN)
    long = "two digits move left and right " * 5
    with pytest.warns(UserWarning, match=r"is cut to 15: 'two digits move"):
        found = encoder.encode([long])
    assert found[0, LEN - 1].abs().sum() > 0


def test_scaled_float8_is_unscaled(tmp_path: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> None:
    weights = own_weights(model)
    stored: dict[str, Tensor] = {"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}
    expected = dict(weights)
    for name, tensor in weights.items():
        stored[name] = tensor
        if ".q." in name or "wi_0" in name:
            scale = tensor.abs().max() / 400
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", ".scale_weight")] = scale
            expected[name] = stored[name].float() * scale
    stored["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(stored, tmp_path / "scaled.safetensors")
    encoder = UMT5Encoder.load(tmp_path / "scaled.safetensors", dtype=torch.float32, text_len=LEN)
    for name, tensor in encoder.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name.replace("encoder.embed_tokens", "shared")], rtol=0, atol=0)


def broken_weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[..., Path]:
    def make(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
        weights = own_weights(model)
        change(weights)
        save_file(weights, folder / "x.safetensors")
        (folder / "spiece.model").write_bytes(spiece)
        return folder / "x.safetensors"

    return make


def no_tokenizer(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
    path = write_original(folder, model, spiece, tokenizer_json)
    (folder / "google" / "umt5-xxl" / "spiece.model").unlink()
    return path


def bad_tokenizer(content: bytes, name: str) -> Callable[..., Path]:
    def make(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
        path = write_diffusers(folder, model, spiece, tokenizer_json)
        (path / "tokenizer" / "tokenizer.json").unlink()
        (path / "tokenizer" / name).write_bytes(content)
        return path

    return make


def bad_inside(folder: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str) -> Path:
    return write_comfyui(folder, model, b"not a model", tokenizer_json)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder, *_: folder / "absent", "no such file"),
        (broken_weights(lambda w: w.pop("encoder.final_layer_norm.weight")), "1 missing key: encoder.final_layer_norm"),
        (broken_weights(lambda w: w.update(extra=torch.ones(1))), "1 unexpected key: extra"),
        (broken_weights(lambda w: w.pop("shared.weight")), "no 'shared.weight', so it is no umT5 encoder"),
        (no_tokenizer, "no tokenizer beside these weights"),
        (bad_tokenizer(b"{}", "tokenizer.json"), "no tokenizer that can be read"),
        (bad_tokenizer(b"abc", "spiece.model"), "sentencepiece model cannot be read"),
        (bad_inside, "sentencepiece model cannot be read"),
    ],
)
def test_what_is_wrong_is_named(
    make: Callable[..., Path],
    complaint: str,
    tmp_path: Path,
    model: UMT5EncoderModel,
    spiece: bytes,
    tokenizer_json: str,
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        UMT5Encoder.load(make(tmp_path, model, spiece, tokenizer_json))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a \n\t red\u00a0 3 ", "a red 3"),
        ("AT&amp;amp;T &lt;b&gt;", "AT&T <b>"),
        ("the \u201cred\u201d cat\u2019s", 'the "red" cat\'s'),
        ("\uff21\uff22\uff0c\u3000\uff11", "AB, 1"),
        ("o\ufb03ce cafe\u0301", "office caf\u00e9"),
        ("a\x00b\ufeff", "ab"),
        ("\u7ea2\u8272\u7684\u732b", "\u7ea2\u8272\u7684\u732b"),
    ],
)
def test_cleaning(text: str, clean: str) -> None:
    assert clean_prompt(text) == clean


@settings(deadline=None)
@given(st.text())
def test_cleaned_text_has_single_blanks(text: str) -> None:
    clean = clean_prompt(text)
    assert clean == " ".join(clean.split())


class Counting:
    """An encoder that tells how often it was asked."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.loads = 0

    def load(self) -> Counting:
        self.loads += 1
        return self

    def encode(self, prompts: list[str]) -> Tensor:
        self.prompts += prompts
        return DemoTextEncoder(text_len=LEN, text_dim=8).encode(prompts)


def test_only_new_prompts_reach_the_encoder(tmp_path: Path) -> None:
    counting = Counting()
    cached = CachedEncoder(EmbeddingCache(tmp_path), "demo", counting.load, text_len=LEN)
    expected = DemoTextEncoder(text_len=LEN, text_dim=8).encode(["a b c", "d", "a b c"])
    assert torch.equal(cached.encode(["a b c", "d", "a b c"]), expected)
    assert counting.prompts == ["a b c", "d"] and counting.loads == 1
    again = CachedEncoder(EmbeddingCache(tmp_path), "demo", counting.load, text_len=LEN)
    assert torch.equal(again.encode(["d", "a b c", "d"])[1], expected[0])
    assert counting.loads == 1
    other = CachedEncoder(EmbeddingCache(tmp_path), "another encoder", counting.load, text_len=LEN)
    other.encode(["d"])
    assert counting.prompts == ["a b c", "d", "d"]


def test_bf16_values_take_half_the_room_and_others_lose_nothing(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    exact, rounded = torch.randn(50, 64).bfloat16().float(), torch.randn(50, 64)
    cache.put("e", "exact", exact)
    cache.put("e", "rounded", rounded)
    found = [cache.get("e", "exact"), cache.get("e", "rounded")]
    assert torch.equal(found[0], exact) and torch.equal(found[1], rounded)  # type: ignore[arg-type]
    small, large = sorted(path.stat().st_size for path in tmp_path.iterdir())
    assert abs(large - small - 50 * 64 * 2) < 32  # the header may differ by its padding


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 400), value=st.integers(0, 255), length=st.none() | st.integers(0, 500))
def test_a_damaged_entry_is_computed_anew(tmp_path: Path, position: int, value: int, length: int | None) -> None:
    cache = EmbeddingCache(tmp_path)
    embedding = torch.arange(12.0).view(3, 4)
    cache.put("e", "p", embedding)
    path = cache._path("e", "p")
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content[:length])
    found = cache.get("e", "p")
    counting = Counting()
    if found is not None:  # the change was none, or of a blank
        assert torch.equal(found, embedding)
    else:
        assert CachedEncoder(cache, "e", counting.load, text_len=LEN).encode(["p"]).shape == (1, LEN, 8)
        assert counting.prompts == ["p"] and cache.get("e", "p") is not None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    for age, prompt in enumerate(["oldest", "older", "new"]):
        cache.put("e", prompt, torch.full((2, 4), float(age)))
        os.utime(cache._path("e", prompt), (1000 + age, 1000 + age))
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    assert cache.get("e", "oldest") is not None  # used, so it is the newest now
    bounded = EmbeddingCache(tmp_path, max_bytes=3 * size + size // 2)
    bounded.put("e", "newest", torch.ones(2, 4))
    assert [cache.get("e", prompt) is not None for prompt in ("oldest", "older", "new", "newest")] == [1, 0, 1, 1]
    EmbeddingCache(tmp_path, max_bytes=0).put("e", "last", torch.ones(2, 4))
    assert [path.name for path in tmp_path.iterdir()] == [cache._path("e", "last").name]


def test_an_encoder_is_known_by_its_content(
    tmp_path: Path, model: UMT5EncoderModel, spiece: bytes, tokenizer_json: str
) -> None:
    path = write_comfyui(tmp_path, model, spiece, tokenizer_json)
    first = encoder_identity(path)
    assert encoder_identity(path) == first
    assert encoder_identity(path, dtype=torch.float32) != first and encoder_identity(path, text_len=9) != first
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert encoder_identity(path) != first
    with pytest.raises(CheckpointError, match="cannot be read"):
        encoder_identity(tmp_path / "absent")
    assert json.loads(tokenizer_json)["model"]["type"] == "Unigram"
