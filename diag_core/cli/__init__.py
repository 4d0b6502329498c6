"""The command line, `python -m diag_core COMMAND`.

A command is a module here with `add_arguments(parser)` and `run(options) -> exit code`, imported only when called.
Exit codes: 0, 2 for what the user can put right (one line says what), 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import warnings
from typing import Any, NoReturn

COMMANDS = {
    "generate": "make a video from a prompt",
    "convert": "rewrite a checkpoint for ComfyUI or diffusers, a LoRA merged on the way",
    "download": "fetch published weights",
    "strip": "put frames of videos into one picture",
    "bench": "measure speed and memory on this machine",
}


class _UsageError(ValueError):
    pass


class _Parser(argparse.ArgumentParser):
    """Faults become an error of one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Only `--help` raises SystemExit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    tolerate_any_text()
    parser = _Parser(
        prog="python -m diag_core",
        description="Streaming video from Wan 2.1 models with a diagonal denoising schedule.",
        epilog="python -m diag_core COMMAND --help explains a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    module: Any = None
    try:
        for name, summary in COMMANDS.items():
            command = commands.add_parser(name, help=summary, allow_abbrev=False, usage="%(prog)s [options]")
            if name == chosen:
                module = importlib.import_module(f".{name}", __package__)
                command.description = module.__doc__
                module.add_arguments(command)
        options = parser.parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = module.run(options)
            return code
    except (ValueError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def tolerate_any_text() -> None:
    """A name that the console has no letters for is printed with escapes: it must not end what made the file.

    On Windows, pipes and redirected output have the letters of the system's language alone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"note: {_one_line(message)}", file=sys.stderr)


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
