"""Files that take another's place: all at once, and after a wait where another program has them open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diag_core import replacing


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """As on Windows: whatever is renamed is open elsewhere for the first three times; the waits between."""
    waits: list[float] = []
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if len(waits) < 3:
            raise PermissionError(13, "The process cannot access the file")
        rename(source, target)

    monkeypatch.setattr(replacing.os, "replace", refuse)
    monkeypatch.setattr(replacing.time, "sleep", waits.append)
    return waits


def test_a_file_that_is_open_elsewhere_is_waited_for(tmp_path: Path, busy: list[float], monkeypatch) -> None:
    monkeypatch.setattr(replacing, "_PATIENCE", 5.0)
    (tmp_path / "a").write_text("old")
    with replacing.replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]
    assert len(busy) == 3


def test_not_for_ever(tmp_path: Path, busy: list[float], monkeypatch) -> None:
    monkeypatch.setattr(replacing, "_PATIENCE", 0.0)
    (tmp_path / "a").write_text("old")
    with pytest.raises(PermissionError), replacing.replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_what_is_wrong_for_good_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(replacing, "_PATIENCE", 5.0)
    monkeypatch.setattr(replacing.time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(FileNotFoundError):
        replacing.replace_file(tmp_path / "a", tmp_path / "b")
