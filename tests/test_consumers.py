"""Whoever reads a stream may be slow, stop, crash or forget it, over and over: nothing is left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from long_stream import pictures, tensors_held, tiny_dit, tiny_vae

from diag_core.mp4_writer import Mp4Writer, part_path
from diag_core.pipeline import VideoPipeline

REPETITIONS = 20
PICTURES = 33  # of three chunks


class Crash(Exception):
    pass


def reads_slowly(stream: VideoPipeline, writer: Mp4Writer) -> None:
    """To its end."""
    for frames in stream.frames():
        time.sleep(0.02)
        writer.write(frames.pixels)


def stops(stream: VideoPipeline, writer: Mp4Writer) -> None:
    frames = stream.frames()
    writer.write(next(frames).pixels)
    frames.close()


def forgets(stream: VideoPipeline, writer: Mp4Writer) -> None:
    for frames in stream.frames():
        writer.write(frames.pixels)
        break


def crashes(stream: VideoPipeline, writer: Mp4Writer) -> None:
    for frames in stream.frames():
        writer.write(frames.pixels)
        raise Crash


def crashes_in_the_sampler(stream: VideoPipeline, writer: Mp4Writer) -> None:
    def report(forward: object) -> None:
        if getattr(forward, "chunk", 0) == 1:
            raise Crash

    stream.on_forward = report
    for frames in stream.frames():
        writer.write(frames.pixels)


def open_files() -> list[str]:
    """Of this process; the empty list where the system does not tell."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return []
    targets = []
    for name in os.listdir(folder):
        try:
            targets.append(os.readlink(folder / name))
        except FileNotFoundError:
            continue  # the one that listed the folder
    return sorted(targets)


def threads() -> int:
    """FFmpeg's too, where the system tells."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.is_dir() else threading.active_count()


def settled(measure: Callable[[], int], most: int) -> int:
    """A thread of the system's is gone a moment after it has ended."""
    end = time.monotonic() + 5
    while measure() > most and time.monotonic() < end:
        time.sleep(0.01)
    return measure()


@pytest.mark.parametrize("consume", [reads_slowly, stops, forgets, crashes, crashes_in_the_sampler])
def test_a_consumer_leaves_nothing_behind(tmp_path: Path, consume: Callable[[VideoPipeline, Mp4Writer], None]) -> None:
    model, vae, path = tiny_dit(), tiny_vae(), tmp_path / "a.mp4"
    crash = consume in (crashes, crashes_in_the_sampler)
    chunks = 3 if consume is reads_slowly else None

    def once() -> None:
        try:
            with Mp4Writer(path, 16, 32, 32) as writer:
                consume(pictures(model, vae, chunks), writer)
            assert not crash
        except Crash:
            assert crash
        with av.open(str(part_path(path) if crash else path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == (PICTURES if consume is reads_slowly else 9)

    once()  # what is loaded once
    gc.collect()
    files, running = open_files(), threads()
    held, objects = tensors_held(), len(gc.get_objects())
    for _ in range(REPETITIONS):
        once()
    gc.collect()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("diagdistill")]
    assert settled(threads, running) <= running
    assert open_files() == files
    count, size = tensors_held()
    assert count <= held[0]  # caches of fixed length hold the angles of other frames than before, so sizes may differ
    assert size - held[1] < 10_000
    assert len(gc.get_objects()) - objects < REPETITIONS  # not even one a repetition
    assert os.listdir(tmp_path) == [part_path(path).name if crash else path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED HERE: only Linux tells what memory a process holds")
def test_resident_memory_does_not_grow_with_every_abandoned_stream() -> None:
    model, vae = tiny_dit(), tiny_vae()

    def abandon() -> int:
        for _ in range(10):
            frames = pictures(model, vae, None).frames()
            next(frames)
            frames.close()
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    abandon()
    before = abandon()
    assert abandon() - before < 2_000_000
