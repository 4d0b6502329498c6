"""Signed manifests (C2PA) for finished files: who says that a model made them, in a way that shows later changes.

The signature is made with the user's own certificate, on this machine; the package `c2pa-python` does the work (extra
`c2pa`). Whether a reader trusts the certificate is the reader's affair and is not checked here. Source: C2PA technical
specification 2.x (actions, digital source types, signing algorithms).
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .pictures import write_png
from .provenance import GENERATED, TOOL
from .replacing import replacing

ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
"""COSE's names of the signing algorithms that C2PA allows."""
_FORMATS = {".mp4": "video/mp4", ".png": "image/png"}
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
# The result is checked, the issuer is not; and nothing is fetched.
_SETTINGS = {
    "verify": {
        "verify_after_sign": True,
        "verify_trust": False,
        "verify_timestamp_trust": False,
        "ocsp_fetch": False,
        "remote_manifest_fetch": False,
    }
}


def sign_c2pa(
    path: str | os.PathLike[str],
    certificate: str | os.PathLike[str],
    private_key: str | os.PathLike[str],
    *,
    title: str | None = None,
    description: str | None = None,
    algorithm: str = "auto",
    timestamp_url: str | None = None,
) -> None:
    """Put a signed manifest, "created by a trained model", into an MP4 or PNG file.

    The file is replaced at once when all is done; if that fails, it stays as it was.

    Args:
        certificate: PEM file: the signer's certificate, then those that issued it, if any.
        private_key: PEM file: the certificate's key, not protected by a password.
        title: the manifest's title.
        description: of the action of creating the file, such as the prompt.
        algorithm: one of ALGORITHMS, or "auto": what the certificate's kind of key is for.
        timestamp_url: a time-stamping service (RFC 3161) that confirms when the file was signed. Without it nothing is
            sent anywhere.

    Raises:
        ValueError: `c2pa-python` is missing; a certificate or key that cannot be read, do not belong together or are
            not fit for signing; an unknown algorithm; another kind of file, or a damaged one; no answer of the service.
        OSError: the file cannot be read or written.
    """
    path = Path(path)
    media_type = _FORMATS.get(path.suffix.lower())
    if media_type is None:
        raise ValueError(f"{path}: only {' and '.join(_FORMATS)} files can be signed")
    signer = _Signer(Path(certificate), Path(private_key), algorithm, timestamp_url)
    manifest = _manifest(title, description)
    with replacing(path) as target, open(path, "rb") as source:
        signer.sign(manifest, media_type, source, target, str(path))


def check_signing(
    certificate: str | os.PathLike[str], private_key: str | os.PathLike[str], *, algorithm: str = "auto"
) -> None:
    """Sign a picture of one pixel in memory, to find out before hours of work whether that is possible.

    Raises:
        ValueError: as `sign_c2pa`.
    """
    signer = _Signer(Path(certificate), Path(private_key), algorithm, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        write_png(path, torch.zeros(1, 1, 3, dtype=torch.uint8))
        picture = io.BytesIO(path.read_bytes())
    signer.sign(_manifest(None, None), "image/png", picture, io.BytesIO(), f"{certificate}")


class _Signer:
    """A certificate and a key that belong together, and the package that signs with them."""

    def __init__(self, certificate: Path, private_key: Path, algorithm: str, timestamp_url: str | None) -> None:
        if algorithm != "auto" and algorithm not in ALGORITHMS:
            raise ValueError(f"there is no signing algorithm {algorithm!r}; use auto, {', '.join(ALGORITHMS)}")
        self._c2pa = _import_c2pa()
        self._chain = _read(certificate, "certificate")
        key = _load_key(private_key)
        if _public(_load_certificate(certificate, self._chain).public_key()) != _public(key.public_key()):
            raise ValueError(f"{private_key}: it is not the key of the certificate {certificate}")
        self._key = _pkcs8(key)
        self._algorithm = _algorithm_of(key, private_key) if algorithm == "auto" else algorithm
        self._timestamp_url = timestamp_url

    def sign(self, manifest: str, media_type: str, source: BinaryIO, target: BinaryIO, name: str) -> None:
        """`target` must be readable too. Raises ValueError, which begins with `name`, when it cannot be done."""
        c2pa = self._c2pa
        try:
            info = c2pa.C2paSignerInfo(self._algorithm, self._chain, self._key, self._timestamp_url)
            context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS), c2pa.Signer.from_info(info))
            with context, c2pa.Builder(manifest, context) as builder:
                builder.sign(media_type, source, target)
        except c2pa.C2paError as error:
            raise ValueError(f"{name}: it cannot be signed ({error})") from error


def _manifest(title: str | None, description: str | None) -> str:
    created = {
        "action": "c2pa.created",
        "digitalSourceType": GENERATED,
        "softwareAgent": {"name": TOOL},
        **({"description": description} if description else {}),
    }
    return json.dumps(
        {
            "claim_generator_info": [{"name": TOOL}],
            **({"title": title} if title else {}),
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }
    )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the {what} cannot be read ({error.strerror})") from error


def _load_certificate(path: Path, chain: bytes) -> Any:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ValueError(f"{path}: it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from error


def _load_key(path: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, "private key")
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ValueError(f"{path}: the key is protected by a password; give a copy without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: it holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from error


def _public(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _pkcs8(key: Any) -> bytes:
    """The one form that the signing package takes."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _algorithm_of(key: Any, path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise ValueError(f"{path}: C2PA has no signatures with this kind of key; use P-256, P-384, P-521, Ed25519 or RSA")


def _import_c2pa() -> Any:
    try:
        import c2pa
        import cryptography  # noqa: F401 - c2pa-python brings it
    except ImportError as error:
        raise ValueError(f"signing needs a package: pip install c2pa-python ({error})") from error
    return c2pa
