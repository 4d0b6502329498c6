"""The answers of the editors' routes, with what a browser might send that no editor would."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
from diagdistill_pack.diag_core import PRESETS, DiagonalSchedule
from diagdistill_pack.diag_core.settings import PRESETS as SETTINGS
from diagdistill_pack.nodes import routes
from diagdistill_pack.nodes.schedule_parts import CUSTOM


def test_a_preset_is_read_whatever_the_text_says():
    seen = routes.read_schedule({"preset": "paper-4322222", "steps": "no schedule"})
    assert seen["text"] == "4322222" and seen["forwards"] == 17 and len(seen["shown"]) == 7


def test_the_parts_are_told_apart_and_the_shown_chunks_are_theirs_in_order():
    seen = routes.read_schedule({"steps": "4", "cycle": "3 2", "after_switch": "5", "chunks": "4", "shift": "8"})
    schedule = DiagonalSchedule.parse("4 (3 2)* @ 5", 8.0)
    assert (seen["chunks"], seen["cycle"], seen["after_switch"]) == (
        schedule.chunks, schedule.cycle, schedule.after_switch,
    )  # fmt: skip
    assert seen["shown"] == [schedule.schedule_timesteps(chunk) for chunk in range(4)]
    assert seen["true"][1] == pytest.approx([1000 * sigma for sigma in schedule.sigmas(1)])


@pytest.mark.parametrize(
    ("query", "message", "position"),
    [
        ({"steps": "43x2"}, "steps: character 3", 3),
        ({"steps": "4", "cycle": "3 y"}, "cycle: character 3", 3),
        ({"steps": "4", "after_switch": "100,1000"}, "after_switch: character 5", 5),
        ({"steps": ""}, "steps: .*empty", 1),
        ({"preset": "none"}, "preset: there is no 'none'", None),
        ({"steps": "4", "shift": "0"}, "shift", None),
        ({"steps": "4", "shift": "nan"}, "shift", None),
        ({"steps": "4", "chunks": "many"}, "many", None),
    ],
)
def test_a_fault_is_told_with_its_place(query, message, position):
    answer = routes.read_schedule({"preset": CUSTOM, **query})
    assert set(answer) == {"error", "position"} and answer["position"] == position
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer["error"])


@pytest.mark.parametrize(("asked", "shown"), [("0", 1), ("-3", 1), ("1000000", routes.MAX_CHUNKS)])
def test_no_more_chunks_are_told_than_anyone_can_look_at(asked, shown):
    answer = routes.read_schedule({"steps": "2", "chunks": asked})
    assert len(answer["shown"]) == len(answer["true"]) == shown


@pytest.mark.parametrize(
    ("steps", "drawn"), [("2*300", True), ("2*2000", True), ("2*2001", False), ("64*10000", False)]
)
def test_a_schedule_too_long_to_draw_is_called_so_and_not_wrong(steps, drawn):
    answer = routes.read_schedule({"steps": steps})
    assert ("chunks" in answer) == drawn
    assert drawn or answer["error"].startswith("The schedule counts")


@pytest.mark.parametrize("name", PRESETS)
def test_lists_read_and_written_back_are_the_same_schedule(name):
    seen = json.loads(json.dumps(routes.read_schedule({"preset": name})))  # as the browser has them
    texts = routes.write_schedule({key: seen[key] for key in ("chunks", "cycle", "after_switch")})
    assert routes.read_schedule({"preset": CUSTOM, **texts})["text"] == PRESETS[name].text


@pytest.mark.parametrize(
    "lists",
    [
        [], "4", {"chunks": [[10**400]]}, {"chunks": [[1000]], "shift": 10**400}, {"chunks": [[1000]], "shift": None},
        {"chunks": [["1000"]]}, {"chunks": [[True]]}, {"chunks": [[]]}, {"chunks": [[1000]], "cycle": 3},
        {"chunks": [[float("nan")]]}, {"chunks": [{"1000": 1}]},
    ],
)  # fmt: skip
def test_whatever_is_sent_is_answered_in_words(lists):
    answer = routes.write_schedule(lists)
    assert set(answer) == {"error"} and answer["error"]


def test_times_in_every_unit_are_told_in_seconds_too():
    query = {"text": "0s: a\n40f: b\n12lf: c\n6c: d", "fps": "16", "chunk_frames": "3"}
    entries = routes.read_timeline(query)["entries"]
    assert [(entry["label"], entry["latent_frame"]) for entry in entries] == [
        ("0s", 0), ("40f", 10), ("12lf", 12), ("6c", 18),
    ]  # fmt: skip
    assert [entry["seconds"] for entry in entries] == [0, 37 / 16, 45 / 16, 69 / 16]
    assert json.dumps(entries)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ({"text": "0s: a\n2s: b\n1s: c"}, 3),
        ({"text": ""}, 1),
        ({"text": "0s: a", "fps": "0"}, None),
        ({"text": "0s: a", "fps": "inf"}, None),
        ({"text": "0s: a", "chunk_frames": "0"}, None),
        ({"text": "0s: a", "chunk_frames": "x"}, None),
    ],
)
def test_a_timeline_that_cannot_be_read_names_its_line(query, line):
    answer = routes.read_timeline(query)
    assert answer["error"] and answer["line"] == line and "entries" not in answer


def test_every_family_of_checkpoints_has_the_values_of_the_samplers_widgets():
    told = routes.presets()
    assert set(told) == set(SETTINGS)
    for name, values in told.items():
        assert values["window"] == (SETTINGS[name].window_frames or 0)  # 0 is everything
        assert values["sink"] == SETTINGS[name].sink_frames and values["cfg"] == SETTINGS[name].cfg
    assert json.dumps(told)


class Sent:
    """A request body that arrives in pieces, without saying how long it is."""

    def __init__(self, *pieces: bytes) -> None:
        self.content, self.pieces, self.read = self, pieces, 0

    async def iter_any(self):
        for piece in self.pieces:
            self.read += 1
            yield piece


def test_a_body_is_read_up_to_the_limit_and_no_further():
    assert asyncio.run(routes.read_body(Sent(b'{"chunks"', b": []}"))) == '{"chunks": []}'
    endless = Sent(*[b" " * routes.MAX_TEXT] * 5)
    assert asyncio.run(routes.read_body(endless)) is None and endless.read == 2


def test_without_a_server_nothing_is_registered(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(web=None))
    server = type("PromptServer", (), {})
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=server))
    routes.register()
    assert not hasattr(server, "instance")
