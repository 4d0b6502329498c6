"""Downloads, against a stand-in for the hub on this machine: what arrives, what is recorded, and how it resumes."""

from __future__ import annotations

import builtins
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import COMMIT, StandIn, serving

from diag_core import hub
from diag_core.hub import SOURCES, DownloadError, download

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB: several blocks
CONFIG = b'{"dim": 128}'


@pytest.fixture
def server() -> Iterator[StandIn]:
    with serving() as server:
        yield server


@pytest.fixture
def repository(server: StandIn) -> StandIn:
    server.files = {
        "config.json": CONFIG,
        "diffusion_pytorch_model.safetensors": WEIGHTS,
        "Wan2.1_VAE.pth": b"vae",
        "models_t5_umt5-xxl-enc-bf16.pth": b"text",
        "google/umt5-xxl/spiece.model": b"tokens",
        "README.md": b"not wanted",
    }
    return server


def test_files_arrive_and_the_record_says_where_from(repository: StandIn, tmp_path: Path, capfd: Any) -> None:
    seen: list[tuple[str, int, int]] = []
    result = download(
        "wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, progress=lambda *report: seen.append(report)
    )
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "google" / "umt5-xxl" / "spiece.model").read_bytes() == b"tokens"
    assert not (tmp_path / "README.md").exists()
    assert (result.repository, result.revision, result.commit) == ("Wan-AI/Wan2.1-T2V-1.3B", "main", COMMIT)
    sizes = {file.name: file.size for file in result.files}
    assert sizes["diffusion_pytorch_model.safetensors"] == len(WEIGHTS) and len(sizes) == 5
    record = json.loads(result.record.read_text())
    assert record["commit"] == COMMIT and record["files"] == [vars(file) for file in result.files]
    assert {file["sha256"] for file in record["files"]} >= {hashlib.sha256(WEIGHTS).hexdigest()}
    assert ("diffusion_pytorch_model.safetensors", len(WEIGHTS), len(WEIGHTS)) in seen
    counts = [done for file, done, _ in seen if file == "diffusion_pytorch_model.safetensors"]
    assert counts == sorted(counts)
    assert capfd.readouterr() == ("", "")


def test_what_is_there_is_not_fetched_again(repository: StandIn, tmp_path: Path) -> None:
    first = download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint)
    repository.requests.clear()
    assert download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, revision=COMMIT).files == first.files
    assert not [path for method, path, _ in repository.requests if method == "GET" and "resolve" in path]


def test_what_is_there_under_another_name_is_not_fetched_if_it_is_right(repository: StandIn, tmp_path: Path) -> None:
    (tmp_path / "my text encoder").write_bytes(b"text")
    (tmp_path / "my vae").write_bytes(b"another vae")
    names = {"models_t5_umt5-xxl-enc-bf16.pth": "my text encoder", "Wan2.1_VAE.pth": "my vae"}
    result = download(
        "wan-1.3b",
        target_dir=tmp_path / "new",
        endpoint=repository.endpoint,
        files=list(names),
        also_at=lambda file: tmp_path / names[file],
    )
    assert {file.name: file.size for file in result.files} == {name: len(repository.files[name]) for name in names}
    fetched = [path for method, path, _ in repository.requests if method == "GET" and "resolve" in path]
    assert len(fetched) == 1 and fetched[0].endswith("Wan2.1_VAE.pth")
    assert (tmp_path / "my vae").read_bytes() == b"another vae"
    assert (tmp_path / "new" / "Wan2.1_VAE.pth").read_bytes() == b"vae"


def test_an_interrupted_download_goes_on_where_it_broke(repository: StandIn, tmp_path: Path) -> None:
    repository.break_after = 1_000_000
    with pytest.raises(DownloadError, match="run this again to go on"):
        download(
            "wan-1.3b",
            target_dir=tmp_path,
            endpoint=repository.endpoint,
            files=["diffusion_pytorch_model.safetensors"],
        )
    assert not (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    repository.break_after = None
    repository.requests.clear()
    download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, files=["diffusion*"])
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == WEIGHTS
    ranges = [wanted for method, path, wanted in repository.requests if method == "GET" and "resolve" in path]
    assert ranges == ["bytes=1000000-"]


def test_files_on_another_host_are_fetched_without_the_token(
    repository: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    repository.redirects = True
    download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, files=["diffusion*"])
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == WEIGHTS
    elsewhere = [token for path, token in repository.tokens if "elsewhere" in path]
    assert elsewhere and not any(elsewhere)
    assert any(token == "Bearer hf_secret" for path, token in repository.tokens if "elsewhere" not in path)


def test_a_file_that_is_not_what_was_promised_is_refused(repository: StandIn, tmp_path: Path) -> None:
    repository.sha256["config.json"] = "0" * 64
    with pytest.raises(DownloadError, match=r"config\.json: its SHA-256 is .* not 0000.*Delete it and run this again"):
        download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, files=["config.json"])
    assert not list(tmp_path.glob("*download*.json"))


def test_errors_name_what_is_missing(repository: StandIn, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no download named 'wan-9b'; there are wan-1\.3b, wan-14b"):
        download("wan-9b", target_dir=tmp_path)
    with pytest.raises(DownloadError, match=r"T2V-1\.3B has no file 'x\*'; it has README\.md, Wan2\.1_VAE\.pth"):
        download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, files=["x*"])
    with pytest.raises(DownloadError, match=r"T2V-1\.3B at 'draft' cannot be reached"):
        download("wan-1.3b", target_dir=tmp_path, endpoint=repository.endpoint, revision="draft")
    repository.files["../evil.json"] = b""
    with pytest.raises(DownloadError, match="outside the target folder"):
        download("wan-1.3b", target_dir=tmp_path / "in", endpoint=repository.endpoint, files=["*evil.json"])
    assert not (tmp_path / "evil.json").exists()


def test_no_server(tmp_path: Path) -> None:
    for name in ("longlive", "taehv"):
        with pytest.raises(DownloadError, match="cannot be reached"):
            download(name, target_dir=tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="http or https"):
        download("taehv", target_dir=tmp_path, endpoint="file:///etc")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DownloadError, match="pip install huggingface-hub"):
        download("longlive", target_dir=tmp_path)


@pytest.fixture
def github(server: StandIn) -> StandIn:
    server.files = {"taew2_1.pth": WEIGHTS}
    return server


def test_github_resolves_the_commit_and_fetches_once(github: StandIn, tmp_path: Path) -> None:
    seen: list[int] = []
    result = download(
        "taehv", target_dir=tmp_path, endpoint=github.endpoint, progress=lambda _, done, total: seen.append(done)
    )
    assert result.commit == COMMIT and (tmp_path / "taew2_1.pth").read_bytes() == WEIGHTS
    assert result.files[0].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] == len(WEIGHTS)
    github.requests.clear()
    again = download("taehv", target_dir=tmp_path, endpoint=github.endpoint, revision=COMMIT)
    assert again.files == result.files and not github.requests
    (tmp_path / "taew2_1.pth").write_bytes(b"changed")
    download("taehv", target_dir=tmp_path, endpoint=github.endpoint, revision=COMMIT)
    assert (tmp_path / "taew2_1.pth").read_bytes() == WEIGHTS


def test_github_resumes(github: StandIn, tmp_path: Path) -> None:
    github.break_after = 1_500_000
    with pytest.raises(DownloadError, match=r"broke after 1500000 bytes .*of 3072000.*What has arrived is kept"):
        download("taehv", target_dir=tmp_path, endpoint=github.endpoint)
    assert not (tmp_path / "taew2_1.pth").exists()
    github.break_after = None
    download("taehv", target_dir=tmp_path, endpoint=github.endpoint)
    assert (tmp_path / "taew2_1.pth").read_bytes() == WEIGHTS
    assert github.requests[-1][2] == "bytes=1500000-"
    assert not list(tmp_path.glob("*.part"))


def test_a_part_that_is_too_long_is_fetched_anew(github: StandIn, tmp_path: Path) -> None:
    (tmp_path / f"taew2_1.pth.{COMMIT[:12]}.part").write_bytes(WEIGHTS + b"more")
    download("taehv", target_dir=tmp_path, endpoint=github.endpoint)
    assert (tmp_path / "taew2_1.pth").read_bytes() == WEIGHTS


def test_a_part_that_only_lacks_its_name_is_not_fetched_again(github: StandIn, tmp_path: Path) -> None:
    (tmp_path / f"taew2_1.pth.{COMMIT[:12]}.part").write_bytes(WEIGHTS)
    download("taehv", target_dir=tmp_path, endpoint=github.endpoint)
    assert (tmp_path / "taew2_1.pth").read_bytes() == WEIGHTS and not list(tmp_path.glob("*.part"))
    assert github.requests[-1][2] == f"bytes={len(WEIGHTS)}-"


def test_every_source_names_files_of_a_repository() -> None:
    for source in SOURCES.values():
        assert len(source.repository.split("/")) == 2 and source.files
    assert hub.SOURCES["longlive"].files == ("models/longlive_base.pt", "models/lora.pt")
