"""Storage for keys and values that one video after the other uses, with the CUDA graphs that were captured on it.

A graph holds addresses, so it can only be used again where the storage is. Caches come and go with their videos; what
they were lent comes back by itself when they are gone.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

from ..kv_cache import KVCache
from ..kv_storage import KVStorage
from .graphs import StorageGraphs


@dataclass(eq=False)
class Loan:
    storage: KVStorage
    graphs: StorageGraphs | None = None


class Lender:
    """Keeps storage of one layout: that of the last video. Two branches of a video are two loans."""

    def __init__(self) -> None:
        # Both are changed by finalizers too, which may run at any time: no locks.
        self._idle: deque[Loan] = deque()
        self._out: set[Loan] = set()
        self._loans: weakref.WeakKeyDictionary[KVCache, Loan] = weakref.WeakKeyDictionary()

    def of(self, cache: KVCache) -> Loan | None:
        """What a cache was lent."""
        return self._loans.get(cache)

    def lend(self, cache: KVCache) -> Loan:
        """Gives a cache that has no storage yet some of what is idle, or new."""
        loan = self._taken(cache)
        if loan is None:
            loan = Loan(KVStorage(cache.layout))
        cache.lend(loan.storage)
        self._loans[cache] = loan
        self._out.add(loan)
        weakref.finalize(cache, _come_back, weakref.ref(self), loan).atexit = False
        return loan

    def _taken(self, cache: KVCache) -> Loan | None:
        while self._idle:
            loan = self._idle.popleft()
            if loan.storage.layout == cache.layout:
                return loan
            # Of another size: whoever changes the size seldom changes back, and it is gigabytes.
        return None

    def forget_graphs(self) -> None:
        """Of all storage, lent or idle."""
        for loan in (*self._idle, *self._out):
            loan.graphs = None

    def release(self) -> None:
        """Frees what is idle, and all graphs; what is lent goes on living with its cache alone."""
        self.forget_graphs()
        self._idle.clear()
        self._out.clear()
        self._loans.clear()

    @property
    def idle_bytes(self) -> int:
        return sum(loan.storage.layout.bytes for loan in self._idle)


def _come_back(lender: weakref.ref[Lender], loan: Loan) -> None:
    there = lender()
    if there is not None and loan in there._out:
        there._out.discard(loan)
        there._idle.append(loan)
