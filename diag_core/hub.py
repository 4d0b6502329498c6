"""Downloads of published weights, by a short name; only ever when asked for.

Files keep their path in the repository, under the target folder. What arrived before an interruption is kept and the
rest fetched by the next call. A record beside the weights says where they came from: resolved commit, sizes, SHA-256.

huggingface-hub tells what a repository holds, where its files lie and who is asking; the bytes are fetched here,
because its recent versions throw a part away when they stop.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from .replacing import replace_file

Progress = Callable[[str, int, int], None]  # file, bytes there, bytes in all (0 when not known)

_GITHUB_FILES = "https://raw.githubusercontent.com"
_GITHUB_API = "https://api.github.com"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_LISTED = 10
_RESUME = "What has arrived is kept: run this again to go on"


class DownloadError(ValueError):
    """A download that did not happen or is not what was promised: the message says which, and what to do."""


@dataclass(frozen=True)
class Source:
    """A repository and the files wanted of it, as shell patterns."""

    repository: str
    files: tuple[str, ...]
    github: bool = False  # plain files on GitHub instead of a model hub


_WAN = (
    "config.json",
    "diffusion_pytorch_model*",
    "Wan2.1_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "google/umt5-xxl/*",
)
_COMFYUI = ("split_files/vae/wan_2.1_vae.safetensors", "split_files/text_encoders/umt5_xxl_fp16.safetensors")

SOURCES: dict[str, Source] = {
    "wan-1.3b": Source("Wan-AI/Wan2.1-T2V-1.3B", _WAN),
    "wan-14b": Source("Wan-AI/Wan2.1-T2V-14B", _WAN),
    "wan-1.3b-diffusers": Source(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ("model_index.json", "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*"),
    ),
    "comfyui-1.3b": Source(
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        ("split_files/diffusion_models/wan2.1_t2v_1.3B_bf16.safetensors", *_COMFYUI),
    ),
    "comfyui-14b": Source(
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        ("split_files/diffusion_models/wan2.1_t2v_14B_bf16.safetensors", *_COMFYUI),
    ),
    # What ComfyUI needs beside a causal checkpoint: the text encoder at half the size, and the VAE.
    "comfyui-encoders": Source(
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
        ("split_files/vae/wan_2.1_vae.safetensors", "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
    ),
    "self-forcing": Source("gdhe17/Self-Forcing", ("checkpoints/self_forcing_dmd.pt",)),
    "self-forcing-ode": Source("gdhe17/Self-Forcing", ("checkpoints/ode_init.pt",)),
    "longlive": Source("Efficient-Large-Model/LongLive-1.3B", ("models/longlive_base.pt", "models/lora.pt")),
    "causal-forcing": Source("zhuhz22/Causal-Forcing", ("chunkwise/causal_forcing.pt",)),
    "causal-forcing-framewise": Source("zhuhz22/Causal-Forcing", ("framewise/causal_forcing.pt",)),
    "causvid": Source("tianweiy/CausVid", ("autoregressive_checkpoint/model.pt",)),
    "taehv": Source("madebyollin/taehv", ("taew2_1.pth",), github=True),
    "prompts": Source("gdhe17/Self-Forcing", ("vidprom_filtered_extended.txt",)),
}


@dataclass(frozen=True)
class DownloadedFile:
    """`name`: path in the repository, and under the target folder."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """What arrived, as the record beside the weights says too. `revision` was asked for, `commit` is what it meant."""

    name: str
    repository: str
    revision: str
    commit: str
    folder: Path
    files: tuple[DownloadedFile, ...]

    @property
    def record(self) -> Path:
        return record_path(self.folder, self.name)


@dataclass(frozen=True)
class _Job:
    """The arguments of `download`, looked up and filled in."""

    name: str
    repository: str
    revision: str
    patterns: tuple[str, ...]
    folder: Path
    endpoint: str | None
    report: Progress
    also_at: Callable[[str], Path] | None

    def present(self, file: str, recorded: DownloadedFile | None, promised: str | None) -> DownloadedFile | None:
        """The file, if it is there already and is what was recorded, or of the SHA-256 that is promised."""
        for path in (self.folder / file, *((self.also_at(file),) if self.also_at else ())):
            entry = _describe(file, path) if path.is_file() else None
            if entry is not None and (entry == recorded or entry.sha256 == promised):
                return entry
        return None


def record_path(folder: Path, name: str) -> Path:
    return folder / f"diagdistill-download-{name}.json"


def download(
    name: str,
    *,
    target_dir: str | Path,
    revision: str = "main",
    endpoint: str | None = None,
    files: Iterable[str] | None = None,
    progress: Progress | None = None,
    also_at: Callable[[str], Path] | None = None,
) -> Download:
    """Fetch published weights into `target_dir`.

    Args:
        name: a key of `SOURCES`.
        revision: branch, tag or commit.
        endpoint: address of another server that answers like the original one, such as a mirror.
        files: the files wanted instead of the source's own: shell patterns, or for GitHub plain paths.
        progress: told of every block that arrives.
        also_at: file -> a path where it may be already: what is right there is not fetched, and stays there.

    Raises:
        DownloadError: an unknown name, a library that is missing, no network, no such file, a wrong checksum.
    """
    if name not in SOURCES:
        raise DownloadError(f"there is no download named {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name]
    patterns = source.files if files is None else tuple(files)
    folder = Path(target_dir)
    report = progress or (lambda file, done, total: None)
    job = _Job(name, source.repository, revision, patterns, folder, endpoint, report, also_at)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        commit, fetched = _from_github(job) if source.github else _from_hub(job)
        result = Download(name, source.repository, revision, commit, folder, fetched)
        content = {**asdict(result), "folder": None}
        del content["folder"]  # it may be moved
        part = result.record.with_suffix(".part")
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        replace_file(part, result.record)
    except OSError as error:
        raise DownloadError(f"{folder}: it cannot be written ({error.strerror or error})") from error
    return result


def _from_hub(job: _Job) -> tuple[str, tuple[DownloadedFile, ...]]:
    try:
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise DownloadError(
            "downloads need huggingface-hub, which is not installed: pip install huggingface-hub, or this project with "
            "its extra `text`"
        ) from error
    try:
        info = huggingface_hub.HfApi(endpoint=job.endpoint).model_info(
            job.repository, revision=job.revision, files_metadata=True
        )
    except Exception as error:  # two HTTP libraries over its versions, and errors of its own
        raise DownloadError(f"{job.repository} at {job.revision!r} cannot be reached: {_first_line(error)}") from error
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    commit = str(info.sha)
    known = _recorded(job, commit)
    fetched = []
    for file in _select(job, list(there)):
        path = job.folder / file
        promised = getattr(there[file].lfs, "sha256", None)  # of large files; small ones have none
        entry = job.present(file, known.get(file), promised)
        if entry is None:
            try:
                url = huggingface_hub.hf_hub_url(job.repository, file, revision=commit, endpoint=job.endpoint)
                location = huggingface_hub.get_hf_file_metadata(url).location
            except Exception as error:
                raise DownloadError(f"{job.repository}, {file}: {_first_line(error)}. {_RESUME}") from error
            # Weights lie on another host, which must not see the user's token.
            own = urlsplit(location).netloc == urlsplit(url).netloc
            _fetch(location, build_hf_headers() if own else {}, path, commit, file, job.report)
            entry = _describe(file, path)
        if promised is not None and promised != entry.sha256:
            raise DownloadError(f"{path}: its SHA-256 is {entry.sha256}, not {promised}. Delete it and run this again")
        job.report(file, entry.size, entry.size)
        fetched.append(entry)
    return commit, tuple(fetched)


def _from_github(job: _Job) -> tuple[str, tuple[DownloadedFile, ...]]:
    commit = job.revision
    if not _COMMIT.fullmatch(job.revision):
        url = f"{job.endpoint or _GITHUB_API}/repos/{job.repository}/commits/{job.revision}"
        with _request(url, {"Accept": "application/vnd.github.sha"}) as response:
            commit = response.read(100).decode("ascii", "replace").strip()
        if not _COMMIT.fullmatch(commit):
            raise DownloadError(f"{url} did not answer with a commit; give a commit as the revision")
    known = _recorded(job, commit)
    fetched = []
    for file in job.patterns:
        _check_name(file)
        path = job.folder / file
        entry = job.present(file, known.get(file), None)
        if entry is None:
            _fetch(
                f"{job.endpoint or _GITHUB_FILES}/{job.repository}/{commit}/{file}", {}, path, commit, file, job.report
            )
            entry = _describe(file, path)
        job.report(file, entry.size, entry.size)
        fetched.append(entry)
    return commit, tuple(fetched)


class _BrokenConnection(Exception):
    """More is to come; what has arrived is on disk."""


class _AllThere(Exception):
    """Nothing is to come: only the part's name is still that of one."""


def _fetch(url: str, headers: dict[str, str], path: Path, commit: str, file: str, report: Progress) -> None:
    """Fetch `url` into `path`, going on from a part of the same commit where there is one, as long as bytes arrive."""
    part = path.with_name(f"{path.name}.{commit[:12]}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            _go_on(url, headers, part, before, file, report)
        except _AllThere:
            break
        except _BrokenConnection as error:
            done = part.stat().st_size
            if done <= before:
                raise DownloadError(f"{url}: the connection broke after {done} bytes ({error}). {_RESUME}") from error
        else:
            break
    replace_file(part, path)


def _go_on(url: str, headers: dict[str, str], part: Path, done: int, file: str, report: Progress) -> None:
    with _request(url, {**headers, "Range": f"bytes={done}-"} if done else headers) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if goes_on else 0
        length = int(response.headers.get("Content-Length") or 0)
        total = done + length if length else 0
        with open(part, "ab" if goes_on else "wb") as stream:
            while block := _next_block(response):
                stream.write(block)
                done += len(block)
                report(file, done, total)
    if total and done != total:
        raise _BrokenConnection(f"of {total}")


def _next_block(response: HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (HTTPException, OSError) as error:
        raise _BrokenConnection(_first_line(error)) from error


def _request(url: str, headers: dict[str, str]) -> HTTPResponse:
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url}: the endpoint must be an http or https address")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "comfyui-diagdistill", **headers})
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            if error.headers.get("Content-Range") == f"bytes */{headers['Range'][len('bytes=') : -1]}":
                raise _AllThere from error
            # Longer than the file, or the server does not say: begin anew.
            return _request(url, {key: value for key, value in headers.items() if key != "Range"})
        raise DownloadError(f"{url}: the server answers {error.code} ({error.reason})") from error
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f"{url} cannot be reached: {_first_line(error)}") from error


def _select(job: _Job, there: list[str]) -> list[str]:
    for pattern in job.patterns:
        if not any(fnmatchcase(file, pattern) for file in there):
            some = ", ".join(sorted(there)[:_LISTED]) or "nothing"
            raise DownloadError(
                f"{job.repository} has no file {pattern!r}; it has {some}{' ..' * (len(there) > _LISTED)}"
            )
    wanted = [file for file in there if any(fnmatchcase(file, pattern) for pattern in job.patterns)]
    for file in wanted:
        _check_name(file)
    return wanted


def _check_name(file: str) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or ":" in file:
        raise DownloadError(f"{file!r} would be written outside the target folder")


def _recorded(job: _Job, commit: str) -> dict[str, DownloadedFile]:
    try:
        content = json.loads(record_path(job.folder, job.name).read_bytes())
        return {file["name"]: DownloadedFile(**file) for file in content["files"] if content["commit"] == commit}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # no record, or not ours: the file is fetched again


def _describe(file: str, path: Path) -> DownloadedFile:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return DownloadedFile(file, path.stat().st_size, digest.hexdigest())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
