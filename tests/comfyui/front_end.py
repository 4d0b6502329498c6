"""ComfyUI's real front end in a headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
SIZE = {"width": 1800, "height": 1000}
_READY = "() => !!(window.app?.graph && app.extensionManager && LiteGraph.registered_node_types.DiagDistillSampler)"
_MS = 120_000  # for anything to appear; a busy machine is slow, not wrong


def chromium() -> str | None:
    """A browser of the system that Playwright can drive."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class FrontEnd:
    """One tab. `complaints` collects what the pack's scripts threw in it."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        page.set_default_timeout(_MS)
        page.on("pageerror", self._heed)
        self.open()

    def open(self) -> None:
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function(_READY)
        self.page.wait_for_function("() => !document.querySelector('.p-blockui-mask, .comfyui-logo-spinner')")
        self.page.wait_for_timeout(1500)  # it restores the last workflow after all of that

    def _heed(self, error: Any) -> None:
        if "ComfyUI-DiagDistill" in (error.stack or ""):  # others' faults are not ours to test
            self.complaints.append(error.stack)

    def open_template(self, name: str) -> None:
        """Opens an example workflow from the template browser, as a user does."""
        self.page.get_by_role("button", name="Templates").first.click()
        # Its list of packs is inside what this finds, or beside it: that differs between front ends.
        browser = self.page.get_by_test_id("template-workflows-content")
        browser.wait_for()
        self.page.get_by_role("dialog").get_by_text("ComfyUI-DiagDistill").first.click()
        browser.get_by_test_id(f"template-workflow-{name}").click()
        browser.wait_for(state="hidden")
        self.page.wait_for_timeout(800)  # the editors ask the server what to draw

    def load(self, workflow: dict[str, Any]) -> None:
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow, true, true) }", workflow)
        self.page.wait_for_timeout(800)

    def saved(self) -> dict[str, Any]:
        """The graph as it would be saved."""
        graph: dict[str, Any] = self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
        return graph

    def prompt(self) -> dict[str, Any]:
        """What would be sent to be run."""
        prompt: dict[str, Any] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return prompt

    def missing(self) -> list[str]:
        """Types of nodes that the front end does not know."""
        types: list[str] = self.page.evaluate(
            "() => app.graph.nodes.map((n) => n.has_errors || !LiteGraph.registered_node_types[n.type] ? n.type : null)"
            ".filter((type) => type)"
        )
        return types

    def widget(self, kind: str, name: str) -> Any:
        return self.page.evaluate(
            "([kind, name]) => app.graph.nodes.find((n) => n.type === kind).widgets.find((w) => w.name === name).value",
            [kind, name],
        )

    def show(self, kinds: list[str] | None = None) -> dict[str, float]:
        """Zooms to all groups, or to the nodes of these types; where they are on the screen."""
        box: dict[str, float] = self.page.evaluate(
            """(kinds) => {
                const shown = kinds ? app.graph.nodes.filter((n) => kinds.includes(n.type)) : app.graph.groups;
                const title = kinds ? 34 : 0;
                const left = Math.min(...shown.map((n) => n.pos[0]));
                const top = Math.min(...shown.map((n) => n.pos[1])) - title;
                const width = Math.max(...shown.map((n) => n.pos[0] + n.size[0])) - left;
                const height = Math.max(...shown.map((n) => n.pos[1] + n.size[1])) - top;
                const [ds, room, margin, pad] = [app.canvas.ds, app.canvas.canvas.getBoundingClientRect(), 80, 12];
                const scale = Math.min(1.25, (room.width - 2 * margin) / width, (room.height - 2 * margin) / height);
                ds.scale = scale;
                ds.offset = [margin / scale - left, margin / scale - top];
                app.canvas.setDirty(true, true);
                return {
                    x: room.left + margin - pad, y: room.top + margin - pad,
                    width: width * scale + 2 * pad, height: height * scale + 2 * pad,
                };
            }""",
            kinds,
        )
        self.page.wait_for_timeout(800)
        return box

    def picture(self, path: Path, kinds: list[str] | None = None) -> None:
        """A screenshot of all groups, or of the nodes of these types, without what lies around them."""
        box = self.show(kinds)
        self.page.mouse.move(5, SIZE["height"] - 5)
        self.page.screenshot(path=str(path), clip=box)

    def start(self) -> None:
        self.page.get_by_test_id("queue-button").get_by_role("button").first.click()

    def run(self) -> None:
        """Presses the button and waits until what it started is over."""
        before = self._finished()
        self.start()
        end = time.monotonic() + _MS / 1000
        while self._finished() == before:
            assert time.monotonic() < end, "it does not end"
            self.page.wait_for_timeout(300)
        self.page.wait_for_timeout(800)

    def _finished(self) -> int:
        count: int = self.page.evaluate("async () => Object.keys(await (await fetch('/api/history')).json()).length")
        return count

    def play(self) -> list[float]:
        """Starts the video that is shown, waits until it has come a second far; its width, height and seconds."""
        video = self.page.locator("video").first
        video.evaluate("async (video) => { video.muted = true; await video.play() }")
        self.page.wait_for_function("() => document.querySelector('video').currentTime > 1")
        video.evaluate("(video) => video.pause()")
        about: list[float] = video.evaluate("(video) => [video.videoWidth, video.videoHeight, video.duration]")
        return about


@contextmanager
def front_end(executable: str, url: str) -> Iterator[FrontEnd]:
    """A tab with the front end of the server at `url`, at the settings that tests and pictures want."""
    from playwright.sync_api import sync_playwright

    settings = {
        "Comfy.TutorialCompleted": True,  # or the template browser opens over everything
        "Comfy.Minimap.Visible": False,
        "Comfy.Graph.CanvasInfo": False,
    }
    request = urllib.request.Request(f"{url}/settings", json.dumps(settings).encode(), method="POST")
    urllib.request.urlopen(request, timeout=60).close()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield FrontEnd(browser.new_page(viewport=SIZE), url)  # type: ignore[arg-type]
        finally:
            browser.close()
