"""Streams that are killed: run as a script, one process forks many that stream to an MP4, and kills each.

    python tests/killed_streams.py FOLDER COUNT

Starting Python with PyTorch takes seconds and a fork milliseconds. The first video, made to its end by this process, is
FOLDER/whole.mp4; FOLDER/0.mp4, FOLDER/1.mp4, ... are the same video, cut off. A line of JSON for each says how many
frames it had announced as written before it was killed, and when that was.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from long_stream import pictures, tiny_dit, tiny_vae

from diag_core.mp4_writer import Mp4Writer

CHUNKS = 12
MODEL, VAE = tiny_dit(), tiny_vae()


def stream_to(path: Path, announce: int) -> None:
    """Announces, after every chunk, how many frames are written, and "closing" before the file is completed."""
    with Mp4Writer(path, 16, 32, 32) as writer:
        for frames in pictures(MODEL, VAE, CHUNKS).frames():
            writer.write(frames.pixels)
            os.write(announce, b"%d\n" % writer.frames)
        os.write(announce, b"closing\n")
    os.write(announce, b"closed\n")


def killed_stream(path: Path, wait: float, *, closing: bool) -> list[str]:
    """What a child announced that is killed after `wait` seconds, counted from its start or from when it closes."""
    announced, announce = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(announced)
            stream_to(path, announce)
            time.sleep(60)  # a killed process ends by nothing else
        finally:
            os._exit(1)
    os.close(announce)
    lines = b""
    with open(announced, "rb", buffering=0) as reader:
        while closing and b"closing" not in lines:
            lines += reader.read(1000)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
        lines += reader.readall()
    return lines.decode().split()


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    sink = os.open(os.devnull, os.O_WRONLY)
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        stream_to(folder / "whole.mp4", sink)
        whole = time.perf_counter() - begin
    for number in range(count):
        closing = number % 5 == 4  # a moment so short that chance alone would miss it
        wait = moments.uniform(0, 0.004 if closing else 1.1 * whole)
        announced = killed_stream(folder / f"{number}.mp4", wait, closing=closing)
        frames = max((int(line) for line in announced if line.isdecimal()), default=0)
        print(json.dumps({"frames": frames, "announced": announced[-1:], "wait": wait, "seed": seed}), flush=True)


if __name__ == "__main__":
    main()
