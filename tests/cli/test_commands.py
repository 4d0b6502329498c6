"""The command line as a whole, and its smaller commands."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import importlib
import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import decode

from diag_core import Forward
from diag_core.cli import COMMANDS, main
from diag_core.cli.pipeline import Progress
from diag_core.cli.progress import ProgressBar
from diag_core.hub import SOURCES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name, capsys):
    parser = argparse.ArgumentParser()
    importlib.import_module(f"diag_core.cli.{name}").add_arguments(parser)
    assert [action.dest for action in parser._actions if not action.help] == []
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m diag_core {name} [options]")


def test_help_names_all_commands_and_imports_none():
    code = "import sys; from diag_core.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n" \
           "print([m for m in sys.modules if m.startswith('diag_core.cli.') or m == 'av'])"  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in COMMANDS)
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"), [((), "required: COMMAND"), (("gener",), "invalid choice: 'gener'"), (("--x",), "")]
)
def test_a_wrong_command_is_one_line(command, arguments, said):
    result = command(*arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert said in result.err
    assert result.err.count("\n") == 1


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "diag_core", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument COMMAND: invalid choice: 'nonsense'")


def test_convert_writes_settings_that_generate_uses(command, generate, models):
    result = command(
        "convert", models / "bare.safetensors", "own.safetensors", "--preset", "longlive", "--dtype", "bfloat16"
    )
    assert result.code == 0, result.err
    assert result.out == "own.safetensors: written for comfyui; schedule 1000,750,500,250, shift 5, KV noise 0\n"
    assert {tensor.dtype for tensor in load_file("own.safetensors").values()} == {torch.bfloat16}
    result = generate("--checkpoint", "own.safetensors", "--prompt", "a 1")
    # How it is sampled is known; what is missing is its text encoder.
    assert (result.code, "needs --text-encoder" in result.err) == (2, True)


def test_convert_to_diffusers_and_back(command, models):
    assert command("convert", models / "dit.safetensors", "folder", "--to", "diffusers").code == 0
    assert json.loads(Path("folder/config.json").read_text())["_class_name"] == "WanTransformer3DModel"
    assert command("convert", "folder", "back.safetensors").code == 0
    first, last = load_file(models / "dit.safetensors"), load_file("back.safetensors")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_convert_replaces_nothing_unasked(command, models):
    Path("a.safetensors").write_bytes(b"mine")
    result = command("convert", models / "dit.safetensors", "a.safetensors")
    assert (result.code, result.err) == (
        2,
        "error: a.safetensors: it exists already; give another name, or --overwrite\n",
    )
    assert Path("a.safetensors").read_bytes() == b"mine"
    assert command("convert", models / "dit.safetensors", "a.safetensors", "--overwrite").code == 0
    assert load_file("a.safetensors")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.safetensors", "a.safetensors"), "none.safetensors: there is no such file"),
        (("dit", "a.bin"), "a.bin: ComfyUI opens .safetensors files"),
        (("dit", "a.safetensors", "--which", "critic"), "no entry 'critic'"),
        (("dit", "a.safetensors", "--lora", "none"), "none: there is no such file"),
        (("vae", "a.safetensors"), "vae.safetensors: "),
        (("dit",), "required: TARGET"),
    ],
)
def test_convert_says_what_is_wrong(command, models, arguments, said):
    files = {name: models / f"{name}.safetensors" for name in ("dit", "vae")}
    result = command("convert", *(files.get(argument, argument) for argument in arguments))
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_download_lists_what_there_is(command):
    result = command("download")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert "gdhe17/Self-Forcing: checkpoints/self_forcing_dmd.pt" in result.out


def test_download_prints_commit_and_checksums(command):
    commit, content = "a" * 40, b"weights" * 100
    served = Path("served/madebyollin/taehv") / commit / "taew2_1.pth"
    served.parent.mkdir(parents=True)
    served.write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory="served")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        result = command("download", "taehv", "--to", "w", "--revision", commit, "--endpoint", endpoint)
        missing = command("download", "taehv", "--to", "x", "--revision", "b" * 40, "--endpoint", endpoint)
        server.shutdown()
    assert result.code == 0, result.err
    assert f"madebyollin/taehv at commit {commit}" in result.out
    assert f"{hashlib.sha256(content).hexdigest()}  w/taew2_1.pth  700 bytes" in result.out
    assert Path("w/taew2_1.pth").read_bytes() == content
    assert "taew2_1.pth: 0.0 of 0.0 MiB" in result.err
    assert missing.code == 2
    assert "404" in missing.err


def test_an_unknown_download_is_refused(command):
    result = command("download", "wan-9b")
    assert result.code == 2
    assert "there is no download named 'wan-9b'" in result.err
    assert list(Path().iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_on_a_terminal_is_one_line_that_goes_away():
    stream = Terminal()
    bar = ProgressBar(stream)
    bar.update(Progress(0, 81, 0.5, None, Forward("step", 0, 2, 4)))
    assert stream.getvalue() == "\r[........................] 0/81 frames  chunk 1 step 2/4"
    bar.update(Progress(27, 81, 2.0, 0.7, Forward("recache", 3)))
    assert stream.getvalue().split("\r")[-1].rstrip() == (
        "[########................] 27/81 frames  13.5 FPS  first frame 0.70 s  chunk 4 recache"
    )
    bar.update(Progress(81, 81, 4.0, 0.7, None))
    bar.finish()
    assert "\n" not in stream.getvalue()
    # What the terminal shows after the last carriage returns: blanks, and the cursor at the left.
    assert stream.getvalue().endswith("\r")
    assert stream.getvalue().split("\r")[-2].strip() == ""


def test_a_short_line_covers_a_long_one():
    stream = Terminal()
    bar = ProgressBar(stream)
    bar.update(Progress(9, 81, 1.0, 0.7, Forward("step", 1, 1, 2)))
    long = len(stream.getvalue().split("\r")[-1])
    bar.update(Progress(9, 81, 1.0, 0.7, None))
    assert len(stream.getvalue().split("\r")[-1]) == long


def test_generate_through_the_whole_chain(command, generate, models):
    """A converted checkpoint, in a folder with its VAE, is all that is needed."""
    assert command("convert", models / "dit.safetensors", "own.safetensors").code == 0
    Path("vae.safetensors").symlink_to(models / "vae.safetensors")
    assert generate("--checkpoint", "own.safetensors", "--prompt", "a 1", "--out", "a.mp4").code == 0
    assert generate("--prompt", "a 1", "--out", "b.mp4").code == 0
    assert torch.equal(decode("a.mp4"), decode("b.mp4"))
