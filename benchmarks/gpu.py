"""The whole table of speed on one GPU, in parts that a run may choose from and go on with.

    python -m benchmarks.gpu                          # all parts that have no result of today yet
    python -m benchmarks.gpu --parts checks,taehv     # these
    python -m benchmarks.gpu --minutes 9              # as many as are done in 9 minutes; the same again goes on
    python -m benchmarks.gpu --small                  # a rehearsal on the CPU with a tiny model
    python -m benchmarks.gpu --baseline CHECKOUT      # also the public implementation, from a clone of it

Each part is a process of its own, so that its peak of memory is its own, and writes one file of the results' folder:
DATE-GPU-PART.json, or PART.failed.txt with what it said. At the end a table of all parts that have a result is
printed, with the last words of those that failed, and saved as DATE-GPU-table.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import public_baseline, public_pipeline
from diag_core.bench.meter import choose_device

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 570  # seconds a part may take
_HOW_TO_BASELINE = (
    f"clone {public_pipeline.NAME}, install its requirements beside this project's, and give the folder with --baseline"
)
_SMALL = ("--preset", "small", "--size", "32x32", "--runs", "1")


@dataclass(frozen=True)
class Part:
    name: str
    what: str
    arguments: tuple[str, ...]
    """of `python -m diag_core bench`; none for the checks and the baseline"""
    minutes: float = 1.0
    """about what it takes, so that a bounded run does not begin what it cannot end"""


PARTS = (
    Part("checks", "what only a GPU can show to be right", (), 4),
    Part("taehv", "1.3B, tiny decoder", ("--text",), 2),
    Part("wan-vae", "1.3B, Wan's decoder", ("--decoder", "wan"), 2),
    Part("plain", "1.3B, plain path", ("--fast", "off"), 2),
    Part("plain-wan-vae", "1.3B, plain path, Wan's decoder", ("--fast", "off", "--decoder", "wan"), 3),
    Part("no-graphs", "1.3B, without CUDA graphs", ("--no-graphs",), 2),
    Part("no-kernels", "1.3B, PyTorch's operations in place of the kernels", ("--kernels", "torch"), 2),
    Part("sdpa", "1.3B, PyTorch's attention", ("--attention", "sdpa"), 2),
    Part("sage", "1.3B, SageAttention, without CUDA graphs", ("--attention", "sage"), 2),
    Part("fp8", "1.3B, FP8 linear layers", ("--fast", "on", "--fp8"), 2),
    Part("compiled", "1.3B, feed-forward layers by torch.compile", ("--fast", "on", "--compile"), 4),
    Part("self-forcing", "4 steps a chunk, clean commit, no window", ("--preset", "self-forcing"), 2),
    Part("self-forcing-plain", "the same, plain path", ("--preset", "self-forcing", "--fast", "off"), 3),
    Part("longlive", "4 steps a chunk, clean commit, window 12", ("--preset", "longlive"), 2),
    Part("batch-4", "1.3B, four videos at once", ("--preset", "batch-4"), 3),
    Part("minute", "1.3B, 60 seconds", ("--preset", "minute"), 5),
    Part("14b", "14B", ("--preset", "wan-14b"), 6),
    # 28,000 TFLOP a video, which one run after its warm-up tells well enough for a factor of hundreds.
    Part("wan-2.1", "undistilled, 50 steps, guidance", ("--preset", "wan-2.1", "--runs", "1", "--decoder", "none"), 6),
    Part("baseline", "the public implementation and this one", (), 8),
    Part("24-gb", "1.3B within 24 GB", ("--memory", "24")),
    Part("12-gb", "1.3B within 12 GB", ("--memory", "12")),
    # Pieces of one latent frame, as a card of that size would make them: this one has more that is free.
    Part(
        "12-gb-wan-vae", "1.3B within 12 GB, Wan's decoder",
        ("--memory", "12", "--decoder", "wan", "--decode-frames", "1"), 2,
    ),
)  # fmt: skip


def command(part: Part, file: Path, *, small: bool, baseline: Sequence[str] = ()) -> list[str]:
    """What measures a part and writes `file`; `small` in miniature, on the CPU.

    Args:
        baseline: arguments of `benchmarks.public_baseline`, for the part of that name."""
    if part.name == "baseline":
        return [sys.executable, "-m", "benchmarks.public_baseline", *baseline, "--json", str(file)]
    if part.name == "checks":
        return [
            sys.executable,
            "-m",
            "benchmarks.gpu_checks",
            "--out",
            str(file),
            *(("--device", "cpu") if small else ()),
        ]
    arguments = list(part.arguments)
    if small:
        for option in ("--preset", "--memory", "--runs"):
            if option in arguments:
                at = arguments.index(option)
                del arguments[at : at + 2]
        arguments = [argument for argument in arguments if argument != "--text"]  # 11 GB
        arguments = [*_SMALL, *(() if "--fast" in arguments else ("--fast", "on")), *arguments]
    return [sys.executable, "-m", "diag_core", "bench", *arguments, "--json", str(file)]


def run_part(part: Part, file: Path, *, small: bool, seconds: float, baseline: Sequence[str] = ()) -> bool:
    """Whether it has left a result."""
    print(f"== {part.name}: {part.what}", flush=True)
    failed = _failed(file)
    failed.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command(part, file, small=small, baseline=baseline),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        said, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        said, code = f"{_text(late.stdout)}\nended after {seconds:.0f} s", 124
    print(said, flush=True)
    if code:
        failed.write_text(said)
    return file.exists()


def _failed(file: Path) -> Path:
    """Where a part that should have written `file` leaves what it said."""
    return file.with_name(f"{file.stem}.failed.txt")


def failures(files: dict[str, Path]) -> str:
    """Markdown: the last words of each part that has no result because it failed."""
    lines = []
    for name, file in files.items():
        if not file.exists() and _failed(file).exists():
            said = _failed(file).read_text().strip().splitlines() or ["it said nothing"]
            lines.append(f"- {name}: no result. {said[-1]}\n")
    return "".join(["\n", *lines]) if lines else ""


def _text(said: str | bytes | None) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said or ""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the parts in rows, with what a figure must say of each."""
    columns = (
        "part", "path", "forwards", "DiT s", "DiT FPS", "decode s", "together FPS", "first frame ms", "steady chunk ms",
        "TFLOP/s", "of peak", "peak GB", "warm-up s", "error",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for part in PARTS:
        report = results.get(part.name)
        if report is not None and part.arguments:
            lines.append("| " + " | ".join([part.what, *_cells(report)]) + " |")
    return "\n".join(lines)


def _cells(report: dict[str, Any]) -> list[str]:
    seconds, rates, path, work = (report[name] for name in ("seconds", "frames_per_second", "path", "work"))

    def median(name: str, scale: float = 1.0, digits: int = 3) -> str:
        return "" if seconds[name] is None else f"{scale * seconds[name]['median']:.{digits}f}"

    attention = path.get("attention", report["setting"]["attention"])
    return [
        f"{path['taken']}{', graphs' if path['cuda_graphs'] else ''}, {attention}",
        str(report["setting"]["forwards"]),
        median("dit"),
        f"{rates['dit']:.1f}",
        median("decode"),
        f"{rates['together']:.1f}" if rates["together"] else "",
        median("first_frame", 1000, 0),
        median("steady_chunk", 1000, 0),
        f"{work['dit_tflop_per_second']:.1f}",
        f"{work['share_of_peak']:.1%}",
        f"{report['memory']['peak_bytes'] / 1e9:.2f}",
        f"{report['warm_up']['seconds']:.1f}",
        f"{path['error_of_a_forward']:.1e}" if "error_of_a_forward" in path else "",
    ]


def head(results: dict[str, dict[str, Any]], stem: str) -> str:
    """What all rows have in common, and what the checks found."""
    machine = next(iter(results.values()))["machine"]
    lines = [
        f"# {stem}",
        "",
        f"{machine['gpu'] or machine['cpu']}, torch {machine['torch']}, CUDA {machine.get('cuda')}. Random weights; "
        "text encoding not included; medians, warm-up excluded. Settings, spreads and kernels are in each part's file.",
        "",
    ]
    if "baseline" in results:
        lines += [public_baseline.sentence(results["baseline"]), ""]
    text = results.get("taehv", {}).get("text_encoding", {}).get("seconds")
    if text is not None:
        lines += [f"Encoding a prompt with umT5-XXL takes {1000 * text['median']:.1f} ms beside these.", ""]
    if "checks" in results:
        checks = results["checks"]["checks"]
        words = {True: "passed", False: "FAILED", None: "left out"}
        lines += [
            f"- {name}: {words[found['passed']]} {found.get('figure', found.get('why', ''))}"
            for name, found in checks.items()
        ]
        lines.append("")
    return "\n".join(lines)


def chosen(names: str | None) -> list[Part]:
    """Raises ValueError for a part that there is not."""
    if names is None:
        return list(PARTS)
    known = {part.name: part for part in PARTS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; choose from {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", metavar="A,B", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument(
        "--baseline", type=Path, metavar="CHECKOUT", help="of the public implementation, to compare with"
    )
    parser.add_argument(
        "--baseline-attention",
        choices=public_baseline.ATTENTION,
        default=public_baseline.ATTENTION[0],
        help="same: what theirs takes; own: each its own; sdpa: PyTorch's for both (default: %(default)s)",
    )
    parser.add_argument("--minutes", type=float, help="begin no part that is not done by then")
    parser.add_argument("--again", action="store_true", help="also parts that have a result of today")
    parser.add_argument("--small", action="store_true", help="a tiny model on the CPU: is all here that it takes?")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    parts, begin, good = chosen(options.parts), time.monotonic(), True
    device = choose_device("cpu" if options.small else "cuda")
    name = "cpu-rehearsal" if options.small else torch.cuda.get_device_name(device)
    stem = f"{datetime.datetime.now(datetime.timezone.utc).date()}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"
    options.out.mkdir(parents=True, exist_ok=True)
    files = {part.name: options.out / f"{stem}-{part.name}.json" for part in PARTS}
    for part in parts:
        left = 60 * options.minutes - (time.monotonic() - begin) if options.minutes else float("inf")
        if files[part.name].exists() and not options.again:
            continue
        if left < 60 * part.minutes:
            print(f"== {part.name}: no time left for it; the same command again goes on", flush=True)
            continue
        if part.name == "baseline" and (options.baseline is None or options.small):
            why = "as it takes a GPU" if options.small else f"to have it, {_HOW_TO_BASELINE}"
            print(f"== baseline: left out; {why}", flush=True)
            continue
        baseline = (str(options.baseline), "--attention", options.baseline_attention)
        good &= run_part(
            part, files[part.name], small=options.small, seconds=min(LIMIT, left), baseline=baseline
        )  # fmt: skip
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if results:
        text = f"{head(results, stem)}\n{table(results)}\n{failures(files)}"
        (options.out / f"{stem}-table.md").write_text(text)
        print(text)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"error: {error}")
