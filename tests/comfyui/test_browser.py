"""The pack in ComfyUI's real front end: workflows, the editors, and the demo from the template browser to its video."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comfy_server import PACK
from conftest import skip_loudly
from front_end import BROWSERS, FrontEnd, chromium, front_end
from PIL import Image
from ui_workflow import to_prompt

from diag_core.settings import PRESETS

FOLDER = PACK / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SCHEDULE, TIMELINE = "DiagDistillSchedule", "DiagDistillPromptTimeline"
ENTER_WHILE_COMPOSING = {"key": "Enter", "isComposing": True, "bubbles": True}  # takes what an input method proposes


@pytest.fixture(scope="module")
def tab(server: Any) -> Iterator[FrontEnd]:
    executable = chromium()
    if executable is None:
        skip_loudly(f"the browser tests need one of {', '.join(BROWSERS)}; on Debian and Ubuntu: apt install chromium")
    if importlib.util.find_spec("playwright") is None:
        skip_loudly("the browser tests need playwright: pip install playwright, or use `bash run.sh test`")
    with front_end(str(executable), server.url) as opened:
        yield opened
        assert opened.complaints == []


def essence(graph: dict[str, Any]) -> dict[int, Any]:
    """What a saved graph says, without what the front end adds to it."""
    links = {link[0]: link[1:5] for link in graph["links"]}
    return {
        node["id"]: (
            node["type"],
            node.get("widgets_values") or [],
            node["pos"],
            [(entry["name"], links.get(entry.get("link"))) for entry in node.get("inputs", ())],
        )
        for node in graph["nodes"]
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_example_opens_whole_and_is_saved_as_it_was(tab, object_info, name):
    tab.open_template(name)
    on_disk = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert tab.missing() == []
    assert tab.page.get_by_text("Missing Node").count() == 0
    assert essence(tab.saved()) == essence(on_disk)
    sent = {number: (node["class_type"], node["inputs"]) for number, node in tab.prompt().items()}
    ours = {number: (node["class_type"], node["inputs"]) for number, node in to_prompt(on_disk, object_info).items()}
    assert sent == ours


def forwards(tab: FrontEnd) -> str:
    """What the grid says of the schedule."""
    said: str = tab.page.locator(".ddx-bar strong").inner_text()
    return said


def handles(tab: FrontEnd) -> list[list[float]]:
    """Where the steps of the grid are on the screen, chunk by chunk."""
    found: list[list[float]] = tab.page.evaluate(
        """() => [...document.querySelectorAll('.ddx-frame .ddx-handle')].map((handle) => {
            const box = handle.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })"""
    )
    return found


def drag(tab: FrontEnd, start: list[float], by: tuple[float, float]) -> None:
    mouse = tab.page.mouse
    mouse.move(*start)
    mouse.down()
    mouse.move(start[0] + by[0] / 2, start[1] + by[1] / 2)
    mouse.move(start[0] + by[0], start[1] + by[1])
    mouse.up()
    tab.page.wait_for_timeout(800)


def change_back(tab: FrontEnd, key: str, undo: int, redo: int) -> None:
    """Undoes or redoes; the front end then has so many steps to undo and to redo, and is done with restoring."""
    tab.page.keyboard.press(key)
    tab.page.wait_for_function(
        """([undo, redo]) => {
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
            return tracker.undoQueue.length === undo && tracker.redoQueue.length === redo && !tracker._restoringState;
        }""",
        arg=[undo, redo],
    )
    tab.page.wait_for_timeout(800)


def test_the_schedule_is_edited_in_the_grid_undone_saved_and_reloaded(tab, server):
    tab.open_template("Text to video 1.3B")
    tab.show([SCHEDULE])
    assert forwards(tab) == "17 forwards"
    before = essence(tab.saved())
    points = handles(tab)
    assert len(points) == 17  # 4 3 2 2 2 2 2

    drag(tab, points[1], (0, 25))  # the first chunk's second step, to less noise
    assert tab.widget(SCHEDULE, "preset") == "custom"
    first = tab.widget(SCHEDULE, "steps").split("|")[0].split(",")
    assert int(first[0]) == 1000 and 500 < int(first[1]) < 750

    tab.page.mouse.click(*handles(tab)[2], button="right")  # and its third one goes
    tab.page.wait_for_timeout(800)
    assert forwards(tab) == "16 forwards"
    edited = tab.widget(SCHEDULE, "steps")
    assert len(edited.split("|")[0].split(",")) == 3

    tab.page.keyboard.press("Delete")  # no step is chosen any more: nothing goes, the node least of all
    tab.page.wait_for_timeout(300)
    assert forwards(tab) == "16 forwards" and tab.widget(SCHEDULE, "steps") == edited

    tab.page.mouse.move(900, 900)
    change_back(tab, "Control+z", 1, 1)
    assert forwards(tab) == "17 forwards"
    change_back(tab, "Control+z", 0, 2)
    assert essence(tab.saved()) == before
    change_back(tab, "Control+y", 1, 1)
    change_back(tab, "Control+y", 2, 0)
    tab.page.wait_for_function(
        "([kind, steps]) => app.graph.nodes.find((n) => n.type === kind)"
        ".widgets.find((w) => w.name === 'steps').value === steps",
        arg=[SCHEDULE, edited],
    )

    tab.page.keyboard.press("Control+s")
    tab.page.get_by_role("dialog").get_by_role("textbox").fill("edited")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_role("dialog").wait_for(state="hidden")
    tab.page.wait_for_timeout(800)
    saved = json.loads((server.base / "user" / "default" / "workflows" / "edited.json").read_text(encoding="utf-8"))
    (node,) = (node for node in saved["nodes"] if node["type"] == SCHEDULE)
    assert node["widgets_values"][:2] == ["custom", edited]

    tab.open()  # a new visit; the front end restores what was open
    assert tab.widget(SCHEDULE, "steps") == edited
    tab.load(saved)
    assert essence(tab.saved()) == essence(saved)
    tab.show([SCHEDULE])
    assert forwards(tab) == "16 forwards" and len(handles(tab)) == 16


def choose_preset(tab: FrontEnd, name: str) -> tuple[str, float]:
    """As the user does in the sampler's menu; the steps and the KV noise that are then shown."""
    tab.page.evaluate(
        "([kind, name]) => { const node = app.graph.nodes.find((n) => n.type === kind);"
        " const widget = node.widgets.find((w) => w.name === 'preset');"
        " widget.value = name; widget.callback(name, app.canvas, node) }",
        ["DiagDistillSampler", name],
    )
    return tab.widget("DiagDistillSampler", "schedule_text"), tab.widget("DiagDistillSampler", "kv_noise")


def test_custom_begins_with_all_of_the_preset_before_it(tab):
    tab.open_template("Demo on CPU")
    steps = PRESETS["longlive"].schedule
    assert choose_preset(tab, "longlive") == ("", 0)
    assert choose_preset(tab, "custom") == (steps, 0)
    tab.load(tab.saved())
    assert tab.widget("DiagDistillSampler", "schedule_text") == steps
    assert choose_preset(tab, "diagdistill") == ("", 100)  # its own steps count, not those taken before
    tab.page.evaluate(
        "(kind) => { const { widgets } = app.graph.nodes.find((n) => n.type === kind);"
        " widgets.find((w) => w.name === 'schedule_text').value = '33' }",
        "DiagDistillSampler",
    )
    for name in ("custom", "longlive", "custom"):
        assert choose_preset(tab, name)[0] == "33"  # the user's own words stay


def test_a_switch_is_dragged_on_the_timeline_and_reloads(tab):
    tab.open_template("Prompt timeline")
    tab.show([TIMELINE])
    before = tab.widget(TIMELINE, "text")
    markers = tab.page.evaluate(
        """() => [...document.querySelectorAll('.ddx-marker')].map((marker) => {
            const box = marker.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })"""
    )
    assert len(markers) == 3
    drag(tab, markers[1], ((markers[2][0] - markers[1][0]) / 2, 0))
    lines = tab.widget(TIMELINE, "text").split("\n")
    old = before.split("\n")
    assert [line.partition(": ")[2] for line in lines] == [line.partition(": ")[2] for line in old]
    assert (lines[0], lines[2]) == (old[0], old[2])
    assert 3 < float(lines[1].partition("s:")[0]) < 4.5
    saved = tab.saved()
    tab.load(saved)
    assert essence(tab.saved()) == essence(saved)


@pytest.mark.parametrize("field", ["input", "textarea"])
def test_enter_ends_an_edit_of_the_timeline_but_not_while_a_character_is_composed(tab, field):
    tab.open_template("Prompt timeline")
    tab.show([TIMELINE])
    edited = tab.page.locator(f".ddx-row {field}").nth(1)
    edited.focus()
    edited.dispatch_event("keydown", ENTER_WHILE_COMPOSING)
    assert edited.evaluate("(field) => document.activeElement === field")
    edited.press("Enter")
    assert not edited.evaluate("(field) => document.activeElement === field")


def test_a_semicolon_that_a_time_follows_stays_in_its_prompt(tab):
    tab.open_template("Prompt timeline")
    tab.page.evaluate(
        "([kind, text]) => { const node = app.graph.nodes.find((n) => n.type === kind);"
        " const widget = node.widgets.find((w) => w.name === 'text');"
        " widget.value = text; widget.callback?.(text, app.canvas, node) }",
        [TIMELINE, "0s: a cat\\; 3s: no time\n5s: a dog"],
    )
    tab.show([TIMELINE])
    fields = tab.page.locator(".ddx-row textarea")
    assert [fields.nth(i).input_value() for i in range(fields.count())] == ["a cat; 3s: no time", "a dog"]
    fields.nth(1).fill("a fox; a hen; 4s: no time either")
    text = "0s: a cat\\; 3s: no time\n5s: a fox; a hen\\; 4s: no time either"
    assert tab.widget(TIMELINE, "text") == text


def test_a_new_user_opens_the_demo_runs_it_and_sees_a_playing_video(tab, tmp_path):
    tab.open_template("Demo on CPU")
    tab.show()
    tab.run()
    width, height, seconds = tab.play()
    assert (width, height) == (64, 64) and abs(seconds - 81 / 16) < 0.2
    assert tab.page.get_by_text("forwards)").count() > 0  # the sampler says how it was sampled
    tab.page.evaluate(
        "(kind) => { const { widgets } = app.graph.nodes.find((n) => n.type === kind);"
        " widgets.find((w) => w.name === 'window').value = 99 }",
        "DiagDistillSampler",
    )
    assert choose_preset(tab, "custom") == ("", 100)
    assert tab.widget("DiagDistillSampler", "window") == 12  # "custom" begins with what the checkpoint said of itself
    tab.picture(tmp_path / "demo.png")
    picture = np.asarray(Image.open(tmp_path / "demo.png").convert("RGB"))
    assert picture.shape[0] > 400 and picture.std() > 10


def test_a_prompt_typed_while_the_video_is_made_changes_it(tab, tmp_path):
    tab.open_template("Stream with live prompts")
    tab.show(["DiagDistillStream"])
    typed, told = tab.page.locator(".ddx-live input"), tab.page.locator(".ddx-live .ddx-grow").last
    tab.page.evaluate(  # long enough for a fast machine; it is stopped
        "(kind) => { const { widgets } = app.graph.nodes.find((n) => n.type === kind);"
        " widgets.find((w) => w.name === 'length').value = 3600 }",
        "DiagDistillStream",
    )
    assert typed.is_disabled() and "Run the graph" in typed.get_attribute("placeholder")
    tab.start()
    tab.page.wait_for_function("() => !document.querySelector('.ddx-live input').disabled")
    slots = tab.page.locator(".ddx-slots .ddx-button")
    assert slots.count() == 3
    typed.fill("a white 8 moves left fast and bounces, on a navy ground")
    typed.press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.ddx-live').innerText.includes('s: a white 8')")
    assert typed.input_value() == ""
    typed.fill("a half-typed")
    said = told.inner_text()
    typed.dispatch_event("keydown", ENTER_WHILE_COMPOSING)
    tab.page.wait_for_timeout(500)
    assert told.inner_text() == said and typed.input_value() == "a half-typed"
    slots.nth(1).click()
    tab.page.wait_for_function("() => document.querySelector('.ddx-live').innerText.includes('s: a green 5')")
    assert typed.input_value() == "a half-typed" and "(after " in told.inner_text()
    tab.open()  # the page is loaded anew while the video goes on
    tab.page.wait_for_function("() => document.querySelector('.ddx-live input')?.disabled === false")
    tab.show(["DiagDistillStream"])
    assert slots.count() == 3
    typed.fill("a red 1 moves up fast and bounces, on a navy ground")
    typed.press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.ddx-live').innerText.includes('s: a red 1')")
    tab.picture(tmp_path / "live.png", ["DiagDistillStream"])
    own = tab.page.evaluate("() => app.graph.serialize()")
    tab.open_template("Stream with live prompts")  # another workflow, whose nodes have the same numbers
    assert tab.page.locator(".ddx-live input").is_disabled()
    tab.load(own)
    tab.page.wait_for_function("() => document.querySelector('.ddx-live input')?.disabled === false")
    tab.page.evaluate("async () => { await fetch('/api/interrupt', { method: 'POST' }) }")
    tab.page.wait_for_function("() => document.querySelector('.ddx-live input').disabled")


def test_a_stream_inside_of_a_subgraph_takes_live_prompts(tab, tmp_path):
    tab.open_template("Stream with live prompts")
    tab.page.evaluate(
        "(kind) => { const node = app.graph.nodes.find((n) => n.type === kind);"
        " node.widgets.find((w) => w.name === 'length').value = 3600;"
        " const { node: outer } = app.graph.convertToSubgraph(new Set([node]));"
        " app.canvas.openSubgraph(outer.subgraph) }",
        "DiagDistillStream",
    )
    tab.page.wait_for_timeout(800)
    typed = tab.page.locator(".ddx-live input")
    assert typed.is_visible() and typed.is_disabled()
    tab.start()
    tab.page.wait_for_function("() => !document.querySelector('.ddx-live input').disabled")
    typed.fill("a white 8 moves left fast and bounces, on a navy ground")
    typed.press("Enter")
    tab.page.wait_for_function("() => document.querySelector('.ddx-live').innerText.includes('s: a white 8')")
    tab.page.evaluate("async () => { await fetch('/api/interrupt', { method: 'POST' }) }")
    tab.page.wait_for_function("() => document.querySelector('.ddx-live input').disabled")


def test_the_live_prompt_shows_only_where_a_clip_is_connected(tab):
    tab.open_template("Demo on CPU")
    tab.show(["DiagDistillSampler"])
    assert not tab.page.locator(".ddx-live").first.is_visible()
