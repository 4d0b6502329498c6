"""An iterator that runs in a thread of its own, a few items ahead of whoever reads it.

What it does not know: video. It hands items over in their order, waits when the reader is slow, and ends cleanly
however it ends: exhausted, by an error of the source, or because the reader has stopped or gone.
"""

from __future__ import annotations

import contextvars
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Generic, TypeVar

import torch

_T = TypeVar("_T")
_PATIENCE = 0.05  # seconds


class Stopped(Exception):
    """The reader has gone: raised in the source's thread, never in the reader's."""


class _Exchange(Generic[_T]):
    """What the two threads share: at most `depth` items, and how it ended."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[_T] = deque()
        self.error: BaseException | None = None
        self.ended = False
        """the source has nothing more"""
        self.stopped = False
        """the reader wants nothing more"""
        self.changed = threading.Condition()

    def put(self, item: _T) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self.items) < self.depth)
            if self.stopped:
                raise Stopped
            self.items.append(item)
            self.changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.items.clear()
            self.changed.notify_all()

    def get(self) -> _T:
        """The next item. StopIteration at the end, or the source's own error."""
        with self.changed:
            # Not in one go: the main thread hears of Ctrl-C between two waits, on Windows only then.
            while not self.changed.wait_for(lambda: self.items or self.ended, timeout=_PATIENCE):
                pass
            if self.items:
                item = self.items.popleft()
                self.changed.notify_all()
                return item
            if self.error is not None:
                raise self.error
            raise StopIteration


class _Worker:
    """A thread that does one job after the other, so that the next video finds what libraries keep for each thread:
    cuDNN's plans for its convolutions and attention take up to a tenth of a second to make."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        # A daemon: whoever forgets a video does not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def do(self, job: Callable[[], None]) -> threading.Event:
        """Begins a job; the event is set when it has ended, and nothing of it is held any more."""
        done = threading.Event()
        self._jobs.put((job, done))
        return done

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            self.thread.name = self.name
            job()
            del job
            self.thread.name = f"idle: {self.name}"
            kept = _idle.setdefault(self.name, self) is self
            done.set()
            if not kept:
                return


_idle: dict[str, _Worker] = {}
"""one of each name at most; two videos at once take two, of which one stays"""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads stay with the parent


def run_ahead(
    make: Callable[[Callable[[], None]], Iterable[_T]], *, depth: int = 1, name: str = "ahead"
) -> Generator[_T, None, None]:
    """The items of an iterable that a thread makes and runs through, at most `depth` of them before they are read.

    It begins with the first `next`, in the reader's context variables, inference mode and CUDA device, and has ended
    when the generator has: exhausted, closed, or forgotten. The thread then waits for the next iterable of its name.

    Args:
        make: called in the thread with a function that raises `Stopped` once the reader has gone; a source whose items
            take long calls it now and then.
        name: of the thread.

    Raises: what the source raises, in the reader, after the items before it.
    """
    exchange: _Exchange[_T] = _Exchange(depth)
    inference = torch.is_inference_mode_enabled()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def check() -> None:
        if exchange.stopped:
            raise Stopped

    def work() -> None:
        error: BaseException | None = None
        source: Iterable[_T] | None = None
        try:
            if device is not None:
                torch.cuda.set_device(device)
            with torch.inference_mode(inference):
                source = make(check)
                try:
                    for item in source:
                        exchange.put(item)
                finally:
                    if isinstance(source, Generator):
                        source.close()
        except Stopped:
            pass
        except BaseException as raised:
            error = raised
        exchange.end(error)

    worker = _idle.pop(name, None) or _Worker(name)
    done = worker.do(partial(contextvars.copy_context().run, work))
    try:
        while True:
            try:
                item = exchange.get()
            except StopIteration:
                return
            yield item
            del item  # a frame held here would be a frame held twice
    finally:
        exchange.stop()
        # Python's collector may find a forgotten one in that very thread, or at the end of a process without threads.
        while worker.thread is not threading.current_thread() and not done.wait(_PATIENCE):
            if sys.is_finalizing():
                break
