"""Makes the pictures of the documentation from what the pack really does in ComfyUI:

    python tests/comfyui/pictures.py thumbnails     example_workflows/*.jpg
    python tests/comfyui/pictures.py screenshots    docs/images/*.png
    python tests/comfyui/pictures.py icon           docs/images/icon.png, for ComfyUI's registry

The thumbnails come from running each workflow, with the embedded demo in place of models that have to be downloaded.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from checkout import find
from comfy_client import ComfyClient
from comfy_server import PACK, PACK_NAME, ComfyServer
from graphs import DEMO
from PIL import Image, ImageDraw

sys.path.insert(0, str(PACK))

from front_end import chromium, front_end
from random_models import write_models
from test_example_workflows import saved_video, video_frames
from ui_workflow import to_prompt

WORKFLOWS, IMAGES = PACK / "example_workflows", PACK / "docs" / "images"
TILES, TILE, GAP, GROUND = 3, 160, 4, (21, 22, 26)

# What the demo can be asked for, in place of each workflow's own prompts, in the order of its nodes.
PROMPTS = {
    "Demo on CPU": [],
    "Text to video 1.3B": ["a yellow 7 moves down fast and stops, on a black ground"],
    "Prompt timeline": [
        "0s: a green 5 moves right slowly and bounces, on a navy ground\n"
        "2.5s: a red 5 moves left slowly and bounces, on a navy ground\n"
        "5s: a yellow 5 moves up slowly and bounces, on a navy ground"
    ],
    "Image to video and extend": [
        "a red 3 moves right slowly and bounces, on a navy ground",
        "a cyan 3 moves left slowly and bounces, on a navy ground",
    ],
    "Long video": ["a cyan 0 moves up slowly and bounces, on a maroon ground"],
    "SamplerCustomAdvanced": ["an orange 2 moves left fast and bounces, on a forest ground", ""],
    "Stream with live prompts": [],
    "Save and go on": [],
}
DEMOS = ("Demo on CPU", "Stream with live prompts", "Save and go on")
TEXTS = ("CLIPTextEncode", "DiagDistillPromptTimeline")
SAMPLERS = ("DiagDistillSampler", "DiagDistillSamplerSelect")


def on_the_demo(prompt: dict[str, Any], texts: list[str], image: str) -> dict[str, Any]:
    """The same graph with the embedded model, encoder and decoder, and with its settings."""
    texts = list(texts)
    encoders = [number for number, node in prompt.items() if node["class_type"] == "CLIPLoader"]
    for node in prompt.values():
        kind, inputs = node["class_type"], node["inputs"]
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] in encoders:
                inputs[name] = [value[0], 1]
        if "width" in inputs:
            inputs["width"] = inputs["height"] = 64
        if kind in TEXTS and texts:
            inputs["text"] = texts.pop(0)
        elif kind == "DiagDistillModelLoader":
            inputs["model_name"] = DEMO
        elif kind in ("DiagDistillTinyVAELoader", "VAELoader"):
            node["class_type"], node["inputs"] = "DiagDistillTinyVAELoader", {"vae_name": DEMO}
        elif kind == "LoadImage":
            inputs["image"] = image
        elif kind in SAMPLERS:
            inputs |= {"preset": "from model", "schedule_text": ""}
            inputs.pop("schedule", None)
            if kind == "DiagDistillSampler":
                inputs.setdefault("negative", ["negative", 0])
    for number in encoders:
        prompt[number] = {"class_type": "DiagDistillDemoPrompt", "inputs": {"text": ""}}
    prompt["negative"] = {"class_type": "DiagDistillDemoPrompt", "inputs": {"text": ""}}
    return prompt


def mosaic(frames: list[np.ndarray]) -> Image.Image:
    """Pixel frames from first to last, evenly spaced, row by row."""
    side = TILES * TILE + (TILES - 1) * GAP
    sheet = Image.new("RGB", (side, side), GROUND)
    for tile, index in enumerate(np.linspace(0, len(frames) - 1, TILES * TILES).round().astype(int)):
        picture = Image.fromarray(frames[index]).resize((TILE, TILE), Image.Resampling.BICUBIC)
        row, column = divmod(tile, TILES)
        sheet.paste(picture, (column * (TILE + GAP), row * (TILE + GAP)))
    return sheet


def thumbnails(server: ComfyServer) -> None:
    client = ComfyClient(server.url)
    info = client.get_json("object_info")
    for name, texts in PROMPTS.items():
        prompt = to_prompt(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), info)
        if name not in DEMOS:
            prompt = on_the_demo(prompt, texts, "start.png")
        frames = video_frames(client.view(saved_video(client.succeed(prompt))))
        if name == "Demo on CPU":  # its first picture begins the video from a picture
            Image.fromarray(frames[0]).save(server.base / "input" / "start.png")
        mosaic(frames).save(WORKFLOWS / f"{name}.jpg", quality=88)
        print(WORKFLOWS / f"{name}.jpg")
    client.close()


def screenshots(server: ComfyServer) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with front_end(str(chromium()), server.url) as tab:
        for picture, name, kinds in (
            ("graph.png", "Text to video 1.3B", None),
            ("schedule.png", "Text to video 1.3B", ["DiagDistillSchedule"]),
            ("timeline.png", "Prompt timeline", ["DiagDistillPromptTimeline"]),
        ):
            tab.open_template(name)
            tab.picture(IMAGES / picture, kinds)
        tab.open_template("Demo on CPU")
        tab.show()
        tab.run()
        tab.play()
        tab.picture(IMAGES / "demo.png")
        tab.open_template("Stream with live prompts")
        tab.start()
        tab.page.wait_for_function("() => !document.querySelector('.ddx-live input').disabled")
        tab.page.locator(".ddx-slots .ddx-button").nth(1).click()
        tab.page.wait_for_function("() => document.querySelector('.ddx-live').innerText.includes('s: a green 5')")
        tab.page.wait_for_timeout(5000)  # until the pictures show it
        tab.picture(IMAGES / "live.png", ["DiagDistillStream"])
        tab.page.evaluate("async () => { await fetch('/api/interrupt', { method: 'POST' }) }")


def icon(side: int = 400) -> None:
    """The staircase of 4, 3, 2 and 2 steps."""
    sheet = Image.new("RGB", (side, side), GROUND)
    pen, margin, gap = ImageDraw.Draw(sheet), side * 0.14, side * 0.025
    column = (side - 2 * margin + gap) / 4
    for chunk, steps in enumerate(((1.0, 0.75, 0.5, 0.2), (1.0, 0.7, 0.2), (1.0, 0.2), (1.0, 0.2))):
        width = (column - gap) / len(steps)
        for step, level in enumerate(steps):
            left, top = margin + chunk * column + step * width, side - margin - level * (side - 2 * margin)
            colour = tuple(round(a + (b - a) * level) for a, b in zip((88, 196, 255), (64, 92, 214), strict=True))
            pen.rectangle((left, top, left + width, side - margin), fill=colour)
    IMAGES.mkdir(parents=True, exist_ok=True)
    sheet.save(IMAGES / "icon.png", optimize=True)


def main() -> None:
    kinds = {"thumbnails": thumbnails, "screenshots": screenshots}
    asked = sys.argv[1:]
    if not asked or not set(asked) <= {*kinds, "icon"}:
        sys.exit(__doc__)
    if "icon" in asked:
        icon()
    served = [kinds[kind] for kind in asked if kind in kinds]
    if not served:
        return
    comfyui, base = find(), Path(tempfile.mkdtemp(prefix="diagdistill-pictures-"))
    write_models(base / "models")
    (base / "input").mkdir()
    shutil.copy(comfyui / "input" / "example.png", base / "input")
    server = ComfyServer(comfyui, base, {PACK_NAME: PACK})
    try:
        for make in served:
            make(server)
    finally:
        server.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
