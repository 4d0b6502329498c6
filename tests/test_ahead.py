"""An iterator in a thread: order, waiting, and every way to end."""

from __future__ import annotations

import contextvars
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diag_core.ahead import run_ahead


def threads() -> list[str]:
    """Those at work."""
    return [t.name for t in threading.enumerate() if t.name.startswith("ahead")]


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def where(check: Callable[[], None]) -> Iterator[int]:
    """The thread that it runs in, more often than anything is kept for a reader."""
    for _ in range(5):
        yield threading.get_ident()


def test_the_next_one_runs_in_the_same_thread() -> None:
    """What libraries keep for each thread is there again, whatever became of the one before."""
    (first,) = set(run_ahead(where))
    items = run_ahead(where)
    assert next(items) == first
    items.close()
    broken = run_ahead(lambda check: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(broken)
    assert set(run_ahead(where)) == {first}
    assert set(run_ahead(where, name="ahead of others")) != {first}


def test_two_at_once_have_a_thread_each_and_one_stays() -> None:
    before = threading.active_count()
    several = [run_ahead(where, name="at once") for _ in range(3)]
    found = [next(items) for items in several]
    assert len(set(found)) == 3
    for items in several:
        items.close()
    wait_until(lambda: threading.active_count() == before + 1)
    assert set(run_ahead(where, name="at once")) <= set(found)


def test_one_inside_another_of_its_name_has_its_own_thread() -> None:
    def outer(check: Callable[[], None]) -> Iterator[int]:
        yield threading.get_ident()
        yield from run_ahead(where)

    assert len(set(run_ahead(outer))) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED ON WINDOWS: it has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    list(run_ahead(lambda check: [1]))
    child = os.fork()
    if not child:
        signal.alarm(10)  # what waits for a thread of the parent's waits for ever
        os._exit(0 if list(run_ahead(lambda check: [1, 2])) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("left", ["unread", "in a cycle", "read"])
def test_a_process_ends_whatever_is_left_of_one(left: str) -> None:
    script = f"""
import itertools
from diag_core.ahead import run_ahead

class Holder: pass

items = run_ahead(lambda check: run_ahead(lambda check: itertools.count(), name="inner"))
next(items)
if {left!r} == "read":
    items.close()
if {left!r} == "in a cycle":
    holder = Holder()
    holder.itself, holder.items = holder, items
    del holder, items
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], timeout=300)
    assert ended.returncode == 0


def test_items_come_in_order_and_the_thread_ends() -> None:
    assert list(run_ahead(lambda check: range(100))) == list(range(100))
    assert list(run_ahead(lambda check: [])) == []
    assert threads() == []


def test_the_source_waits_for_a_slow_reader() -> None:
    made: list[int] = []

    def source(check: Callable[[], None]) -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    items = run_ahead(source, depth=2)
    assert next(items) == 0
    wait_until(lambda: len(made) == 4)  # one read, two waiting, one that finds no room
    time.sleep(0.05)
    assert len(made) == 4
    assert list(items) == list(range(1, 20))


def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    def source(check: Callable[[], None]) -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is full")

    seen = []
    with pytest.raises(OSError, match="the disk is full"):
        for item in run_ahead(source):
            seen.append(item)
    assert seen == [1, 2] and threads() == []


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_a_reader_that_goes_away_ends_the_source(how: str) -> None:
    closed = threading.Event()

    def source(check: Callable[[], None]) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = run_ahead(source)
    assert next(items) == 0
    if how == "close":
        items.close()
    elif how == "forget":
        del items
        gc.collect()
    else:
        with pytest.raises(KeyError):
            for _ in items:
                raise KeyError("the reader's own")
        items.close()
    assert closed.wait(10)
    wait_until(lambda: threads() == [])


def test_a_source_in_the_middle_of_an_item_can_ask_whether_it_is_still_wanted() -> None:
    asking = threading.Event()

    def source(check: Callable[[], None]) -> Iterator[int]:
        yield 0
        while True:
            check()
            asking.set()
            time.sleep(0.001)

    items = run_ahead(source)
    next(items)
    assert asking.wait(10)
    items.close()  # would never return otherwise
    assert threads() == []


def test_it_runs_in_the_readers_context_and_inference_mode() -> None:
    variable = contextvars.ContextVar("variable", default="lost")
    variable.set("kept")

    def source(check: Callable[[], None]) -> Iterator[tuple[str, bool]]:
        yield variable.get(), torch.is_inference_mode_enabled()

    assert list(run_ahead(source)) == [("kept", False)]
    with torch.inference_mode():
        assert list(run_ahead(source)) == [("kept", True)]
