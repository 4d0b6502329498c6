"""What a browser does, in Python: prompts in over HTTP; events, previews and results back."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import websocket
from graphs import Graph

_PREVIEW_WITH_METADATA = 4
_SECONDS = 300  # the longest that any prompt of the tests may take


class Refused(Exception):
    """The server would not take a prompt. `messages`: node id -> what it says there."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.messages = {
            node: " ".join(f"{error['message']}: {error['details']}" for error in faults["errors"])
            for node, faults in (answer.get("node_errors") or {}).items()
        }
        super().__init__(self.messages or answer)


@dataclass
class Preview:
    node: str
    image: bytes

    def picture(self) -> Any:
        from PIL import Image

        return Image.open(BytesIO(self.image)).convert("RGB")


@dataclass
class Run:
    """One prompt. `events`: ("progress", node, value, max) and ("preview", node, index into previews), in order."""

    prompt_id: str
    outcome: str = ""  # "success", "error" or "interrupted" once it is over
    error: dict[str, Any] = field(default_factory=dict)  # node_id, node_type, exception_type, exception_message
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    previews: list[Preview] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    live: list[dict[str, Any]] = field(default_factory=list)  # what became of live prompts

    def progress(self, node: str) -> list[tuple[int, int]]:
        return [event[2:] for event in self.events if event[0] == "progress" and event[1] == node]

    @property
    def message(self) -> str:
        return str(self.error.get("exception_message", "")).strip()


class ComfyClient:
    """One browser tab: a client id with its websocket."""

    def __init__(self, url: str) -> None:
        self.url, self.client_id = url, uuid.uuid4().hex
        self._runs: dict[str, Run] = {}
        self._socket = websocket.WebSocket()
        self._socket.connect(f"{url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}", timeout=_SECONDS)
        self._socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        while self._next() != "feature_flags":  # the answer: from now on previews say whose they are
            pass

    def close(self) -> None:
        self._socket.close()

    # HTTP

    def get(self, path: str, **query: str) -> bytes:
        address = f"{self.url}/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        with urllib.request.urlopen(address, timeout=60) as answer:
            return bytes(answer.read())

    def get_json(self, path: str, **query: str) -> Any:
        return json.loads(self.get(path, **query))

    def post(self, path: str, data: dict[str, Any]) -> bytes:
        body, kind = json.dumps(data).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", body, kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def view(self, file: dict[str, str]) -> bytes:
        """A file that an output names."""
        return self.get("view", filename=file["filename"], subfolder=file["subfolder"], type=file["type"])

    def interrupt(self) -> None:
        self.post("interrupt", {})

    def queue(self) -> tuple[list[Any], list[Any]]:
        """(running, pending)."""
        state = self.get_json("queue")
        return state["queue_running"], state["queue_pending"]

    # Prompts

    def submit(self, graph: Graph | dict[str, Any]) -> str:
        """Puts a prompt into the queue; its id.

        Raises:
            Refused: with the messages at the nodes.
        """
        prompt = graph.nodes if isinstance(graph, Graph) else graph
        try:
            answer = json.loads(self.post("prompt", {"prompt": prompt, "client_id": self.client_id}))
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)) from error
        if answer.get("node_errors"):  # some outputs are fine and would run; no test wants half a prompt
            raise Refused(answer)
        prompt_id = str(answer["prompt_id"])
        self._runs.setdefault(prompt_id, Run(prompt_id))
        return prompt_id

    def wait(self, prompt_id: str) -> Run:
        """Reads events until the prompt is over."""
        run = self._runs[prompt_id]
        while not run.outcome:
            self._next()
        if run.outcome == "success":
            run.outputs = self._history(prompt_id)["outputs"]
        return run

    def wait_for_progress(self, prompt_id: str, node: str, value: int) -> None:
        """Reads events until the node has come so far.

        Raises:
            AssertionError: the prompt is over before.
        """
        run = self._runs[prompt_id]
        while not any(done >= value for done, _ in run.progress(node)):
            assert not run.outcome, f"it was over before: {run}"
            self._next()

    def run_of(self, prompt_id: str) -> Run:
        """As far as its events have been read."""
        return self._runs[prompt_id]

    def wait_for_live(self, prompt_id: str, state: str, times: int = 1) -> dict[str, Any]:
        """Reads events until the pack has told of live prompts so many times what it calls `state`."""
        run = self._runs[prompt_id]
        while len(told := [event for event in run.live if event["state"] == state]) < times:
            assert not run.outcome, f"it was over before: {run}"
            self._next()
        return told[-1]

    def drain(self) -> None:
        """Reads the events that have arrived."""
        self._socket.settimeout(0.2)
        try:
            while True:
                self._next()
        except websocket.WebSocketTimeoutException:
            pass
        finally:
            self._socket.settimeout(_SECONDS)

    def run(self, graph: Graph | dict[str, Any]) -> Run:
        return self.wait(self.submit(graph))

    def succeed(self, graph: Graph | dict[str, Any]) -> Run:
        run = self.run(graph)
        assert run.outcome == "success", f"{run.error.get('node_type')}: {run.message}"
        return run

    def _history(self, prompt_id: str) -> dict[str, Any]:
        # It is written a moment after the event that says the prompt is over.
        end = time.monotonic() + 30
        while time.monotonic() < end:
            history = self.get_json(f"history/{prompt_id}")
            if prompt_id in history:
                return dict(history[prompt_id])
            time.sleep(0.02)
        raise TimeoutError(f"prompt {prompt_id} is over, and not in the history")

    def _next(self) -> str:
        """Reads one event into its run; its type."""
        received = self._socket.recv()
        if isinstance(received, bytes):
            return self._preview(received)
        event = json.loads(received)
        kind, data = str(event["type"]), event["data"]
        prompt_id = data.get("prompt_id")
        if prompt_id is None:
            return kind
        run = self._runs.setdefault(prompt_id, Run(prompt_id))
        if kind == "progress":
            run.events.append(("progress", data["node"], data["value"], data["max"]))
        elif kind == "diagdistill.live":
            run.live.append(data)
        elif kind == "execution_cached":
            run.cached = data["nodes"]
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            run.outcome = kind.removeprefix("execution_")
            run.error = data if kind == "execution_error" else {}
        return kind

    def _preview(self, received: bytes) -> str:
        (kind,) = struct.unpack(">I", received[:4])
        assert kind == _PREVIEW_WITH_METADATA, f"a binary event of type {kind}"
        (length,) = struct.unpack(">I", received[4:8])
        about = json.loads(received[8 : 8 + length])
        run = self._runs.setdefault(about["prompt_id"], Run(about["prompt_id"]))
        run.events.append(("preview", about["node_id"], len(run.previews)))
        run.previews.append(Preview(about["node_id"], received[8 + length :]))
        return "preview"
