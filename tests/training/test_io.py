from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.io import load_state, load_tensors, save_state, save_tensors


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = save_tensors(
        tmp_path / "new" / "x.safetensors", {"a": torch.arange(6).reshape(2, 3).T}, {"kind": "x", "n": 3}
    )
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["a"], torch.arange(6).reshape(2, 3).T)
    assert metadata["kind"] == "x" and metadata["n"] == "3"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = save_state(tmp_path / "state.pt", {"step": 1})

    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_state(path, {"step": 2, "more": Unwritable()})
    assert load_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_no_state_yet(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none.pt") is None
