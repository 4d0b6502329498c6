"""A training that is told to stop, by Ctrl-C or a cluster's SIGTERM, does so after its iteration, its state saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .distributed import world_size

log = logging.getLogger(__name__)


class Stopped(Exception):
    """A run that was told to stop: its state is saved.

    Attributes:
        status: what the command ends with, as shells have it.
    """

    def __init__(self, told: str, number: int) -> None:
        super().__init__(told)
        self.status = status_of(number)


def status_of(number: int) -> int:
    """The exit status of what a signal ended."""
    return 128 + number


class StopSignals:
    """What has come.

    Attributes:
        number: the signal's, 0 where none has come.
    """

    number = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        # Ctrl-C twice does not want to wait. torchrun passes on what its processes got from the terminal themselves.
        if number == self.number == signal.SIGINT and world_size() == 1:
            raise KeyboardInterrupt
        self.number = number
        log.info("told to stop: the state is saved after this iteration")


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Notes SIGTERM and SIGINT instead of ending at once. One that nobody acted on has its effect when this is left.

    Only the main thread may do so; in another one nothing is noted. A signal that is ignored stays so: shells start
    what is to run in the background with Ctrl-C ignored.
    """
    signals = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals.note) for number in heeded}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals.number:
        signal.raise_signal(signals.number)
