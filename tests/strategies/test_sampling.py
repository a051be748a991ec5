"""Waiting for nodes, and drawing from them."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import RunError
from strategies.sampling import ordered_nodes, sample, wait_for_nodes
from tests.fake_grid import Clock, FakeGrid


class _Arriving(FakeGrid):
    """One more node at each look, up to ten."""

    looks = 0

    def get_nodes(self):  # type: ignore[no-untyped-def]
        self.looks += 1
        return [node for node in super().get_nodes() if node.node_id < min(self.looks, 10)]


def test_nodes_are_in_the_order_of_their_registration() -> None:
    assert ordered_nodes(FakeGrid(dict.fromkeys([30, 4, 17], lambda m: None))) == [30, 4, 17]


def test_waits_until_no_more_nodes_arrive() -> None:
    clock, grid = Clock(), _Arriving(dict.fromkeys(range(10), lambda m: None))
    assert len(wait_for_nodes(grid, 1, 60.0, 1.0, clock.timer())) == 10
    assert clock.seconds < 5


def test_nodes_that_come_and_go_are_not_waited_for_beyond_the_deadline() -> None:
    class Flapping(FakeGrid):
        looks = 0

        def get_nodes(self):  # type: ignore[no-untyped-def]
            self.looks += 1
            return list(super().get_nodes())[self.looks % 2 :]

    clock = Clock()
    assert wait_for_nodes(Flapping(dict.fromkeys([2, 3], lambda m: None)), 1, 9.0, 1.0, clock.timer())
    assert 9 <= clock.seconds < 10


def test_no_node_at_all() -> None:
    with pytest.raises(RunError, match="minimum-nodes=1"):
        wait_for_nodes(FakeGrid({}), 1, 5.0, 0.0, Clock().timer())


@pytest.mark.parametrize(
    ("fraction", "minimum", "size"), [(1.0, 1, 20), (0.1, 1, 2), (0.01, 1, 1), (0.1, 5, 5)]
)
def test_sizes(fraction: float, minimum: int, size: int) -> None:
    drawn = sample(range(20), fraction, minimum, 0, 1)
    assert len(drawn) == size == len(set(drawn)) and drawn == sorted(drawn)


def test_every_node_is_drawn_equally_often() -> None:
    """2,000 rounds of 5 of 20: 500 each, standard deviation sqrt(2000 * .25 * .75) = 19."""
    counts = np.bincount([n for r in range(2000) for n in sample(range(20), 0.25, 1, 3, r)], minlength=20)
    assert counts.sum() == 10_000 and np.abs(counts - 500).max() < 5 * 19.4
