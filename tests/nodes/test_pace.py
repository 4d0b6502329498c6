"""How often a page is told of a video that is being sampled."""

from __future__ import annotations

from diagdistill_pack.nodes.pace import Pace


def test_a_burst_is_sent_whole_and_then_so_many_a_second():
    times = [0.0] * 13 + [0.05 * i for i in range(1, 201)] + [70.0] * 50
    now = iter(times)
    pace = Pace(10, 2, clock=lambda: next(now))
    assert [pace.allows() for _ in range(12)] == [True] * 10 + [False] * 2
    assert 19 <= sum(pace.allows() for _ in range(200)) <= 21  # ten seconds, twenty messages in each
    assert sum(pace.allows() for _ in range(50)) == 10  # a pause lets no more than a burst together
