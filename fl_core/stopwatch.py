"""Where a process's time went, by kind of work; a few clock reads, so it always runs.

``with spent("noise"):`` or ``@timed("noise")`` adds the seconds to ``SPENT["noise"]``, less those
of such blocks inside: all parts together are never more than the time that passed.  Times are of
the process's main thread of work; torch's own threads count once.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

SPENT: dict[str, float] = {}
"""Seconds by part, since the process began."""

P = ParamSpec("P")
R = TypeVar("R")

_inner: list[float] = []


@contextlib.contextmanager
def spent(part: str) -> Iterator[None]:
    """Count the block's seconds as ``part``'s, but for blocks inside that say otherwise."""
    started = time.perf_counter()
    _inner.append(0.0)
    try:
        yield
    finally:
        passed = time.perf_counter() - started
        SPENT[part] = SPENT.get(part, 0.0) + passed - _inner.pop()
        if _inner:
            _inner[-1] += passed


def timed(part: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """``spent`` around every call of a function."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with spent(part):
                return function(*args, **kwargs)

        return call

    return around
