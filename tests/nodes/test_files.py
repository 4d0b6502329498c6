"""Names in a workflow: only files that ComfyUI lists, and only choices that there are."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def files(monkeypatch, tmp_path):
    """nodes.files over folders of our own: "vae" lists a.safetensors, "vae_approx" lists b.pth and one that is gone."""
    for name in ("vae/a.safetensors", "vae_approx/b.pth", "vae_approx/sub/c.pth", "secret.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    listed = {"vae": ["a.safetensors"], "vae_approx": ["b.pth", "gone.pth", "sub/c.pth"]}

    def full_path(folder: str, name: str) -> str | None:
        path = tmp_path / folder / name
        return str(path) if path.is_file() else None

    stand_in = ModuleType("folder_paths")
    stand_in.get_filename_list = listed.__getitem__
    stand_in.get_full_path = full_path
    monkeypatch.setitem(sys.modules, "folder_paths", stand_in)
    name = "diagdistill_pack.nodes.files"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_the_first_folder_that_lists_it(files, tmp_path):
    assert files.chosen_file(("vae_approx", "vae"), "a.safetensors") == tmp_path / "vae" / "a.safetensors"
    assert files.chosen_file(("vae_approx", "vae"), "b.pth") == tmp_path / "vae_approx" / "b.pth"


def test_a_workflow_from_another_system_has_other_slashes(files, tmp_path):
    assert files.chosen_file(("vae_approx",), "sub\\c.pth") == tmp_path / "vae_approx" / "sub" / "c.pth"
    assert files.file_fault("vae_name", "sub/c.pth", ["sub\\c.pth"]) is True


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "gone.pth", "", "B.PTH"])
def test_what_is_not_listed_is_not_opened_even_if_it_exists(files, name):
    with pytest.raises(ValueError, match="models/vae_approx or models/vae"):
        files.chosen_file(("vae_approx", "vae"), name)


def test_faults_name_the_input(files):
    assert files.file_fault("vae_name", "a.safetensors", ["a.safetensors"]) is True
    fault = files.file_fault("vae_name", "../x", ["a.safetensors"])
    assert fault.startswith("vae_name: ") and "'../x'" in fault
    assert files.choice_fault("dtype", "bf16", ("bf16", "fp16")) is True
    assert files.choice_fault("dtype", "int3", ("bf16", "fp16")) == (
        "dtype: there is no 'int3'; choose one of bf16, fp16"
    )


def test_what_another_node_brings_is_no_fault(files):
    assert files.file_fault("vae_name", None, []) is True
    assert files.choice_fault("dtype", None, ()) is True


def test_the_first_fault_counts(files):
    assert files.first_fault() is True
    assert files.first_fault(True, "a: wrong", "b: wrong") == "a: wrong"


def test_a_changed_file_has_another_mark(files, tmp_path):
    path: Path = tmp_path / "vae" / "a.safetensors"
    before = files.file_mark(path)
    assert files.file_mark(path) == before
    os.utime(path, ns=(1, 1))
    touched = files.file_mark(path)
    assert touched != before
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert files.file_mark(path) != touched
