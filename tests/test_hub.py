"""Downloads, against a stand-in for the hub on this machine: what arrives, what is recorded, and how it resumes."""

from __future__ import annotations

import builtins
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from diag_core import hub
from diag_core.hub import SOURCES, DownloadError, download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 12_000  # 3 MB: several blocks
CONFIG = b'{"dim": 128}'


class StandIn(ThreadingHTTPServer):
    """Answers as the hub does for a model's description and files, and as GitHub does for a commit and raw files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.sha256: dict[str, str] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.tokens: list[tuple[str, str | None]] = []  # path, Authorization
        self.break_after: int | None = None  # bytes of a file after which connections break
        self.redirects = False  # whether files lie on another host

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        parts = path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:] in (["revision", "main"], ["revision", COMMIT]):
            siblings = []
            for name, content in self.files.items():
                digest = self.sha256.get(name, hashlib.sha256(content).hexdigest())
                lfs = {"sha256": digest, "size": len(content), "pointerSize": 134}
                siblings.append({"rfilename": name, "size": len(content), "blobId": "b", "lfs": lfs})
            body = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return json.dumps(body).encode(), {"Content-Type": "application/json"}
        if parts[0] == "repos" and parts[3:] == ["commits", "main"]:
            return COMMIT.encode(), {}
        name = "/".join(parts[4:] if parts[2:3] == ["resolve"] else parts[3:])
        if name in self.files and COMMIT in parts:
            content = self.files[name]
            return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, *, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.server.requests.append((self.command, self.path, wanted))
        self.server.tokens.append((self.path, self.headers.get("Authorization")))
        if self.server.redirects and "/resolve/" in self.path and self.headers["Host"].startswith("127.0.0.1"):
            self.send_response(302)
            elsewhere = self.server.endpoint.replace("127.0.0.1", "localhost")
            for key, value in {"X-Repo-Commit": COMMIT, "ETag": '"x"', "Content-Length": "0"}.items():
                self.send_header(key, value)
            self.send_header("Location", f"{elsewhere}{self.path}?elsewhere")
            self.end_headers()
            return
        found = self.server.answer(self.path)
        if found is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        content, headers = found
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if wanted and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        limit = self.server.break_after
        if limit is not None and "ETag" in headers:
            self.wfile.write(content[start:limit])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(content[start:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


def test_every_source_names_files_of_a_repository() -> None:
    for source in SOURCES.values():
        assert len(source.repository.split("/")) == 2 and source.files
    assert hub.SOURCES["longlive"].files == ("models/longlive_base.pt", "models/lora.pt")
