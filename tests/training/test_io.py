from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.io import load_tensors, save_json, save_tensors


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = save_tensors(
        tmp_path / "new" / "x.safetensors", {"a": torch.arange(6).reshape(2, 3).T}, {"kind": "x", "n": 3}
    )
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["a"], torch.arange(6).reshape(2, 3).T)
    assert metadata["kind"] == "x" and metadata["n"] == "3"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = save_json(tmp_path / "result.json", {"step": 1})
    with pytest.raises(TypeError):
        save_json(path, {"step": 2, "more": object()})
    assert json.loads(path.read_text()) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
