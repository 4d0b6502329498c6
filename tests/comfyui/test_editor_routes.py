"""The editors' routes over HTTP: answers in JSON, and limits to what is sent."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest


def answer(server: Any, path: str, body: Any = None, **query: str) -> tuple[int, Any]:
    """(status, JSON) of a GET, or of a POST where there is a body; an iterator is sent without its length."""
    address = f"{server.url}/diagdistill/{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(address, data=body)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_what_the_editor_reads_it_can_write_back(server):
    status, seen = answer(server, "schedule", preset="custom", steps="4 3", cycle="3 2*2", after_switch="4", shift="5")
    assert status == 200 and seen["text"] == "4 3 (3 2*2)* @ 4" and len(seen["shown"]) == 7
    lists = {name: seen[name] for name in ("chunks", "cycle", "after_switch")}
    assert answer(server, "schedule", json.dumps(lists).encode()) == (
        200,
        {"steps": "43", "cycle": "322", "after_switch": "4"},
    )


def test_times_and_settings(server):
    status, read = answer(server, "timeline", text="0s: 一只猫\n2.5s: a dog", fps="16")
    assert status == 200 and [entry["prompt"] for entry in read["entries"]] == ["一只猫", "a dog"]
    status, told = answer(server, "presets")
    assert status == 200 and told["self-forcing"]["window"] == 0


def test_faults_are_answers_not_failures(server):
    assert answer(server, "schedule", steps="4x")[1]["position"] == 2
    assert answer(server, "timeline", text="0s: a\n2s:")[1]["line"] == 2
    assert answer(server, "schedule", b"no json")[0] == 400
    assert answer(server, "schedule", b"[" * 90_000)[0] == 400
    assert "error" in answer(server, "schedule", b"[]")[1]


@pytest.mark.parametrize("measured", [True, False], ids=["a length is told", "sent in pieces"])
def test_more_than_the_limit_is_refused(server, measured):
    def pieces() -> Iterator[bytes]:
        yield from [b" " * 60_000] * 2

    assert answer(server, "schedule", b" " * 120_000 if measured else pieces())[0] == 413
    assert answer(server, "presets")[0] == 200
