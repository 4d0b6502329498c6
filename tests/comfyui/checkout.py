"""Where the ComfyUI is that the tests drive. Run as a script it prints the path, for run.sh.

Looked for in this order: $COMFYUI_PATH, the ComfyUI in whose custom_nodes the pack lies, the user's cache folder; where
none is, the tested version is cloned into the cache folder from ComfyUI's public repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from platformdirs import user_cache_dir

VERSION = "0.3.64"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
PACK = Path(__file__).resolve().parents[2]
HOW = (
    f"get one with `git clone --depth 1 --branch v{VERSION} {REPOSITORY}` and set COMFYUI_PATH to it, then run "
    "`bash run.sh test`"
)


class NoComfyUI(RuntimeError):
    """None can be had; says why, and how to get one."""


def cached() -> Path:
    return Path(user_cache_dir("comfyui-diagdistill", appauthor=False)) / f"ComfyUI-{VERSION}"


def is_checkout(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy" / "sd.py").is_file()


def find() -> Path:
    """A ComfyUI, cloned if need be.

    Raises:
        NoComfyUI: there is none, and none could be cloned.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not is_checkout(Path(named)):
            raise NoComfyUI(f"COMFYUI_PATH is {named}, which is no ComfyUI (it has no main.py and comfy/sd.py)")
        return Path(named).resolve()
    enclosing = PACK.parents[1]
    if PACK.parent.name == "custom_nodes" and is_checkout(enclosing):
        return enclosing
    if not is_checkout(cached()):
        clone(cached())
    return cached()


def clone(target: Path) -> None:
    """The tested version into `target`, which appears only when it is whole."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30", "clone", "--quiet", "--depth", "1",
        "--branch", f"v{VERSION}", REPOSITORY, str(partial),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["git failed"])[-1]
            raise NoComfyUI(f"no ComfyUI was found and it could not be cloned ({reason}); {HOW}")
        shutil.rmtree(target, ignore_errors=True)  # what is there is no checkout
        partial.rename(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoComfyUI(f"no ComfyUI was found and it could not be cloned ({error}); {HOW}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    try:
        print(find())
    except NoComfyUI as fault:
        sys.exit(str(fault))
