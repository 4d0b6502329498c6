"""The import rules of the project, checked on every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMFY = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "execution", "server", "nodes"}


def imported(path: Path) -> list[tuple[int, str]]:
    """(leading dots, first name) of every import in a file, lazy ones included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name.split(".")[0]) for name in names]
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("diag_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_comfyui_no_nodes_and_no_training(path):
    depth = len(path.relative_to(ROOT / "diag_core").parts)
    for level, name in imported(path):
        assert level <= depth, f"{path}: a relative import leaves diag_core"
        if level == 0:
            assert name not in COMFY | {"training"}, f"{path} imports {name}"
            # ComfyUI loads the pack under its own path: an absolute import would find another copy, or none.
            assert name != "diag_core", f"{path}: imports inside diag_core are relative"


@pytest.mark.parametrize("path", files("training"), ids=lambda p: str(p.relative_to(ROOT)))
def test_training_knows_the_core_and_no_comfyui(path):
    for level, name in imported(path):
        assert level > 0 or name not in COMFY, f"{path} imports {name}"


def test_the_rules_would_notice_a_breach(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import comfy.utils\n    from ..training import x\n")
    assert imported(bad) == [(0, "comfy"), (2, "training")]


def test_importing_the_core_loads_nothing_heavy_or_optional():
    import subprocess
    import sys

    optional = ["av", "transformers", "huggingface_hub", "diffusers", "sklearn", "comfy"]
    code = f"import sys, diag_core; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
