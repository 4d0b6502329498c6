"""Signed manifests, read back by the reference implementation; files still play, and failures change nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import av
import c2pa
import pytest
import torch
from certificates import new_key, write_chain, write_key
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from torch import Tensor

from diag_core.c2pa_signing import check_signing, sign_c2pa
from diag_core.mp4_boxes import read_boxes
from diag_core.mp4_writer import Mp4Writer
from diag_core.pictures import write_png
from diag_core.provenance import GENERATED, generated_xmp, xmp_box
from diag_core.video_reader import read_image, read_video


@pytest.fixture
def signer(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate chain and its key."""
    key = new_key()
    folder = tmp_path / "signer"
    folder.mkdir()
    return write_chain(folder / "chain.pem", key), write_key(folder / "key.pem", key)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    with Mp4Writer(path, 16, 64, 48, metadata={"title": "a red 3", "seed": 7}) as writer:
        writer.write(torch.rand(1, 3, 40, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    return path


def frame_at(path: Path, seconds: float) -> Tensor:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(round(seconds / stream.time_base), stream=stream)
        frame = next(frame for frame in container.decode(stream) if frame.time >= seconds)
        return torch.from_numpy(frame.to_ndarray(format="rgb24"))


def codes(reader: c2pa.Reader) -> set[str]:
    return {status["code"] for status in json.loads(reader.json()).get("validation_status", [])}


def test_a_signed_video_plays_and_says_who_made_it(video: Path, signer: tuple[Path, Path]):
    before = read_video(video)
    sign_c2pa(video, *signer, title="a réd 3", description='a "red" 3')
    with c2pa.Reader(str(video)) as reader:
        manifest = reader.get_active_manifest()
        assert reader.get_validation_state() == "Valid"
        assert codes(reader) == {"signingCredential.untrusted"}  # nobody knows the root made above
    assert (manifest["title"], manifest["claim_generator_info"][0]["name"]) == ("a réd 3", "ComfyUI-DiagDistill")
    assert manifest["signature_info"]["common_name"] == "Test signer"
    (actions,) = [a["data"]["actions"] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions")]
    assert [(a["action"], a["digitalSourceType"], a["description"]) for a in actions] == [
        ("c2pa.created", GENERATED, 'a "red" 3')
    ]
    data = video.read_bytes()
    xmp, *_ = (box for box in read_boxes(data) if data[box.start : box.end] == xmp_box(generated_xmp(title="a red 3")))
    assert xmp.end < next(box for box in read_boxes(data) if box.kind == b"mdat").start  # still in the header
    assert torch.equal(read_video(video), before)
    for number in (35, 2, 17):
        assert torch.equal(frame_at(video, number / 16), before[number])
    with av.open(str(video)) as container:
        assert json.loads(container.metadata["comment"]) == {"seed": 7}
    assert sorted(os.listdir(video.parent)) == ["a.mp4", "signer"]


def test_a_later_change_shows(video: Path, signer: tuple[Path, Path]):
    sign_c2pa(video, *signer)
    data = bytearray(video.read_bytes())
    media = next(box for box in read_boxes(bytes(data)) if box.kind == b"mdat")
    data[(media.content + media.end) // 2] ^= 1
    video.write_bytes(data)
    with c2pa.Reader(str(video)) as reader:
        assert reader.get_validation_state() == "Invalid"
        assert "assertion.bmffHash.mismatch" in codes(reader)


def test_a_picture_is_signed(tmp_path: Path, signer: tuple[Path, Path]):
    path, xmp = tmp_path / "a.png", generated_xmp()
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    write_png(path, image, xmp=xmp)
    sign_c2pa(path, *signer)
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_validation_state() == "Valid"
    assert torch.equal(read_image(path), image)
    assert xmp.encode() in path.read_bytes()


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
    ],
)
def test_the_algorithm_is_that_of_the_key(tmp_path: Path, make, algorithm: str):
    key, path = make(), tmp_path / "a.png"
    write_png(path, torch.zeros(2, 2, 3, dtype=torch.uint8))
    sign_c2pa(path, write_chain(tmp_path / "chain.pem", key), write_key(tmp_path / "key.pem", key))
    with c2pa.Reader(str(path)) as reader:
        assert reader.get_active_manifest()["signature_info"]["alg"].lower() == algorithm


def test_a_key_in_the_older_form_is_taken(video: Path, tmp_path: Path):
    key = new_key()
    older = write_key(tmp_path / "key.pem", key, PrivateFormat.TraditionalOpenSSL)
    assert b"BEGIN EC PRIVATE KEY" in older.read_bytes()
    sign_c2pa(video, write_chain(tmp_path / "chain.pem", key), older)
    with c2pa.Reader(str(video)) as reader:
        assert reader.get_validation_state() == "Valid"


def test_what_cannot_sign_is_refused_and_the_video_stays(tmp_path: Path, video: Path, signer: tuple[Path, Path]):
    chain, key = signer
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    koblitz = ec.generate_private_key(ec.SECP256K1())
    server = new_key()
    cases: list[tuple[Path, Path, dict[str, str], str]] = [
        (tmp_path / "none.pem", key, {}, r"none\.pem: the certificate cannot be read \(No such file"),
        (chain, tmp_path / "none.pem", {}, r"none\.pem: the private key cannot be read \(No such file"),
        (text, key, {}, r"text\.pem: it holds no certificate in PEM form"),
        (chain, text, {}, r"text\.pem: it holds no private key in PEM form"),
        (key, key, {}, r"key\.pem: it holds no certificate"),
        (chain, locked, {}, r"locked\.pem: the key is protected by a password"),
        (chain, write_key(tmp_path / "other.pem", new_key()), {}, r"other\.pem: it is not the key of .*chain\.pem"),
        (chain, key, {"algorithm": "rs256"}, "no signing algorithm 'rs256'; use auto, es256"),
        (chain, key, {"algorithm": "ed25519"}, r"cannot be signed \(.*private key"),
        (
            write_chain(tmp_path / "k1.pem", koblitz),
            write_key(tmp_path / "k1-key.pem", koblitz),
            {},
            r"k1-key\.pem: C2PA has no signatures with this kind of key; use P-256",
        ),
        (
            write_chain(tmp_path / "server.pem", server, usage=ExtendedKeyUsageOID.SERVER_AUTH),
            write_key(tmp_path / "server-key.pem", server),
            {},
            "it cannot be signed",
        ),
    ]
    before = video.read_bytes()
    files = sorted(os.listdir(tmp_path))
    for certificate, private_key, options, said in cases:
        with pytest.raises(ValueError, match=said):
            sign_c2pa(video, certificate, private_key, **options)
        with pytest.raises(ValueError, match=said):
            check_signing(certificate, private_key, **options)
    assert video.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == files
    check_signing(chain, key)


def test_other_files_are_refused_and_damaged_ones_stay(tmp_path: Path, signer: tuple[Path, Path]):
    with pytest.raises(ValueError, match=r"a\.webm: only \.mp4 and \.png files can be signed"):
        sign_c2pa(tmp_path / "a.webm", *signer)
    with pytest.raises(FileNotFoundError):
        sign_c2pa(tmp_path / "a.mp4", *signer)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"a\.mp4: it cannot be signed"):
        sign_c2pa(tmp_path / "a.mp4", *signer)
    assert (tmp_path / "a.mp4").read_bytes() == b"no video"
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "signer"]


def test_a_service_that_does_not_answer_leaves_the_video(video: Path, signer: tuple[Path, Path]):
    before = video.read_bytes()
    with pytest.raises(ValueError, match=r"a\.mp4: it cannot be signed"):
        sign_c2pa(video, *signer, timestamp_url="http://127.0.0.1:9/")
    assert video.read_bytes() == before


def test_without_the_package_it_is_named(video: Path, signer: tuple[Path, Path], monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ValueError, match="pip install c2pa-python"):
        sign_c2pa(video, *signer)
