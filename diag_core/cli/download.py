"""Fetch published weights by a short name; without a name, list what there is.

What has arrived is kept and gone on with. The resolved commit and the SHA-256 of every file are printed, and stored
beside the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_FOLDER = Path("weights")
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to fetch")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help=f"where it goes (default: {_FOLDER}/NAME)")
    parser.add_argument("--revision", default="main", metavar="R", help="branch, tag or commit (default: %(default)s)")
    parser.add_argument(
        "--endpoint", metavar="URL", help="another server that answers like the original one, such as a mirror"
    )


def run(options: argparse.Namespace) -> int:
    from ..hub import SOURCES, download

    if options.name is None:
        width = max(len(name) for name in SOURCES)
        for name, source in SOURCES.items():
            print(f"{name:<{width}}  {source.repository}: {', '.join(source.files)}")
        return 0
    report = Report()
    try:
        result = download(
            options.name,
            target_dir=options.to or _FOLDER / options.name,
            revision=options.revision,
            endpoint=options.endpoint,
            progress=report,
        )
    finally:
        report.finish()
    print(f"{result.repository} at commit {result.commit}")
    for file in result.files:
        print(f"{file.sha256}  {result.folder / file.name}  {file.size} bytes")
    print(f"recorded in {result.record}")
    return 0


class Report:
    """A line a file: drawn over on a terminal, elsewhere one when a file is complete."""

    def __init__(self) -> None:
        self.drawn = sys.stderr.isatty()
        self._length = 0

    def __call__(self, file: str, done: int, total: int) -> None:
        text = f"{file}: {done / _MIB:.1f} of {total / _MIB:.1f} MiB" if total else f"{file}: {done / _MIB:.1f} MiB"
        if self.drawn:
            sys.stderr.write("\r" + text.ljust(self._length))
            self._length = len(text)
        elif total and done >= total:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def finish(self) -> None:
        if self.drawn and self._length:
            sys.stderr.write("\n")
