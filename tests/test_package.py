"""What is shipped: the wheel's contents and the size of the tracked tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_core_and_training_only(tmp_path):
    # From a copy: setuptools would leave a build folder in the tree, and take what an earlier one left there.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "outputs", "build", "dist", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"diag_core", "training"}


def tracked(*options: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so nothing is tracked: run this test in a clone")
    return {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def test_the_tracked_tree_stays_small():
    results = {name for name in tracked() if name.startswith("training/results/")}
    assert sum((ROOT / name).stat().st_size for name in tracked() - results) < 45e6
    assert all((ROOT / name).stat().st_size < 15e6 for name in results)  # as small as to be handed on by e-mail
    assert sum((ROOT / name).stat().st_size for name in results) < 45e6


def test_the_pack_for_comfyui_is_small_and_whole(tmp_path):
    # As `comfy node pack` does: what is tracked, but what .comfyignore names.
    names = tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")
    with zipfile.ZipFile(tmp_path / "pack.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        for name in sorted(names):
            pack.write(ROOT / name, name)
    assert (tmp_path / "pack.zip").stat().st_size < 40e6
    needed = {
        "__init__.py", "install.py", "requirements.txt", "pyproject.toml", "README.md", "LICENSE",
        "nodes/extension.py", "diag_core/__init__.py", "demo/dit.safetensors", "demo/vae.safetensors",
        "web/js/schedule_editor.js", "web/docs/DiagDistillSampler.md", "locales/zh/nodeDefs.json",
        "example_workflows/Demo on CPU.json", "example_workflows/Demo on CPU.jpg",
    }  # fmt: skip
    assert needed <= names
    assert not {name.split("/")[0] for name in names} & {"tests", "benchmarks", "runs", "outputs", ".venv", ".ci"}
