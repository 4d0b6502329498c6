"""Every example workflow is whole and runs: the demo as it is, the others small, on random models of that layout."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from comfy_server import PACK
from PIL import Image
from ui_workflow import to_prompt

FOLDER = PACK / "example_workflows"
NAMES = (
    "Demo on CPU",
    "Text to video 1.3B",
    "Prompt timeline",
    "Image to video and extend",
    "Long video",
    "SamplerCustomAdvanced",
    "Stream with live prompts",
    "Save and go on",
)
SAMPLERS = ("DiagDistillSampler", "SamplerCustomAdvanced", "DiagDistillStream")
SIZE = 64  # pixels
SHORTER = 0.4  # 7.5 s become 3 s, which still holds the timeline's first switch
LONGEST = 12.0


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def small(prompt: dict[str, Any]) -> dict[str, Any]:
    for node in prompt.values():
        inputs = node["inputs"]
        if "width" in inputs:
            inputs["width"] = inputs["height"] = SIZE
        if "length" in inputs:
            inputs["length"] = min(SHORTER * inputs["length"], LONGEST)
    return prompt


def video_frames(data: bytes) -> list[np.ndarray]:
    with av.open(BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_folder_holds_these_workflows_each_with_a_picture():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(NAMES)
    for name in NAMES:
        picture = Image.open(FOLDER / f"{name}.jpg")
        assert picture.format == "JPEG" and min(picture.size) >= 256
        assert (FOLDER / f"{name}.jpg").stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_its_links_hold(name):
    saved = workflow(name)
    nodes = {node["id"]: node for node in saved["nodes"]}
    assert len(nodes) == len(saved["nodes"]) and saved["last_node_id"] >= max(nodes)
    links = {link[0]: link for link in saved["links"]}
    assert len(links) == len(saved["links"]) and saved["last_link_id"] >= max(links)
    for number, source, output, target, slot, kind in saved["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in out["links"] and into["link"] == number
        assert out["type"] == kind and kind in into["type"].split(",")
    linked = {entry["link"] for node in nodes.values() for entry in node.get("inputs", ())} - {None}
    assert linked == set(links)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_for_and_its_nodes_have_their_names(name, object_info):
    saved = workflow(name)
    notes = [node for node in saved["nodes"] if node["type"] in ("Note", "MarkdownNote")]
    assert notes and all(len(note["widgets_values"][0]) > 100 for note in notes)
    assert not [node["title"] for node in saved["nodes"] if node.get("title") in object_info]


@pytest.mark.parametrize("name", NAMES)
def test_self_forcings_weights_are_sampled_as_they_were_distilled_or_its_note_says_so(name, object_info):
    prompt = to_prompt(workflow(name), object_info)
    if not any(node["inputs"].get("model_name") == "self_forcing_dmd.pt" for node in prompt.values()):
        return
    if name == "Text to video 1.3B":  # it shows the diagonal schedule
        (note,) = (node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote")
        assert "distilled for 4 steps in every chunk" in note["widgets_values"][0]
        return
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"].startswith("DiagDistillSampler")]
    assert samplers
    seconds = sum(node["inputs"].get("length", 0) for node in prompt.values())
    for inputs in samplers:
        assert inputs["schedule_text"] == ""
        if inputs["preset"] == "custom":
            steps = prompt[inputs["schedule"][0]]["inputs"]
            assert (steps["preset"], steps["cycle"], steps["after_switch"]) == ("self-forcing", "", "")
            assert (inputs["kv_noise"], inputs["window"], inputs["sink"]) == (0, 12, 3)
        else:
            assert inputs["preset"] in ("from model", "longlive") and "schedule" not in inputs
        # Without a window memory grows with the length, and positions beyond the 5 seconds of training are all seen.
        assert seconds <= 5 or inputs["preset"] != "from model"


@pytest.mark.parametrize("name", NAMES)
def test_seeds_stay_as_they_are(name):
    # The same workflow gives the same video; and an extension wants the seed of its beginning.
    for node in workflow(name)["nodes"]:
        assert not {"randomize", "increment", "decrement"} & set(map(str, node.get("widgets_values") or ()))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_on_top_of_anything(name):
    boxes = [(node["pos"], node["size"], node["type"]) for node in workflow(name)["nodes"]]
    title = 30
    for i, ((ax, ay), (aw, ah), a) in enumerate(boxes):
        for (bx, by), (bw, bh), b in boxes[i + 1 :]:
            apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - title or by + bh <= ay - title
            assert apart, f"{a} and {b} overlap"


@pytest.mark.parametrize("name", NAMES)
def test_no_node_sticks_out_of_its_group(name):
    saved = workflow(name)
    out = []
    for node in saved["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        for left, top, across, down in (group["bounding"] for group in saved["groups"]):
            begins = left <= x < left + across and top <= y < top + down
            if begins and (x + width > left + across or y + height > top + down):
                out.append(node.get("title") or node["type"])
    assert out == []


def test_the_demo_runs_as_it_is(client, object_info):
    prompt = to_prompt(workflow("Demo on CPU"), object_info)
    run = client.succeed(prompt)
    assert len(run.previews) == 7
    frames = video_frames(client.view(saved_video(run)))
    assert len(frames) == 81 and frames[0].shape == (64, 64, 3)
    # A red digit on navy: something bright and red on something dark and blue, and it moves.
    reds = [np.argwhere((frame[..., 0] > 120) & (frame[..., 2] < 100)) for frame in frames]
    assert all(len(red) > 20 for red in reds)
    columns = [red[:, 1].mean() for red in reds]
    assert max(columns) - min(columns) > 8
    corner = np.median(np.stack(frames)[:, :4, :4], axis=(0, 1, 2))
    assert corner[2] > corner[0] and corner.max() < 150


@pytest.mark.parametrize("name", NAMES[1:])
def test_it_runs(client, object_info, name):
    prompt = small(to_prompt(workflow(name), object_info))
    samplers = [i for i, n in prompt.items() if n["class_type"] in SAMPLERS]
    run = client.succeed(prompt)
    assert {preview.node for preview in run.previews} == set(samplers)
    seconds = sum(node["inputs"]["length"] for node in prompt.values() if "length" in node["inputs"])
    frames = video_frames(client.view(saved_video(run)))
    assert abs(len(frames) - 16 * seconds) <= 12  # to whole latent frames
    assert frames[0].shape == (SIZE, SIZE, 3) and np.std(frames[-1]) > 1


def saved_video(run: Any) -> dict[str, str]:
    videos = [file for output in run.outputs.values() for file in output.get("images", ())]
    (file,) = (file for file in videos if file["filename"].endswith(".mp4"))
    return dict(file)
