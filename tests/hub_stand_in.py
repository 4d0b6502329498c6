"""A stand-in, on this machine, for the servers that weights are fetched from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
            self.send_header("Content-Range", f"bytes */{len(content)}")
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


@contextlib.contextmanager
def serving() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
