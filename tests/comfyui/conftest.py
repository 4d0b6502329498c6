"""One ComfyUI server for all tests here, with the pack and small random models in it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import NoComfyUI, find
from comfy_client import ComfyClient, Run
from comfy_server import PACK, PACK_NAME, ComfyServer
from graphs import Graph
from random_models import write_models

# What ComfyUI imports and this project does not ask for by itself.
_NEEDED = ("torchvision", "torchaudio", "torchsde", "aiohttp", "alembic", "scipy", "kornia", "comfyui_frontend_package")
_missing: list[str] = []  # why tests were skipped; one line each at the end of the run


def skip_loudly(reason: str) -> None:
    if reason not in _missing:
        _missing.append(reason)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason in _missing:
        terminalreporter.write_line(f"NOT TESTED IN COMFYUI: {reason}", red=True, bold=True)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """A ComfyUI that this Python can run."""
    try:
        path = find()
    except NoComfyUI as error:
        skip_loudly(str(error))
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        skip_loudly(f"ComfyUI needs {', '.join(lacking)}: use `bash run.sh test`, or install {path}/requirements.txt")
    return path


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfyui")
    write_models(base / "models")
    (base / "input").mkdir()
    shutil.copy(comfyui / "input" / "example.png", base / "input" / "example.png")
    small_umt5 = Path(__file__).parent / "small_umt5"
    running = ComfyServer(comfyui, base, {PACK_NAME: PACK, "small_umt5": small_umt5})
    yield running
    running.close()
    shutil.rmtree(base / "models", ignore_errors=True)  # a quarter of a gigabyte


@pytest.fixture(scope="session")
def object_info(server: ComfyServer) -> dict[str, Any]:
    client = ComfyClient(server.url)
    info: dict[str, Any] = client.get_json("object_info")
    client.close()
    return info


@pytest.fixture
def client(server: ComfyServer) -> Iterator[ComfyClient]:
    """A tab of its own for each test; afterwards the server must still be there."""
    opened = ComfyClient(server.url)
    yield opened
    opened.close()
    assert server.alive(), server.log()[-4000:]


@pytest.fixture
def graph(object_info: dict[str, Any]) -> Callable[[], Graph]:
    """Makes empty graphs."""
    return lambda: Graph(object_info)


@pytest.fixture
def latents(client: ComfyClient) -> Callable[[Run, Any], Any]:
    """(run, SaveLatent node) -> the tensor it saved."""
    from safetensors.torch import load

    def read(run: Run, node: Any) -> Any:
        (file,) = run.outputs[node.id]["latents"]
        return load(client.view(file))["latent_tensor"]

    return read
