"""The tiny model on disk, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_models import SETTINGS, Result, random_dit, random_vae

from diag_core.checkpoint import save_dit
from diag_core.cli import main


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dit.safetensors (the demo's prompt encoder), the same without settings, and vae.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    model = random_dit()
    save_dit(folder / "dit.safetensors", model, model.config, SETTINGS)
    save_dit(folder / "bare.safetensors", model, model.config)
    save_file(random_vae().state_dict(), folder / "vae.safetensors")
    return folder


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Runs a command in an empty folder, `tmp_path`/work."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def generate(command: Callable[..., Result], models: Path) -> Callable[..., Result]:
    """`generate` with the tiny model, 32x32 and 9 pixel frames unless told otherwise."""

    def run(*arguments: object) -> Result:
        given = [str(argument) for argument in arguments]
        defaults = {"--checkpoint": models / "dit.safetensors", "--size": "32x32", "--frames": "9"}
        if {"--seconds", "--latent-frames", "--resume"} & set(given):
            del defaults["--frames"]
        if "--resume" in given:
            del defaults["--size"]
        for name, value in defaults.items():
            if name not in given:
                given += [name, str(value)]
        return command("generate", *given)

    return run
