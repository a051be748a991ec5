"""Seconds by part: inner blocks count once, exceptions count too."""

from __future__ import annotations

import pytest

from fl_core import stopwatch
from fl_core.stopwatch import spent, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only moves when told to."""
    now = [0.0]
    monkeypatch.setattr(stopwatch, "SPENT", {})
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


def test_inner_blocks_count_once(clock: list[float]) -> None:
    with spent("outer"):
        clock[0] += 1.0
        with spent("inner"):
            clock[0] += 4.0
            with spent("outer"):
                clock[0] += 16.0
        clock[0] += 64.0
    clock[0] += 256.0
    assert stopwatch.SPENT == {"outer": 1.0 + 16.0 + 64.0, "inner": 4.0}


def test_a_block_that_fails_has_taken_its_time(clock: list[float]) -> None:
    @timed("work")
    def work(seconds: float) -> float:
        """Works."""
        clock[0] += seconds
        return 1 / seconds

    assert work(2.0) == 0.5 and work.__doc__ == "Works."
    with spent("around"), pytest.raises(ZeroDivisionError):
        work(0.0)
    with spent("around"):
        clock[0] += 1.0
    assert stopwatch.SPENT == {"work": 2.0, "around": 1.0}
