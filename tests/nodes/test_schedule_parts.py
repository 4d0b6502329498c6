"""The schedule node's fields, the editor's lists, and the routes between them."""

from __future__ import annotations

import pytest
from diagdistill_pack.diag_core import PRESETS, DiagonalSchedule, ScheduleError
from diagdistill_pack.nodes import routes
from diagdistill_pack.nodes.schedule_parts import CUSTOM, parts_of, schedule_of, true_timesteps
from diagdistill_pack.nodes.staircase import draw_staircase


def test_a_preset_leaves_the_text_aside():
    assert schedule_of("paper-4222222", "1", "", "", 5.0) == DiagonalSchedule.parse("4222222")
    assert schedule_of(CUSTOM, "33", "", "", 5.0) == DiagonalSchedule.parse("33")


def test_fields_of_their_own_say_what_the_notation_says():
    whole = DiagonalSchedule.parse("43 (3 2*2)* @ 4 3".replace("43 ", "4 3 "), 7.0)
    assert schedule_of(CUSTOM, "4 3", "3 2*2", "4 3", 7.0) == whole
    assert schedule_of(CUSTOM, "4 3 (3 2*2)* @ 4 3", "", "", 7.0) == whole


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("x", "4", "", ""), "preset: there is no 'x'"),
        ((CUSTOM, "4x", "", ""), "steps: character 2"),
        ((CUSTOM, "4 (2)*", "3", ""), "cycle: .*already"),
        ((CUSTOM, "4 @ 3", "", "3"), "after_switch: .*already"),
        ((CUSTOM, "4", "(3)*", ""), "cycle: give step lists only"),
        ((CUSTOM, "4", "", "100,1000"), "after_switch: character 5"),
    ],
)
def test_a_fault_names_its_field(fields, message):
    with pytest.raises(ScheduleError, match=message):
        schedule_of(*fields, 5.0)


@pytest.mark.parametrize(
    "text", ["4322222", "4 3 (3 2*6)*", "1000,750 | 900, @ 4 3", "50", *(p.text for p in PRESETS.values())]
)
def test_edited_lists_come_back_as_texts_that_read_the_same(text):
    schedule = DiagonalSchedule.parse(text)
    parts = parts_of(schedule.chunks, schedule.cycle, schedule.after_switch, 5.0)
    assert schedule_of(CUSTOM, parts["steps"], parts["cycle"], parts["after_switch"], 5.0) == schedule


def test_true_timesteps_are_the_methods():
    assert true_timesteps(DiagonalSchedule.parse("4"), 0) == pytest.approx([1000, 937.5, 833.333, 357.143], abs=1e-3)


def test_the_editor_reads_what_the_node_would_do():
    seen = routes.read_schedule({"preset": CUSTOM, "steps": "4 3", "cycle": "2", "shift": "5", "chunks": "4"})
    assert [len(steps) for steps in seen["shown"]] == [4, 3, 2, 2] and seen["forwards"] == 11
    assert [len(steps) for steps in seen["true"]] == [4, 3, 2, 2] and seen["text"] == "4 3 (2)*"
    fault = routes.read_schedule({"preset": CUSTOM, "steps": "4,,3"})
    assert "steps" in fault["error"] and fault["position"] == 3
    assert "error" in routes.read_schedule({"steps": "4", "shift": "much"})


@pytest.mark.parametrize(
    "lists", [None, {}, {"chunks": "4"}, {"chunks": [[100, 1000]]}, {"chunks": [[1000]], "shift": "x"}]
)
def test_lists_that_are_no_schedule_are_answered_with_an_error(lists):
    assert "error" in routes.write_schedule(lists)


def test_the_timeline_is_read_with_its_times():
    read = routes.read_timeline({"text": "0s: a red 3\n40f: a blue 7", "fps": "16"})["entries"]
    assert [(e["label"], e["prompt"], e["seconds"]) for e in read] == [
        ("0s", "a red 3", 0.0),
        ("40f", "a blue 7", 37 / 16),
    ]
    fault = routes.read_timeline({"text": "0s: a\n0.01s: b"})
    assert fault["line"] == 2 and "latent frame" in fault["error"]


def test_presets_are_shown_as_widgets_hold_them():
    assert routes.presets()["self-forcing"]["window"] == 0 and routes.presets()["diagdistill"]["kv_noise"] == 100


def test_the_picture_shows_a_column_a_chunk_and_more_steps_as_more_marks():
    narrow, wide = (draw_staircase(DiagonalSchedule.parse("4322222"), chunks) for chunks in (7, 20))
    assert narrow.shape[0] == 1 and narrow.shape[3] == 3 and float(narrow.min()) >= 0 and float(narrow.max()) <= 1
    assert wide.shape[2] > narrow.shape[2]
    assert draw_staircase(DiagonalSchedule.parse("4322222"), 5000).shape[2] < 2000  # the picture has an end
