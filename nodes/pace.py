"""How often a page is told of a video that is being sampled."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Which messages a page is sent: the first `burst`, so all of a short video's, then `a_second`. A fast model has
    more to tell than a browser can draw, and whatever comes after would wait behind it."""

    def __init__(self, burst: int, a_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.burst, self.a_second = burst, a_second
        self._clock, self._left, self._at = clock, float(burst), clock()

    def allows(self) -> bool:
        now = self._clock()
        self._left, self._at = min(self.burst, self._left + self.a_second * (now - self._at)), now
        if self._left < 1:
            return False
        self._left -= 1
        return True
