"""Run by ComfyUI-Manager after it has installed requirements.txt; by hand it also fetches weights, never unasked.

python install.py                    checks what the nodes need
python install.py --download NAME    fetches published weights into ComfyUI's models folder; without a name, a list
"""

from __future__ import annotations

import argparse
import errno
import importlib
import shutil
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
NEEDED = {"torch": "torch", "numpy": "numpy", "safetensors": "safetensors", "av": "av>=14"}
WEIGHTS = (
    "comfyui-1.3b",
    "comfyui-14b",
    "comfyui-encoders",
    "self-forcing",
    "longlive",
    "causal-forcing",
    "causal-forcing-framewise",
    "causvid",
    "taehv",
)


# Files whose name says what they are lie where the example workflows look for them, others in a folder of their own.
TELLING = ("self_forcing_dmd.pt", "longlive_base.pt")


def missing() -> list[str]:
    """What to install, as pip names it."""
    found = []
    for module, requirement in NEEDED.items():
        try:
            importlib.import_module(module)
        except ImportError:
            found.append(requirement)
    return found


def place(name: str, file: str) -> Path:
    """Where ComfyUI looks for a file of a download, below its models folder."""
    path = Path(file)
    if path.parts[0] == "split_files":
        return Path(*path.parts[1:])
    if name == "taehv":
        return Path("vae_approx", path.name)
    folder = "loras" if "lora" in path.name else "diffusion_models"
    if path.name in TELLING:
        return Path(folder, path.name)
    return Path(folder, name, path.name)


def download(name: str, models: Path) -> None:
    """Fetches `name` and moves every file to where ComfyUI lists it.

    What has arrived is kept and gone on with; what is in its place already, and right, stays there.
    """
    sys.path.insert(0, str(PACK))
    from diag_core.cli import tolerate_any_text
    from diag_core.cli.download import Report
    from diag_core.hub import download as fetch

    tolerate_any_text()
    report = Report()
    try:
        result = fetch(
            name,
            target_dir=models / ".diagdistill" / name,
            progress=report,
            also_at=lambda file: models / place(name, file),
        )
    finally:
        report.finish()
    for file in result.files:
        source, target = result.folder / file.name, models / place(name, file.name)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            move(source, target)
        print(f"{file.sha256}  {target}")  # noqa: T201 - a command line


def move(source: Path, target: Path) -> None:
    """Also to another disk, where a folder of models may be: `target` is the whole file, or stays as it was."""
    from diag_core.replacing import replace_file, replacing

    try:
        replace_file(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        print(f"copying to {target.parent}, on another disk", file=sys.stderr)  # noqa: T201
        with open(source, "rb") as old, replacing(target) as new:
            shutil.copyfileobj(old, new, 1 << 20)
        source.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--download", nargs="?", const="", metavar="NAME", help="one of: " + ", ".join(WEIGHTS))
    parser.add_argument(
        "--models", type=Path, default=PACK.parents[1] / "models", help="ComfyUI's models folder (default: %(default)s)"
    )
    options = parser.parse_args()
    lacking = missing()
    if lacking:
        wanted = " ".join(f'"{each}"' for each in lacking)  # quoted: a shell would take ">" for a file
        print(f"ComfyUI DiagDistill needs: {sys.executable} -m pip install {wanted}", file=sys.stderr)  # noqa: T201
        return 1
    if options.download is None:
        return 0
    if options.download not in WEIGHTS:
        print("choose one of: " + ", ".join(WEIGHTS), file=sys.stderr)  # noqa: T201
        return 2
    if not options.models.is_dir():
        print(f"{options.models} is no folder: give ComfyUI's models folder with --models", file=sys.stderr)  # noqa: T201
        return 2
    try:
        download(options.download, options.models)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
