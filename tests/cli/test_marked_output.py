"""The mark of generated media and signatures, from the command line to the files."""

from __future__ import annotations

import sys
from pathlib import Path

import c2pa
import pytest
import torch
from certificates import new_key, write_chain, write_key
from tiny_models import decode

from diag_core.cli import models as cli_models
from diag_core.provenance import generated_xmp, xmp_box

PROMPT = ("--prompt", "a red 3")
MARK = generated_xmp(title="a red 3").encode()


def test_files_are_marked_unless_told_otherwise(generate):
    assert generate(*PROMPT, "--out", "a.mp4").code == 0
    assert generate(*PROMPT, "--out", "plain.mp4", "--no-mark").code == 0
    assert Path("a.mp4").read_bytes()[28:].startswith(xmp_box(MARK.decode()))
    assert b"DigitalSourceType" not in Path("plain.mp4").read_bytes()
    assert torch.equal(decode("a.mp4"), decode("plain.mp4"))
    for folder, options in (("a", ()), ("plain", ("--no-mark",))):
        assert generate(*PROMPT, "--png", "--out", folder, *options).code == 0
        assert all((MARK in path.read_bytes()) == (folder == "a") for path in Path(folder).glob("*.png"))
        assert len(list(Path(folder).glob("*.png"))) == 9


def test_every_finished_video_is_signed(generate):
    key = new_key()
    chain, key_file = write_chain(Path("chain.pem"), key), write_key(Path("key.pem"), key)
    assert generate(*PROMPT, "--seed", 1, "--out", "plain.mp4").code == 0
    result = generate(*PROMPT, "--count", 2, "--out", "a.mp4", "--c2pa-certificate", chain, "--c2pa-key", key_file)
    assert result.code == 0, result.err
    for name in ("a-1.mp4", "a-2.mp4"):
        with c2pa.Reader(name) as reader:
            assert reader.get_validation_state() == "Valid"
            assert reader.get_active_manifest()["title"] == "a red 3"
        assert f"{name}: signed with chain.pem" in result.out
        assert MARK in Path(name).read_bytes()
    assert torch.equal(decode("a-2.mp4"), decode("plain.mp4"))
    assert sorted(path.name for path in Path().iterdir()) == ["a-1.mp4", "a-2.mp4", "chain.pem", "key.pem", "plain.mp4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--c2pa-certificate", "chain.pem"), "belong together: give both"),
        (("--c2pa-key", "key.pem"), "belong together: give both"),
        (("--c2pa-certificate", "none.pem", "--c2pa-key", "key.pem"), "none.pem: the certificate cannot be read"),
        (("--c2pa-certificate", "chain.pem", "--c2pa-key", "none.pem"), "none.pem: the private key cannot be read"),
        (("--c2pa-certificate", "chain.pem", "--c2pa-key", "other.pem"), "other.pem: it is not the key of"),
        (("--c2pa-certificate", "chain.pem", "--c2pa-key", "key.pem", "--png"), "leave out --png"),
    ],
)
def test_what_cannot_sign_is_found_before_anything_is_loaded(generate, monkeypatch, arguments, said):
    def no_model(*_, **__):
        raise AssertionError("a model was loaded before the fault was found")

    monkeypatch.setattr(cli_models, "load_dit", no_model)
    key = new_key()
    write_chain(Path("chain.pem"), key)
    write_key(Path("key.pem"), key)
    write_key(Path("other.pem"), new_key())
    result = generate(*PROMPT, "--out", "o/", *arguments)
    assert result.code == 2
    assert said in result.err.splitlines()[-1]
    assert not Path("o").exists()


def test_the_missing_package_is_named_before_anything_is_loaded(generate, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    key = new_key()
    write_chain(Path("chain.pem"), key)
    write_key(Path("key.pem"), key)
    result = generate(*PROMPT, "--c2pa-certificate", "chain.pem", "--c2pa-key", "key.pem")
    assert result.code == 2
    assert "pip install c2pa-python" in result.err
    assert sorted(path.name for path in Path().iterdir()) == ["chain.pem", "key.pem"]
