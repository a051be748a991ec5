"""The hash chain and the counter."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_core.chain import EMPTY, Head, read_counter, write_counter
from fl_core.errors import PrivacyError


def test_every_value_and_their_order_decide_the_digest() -> None:
    rows = [["a", 1, 2.5], ["a", 1, 2.25], ["a", 2, 2.5], ["b", 1, 2.5], [1, "a", 2.5], ["a", 1]]
    assert len({EMPTY.then(row).digest for row in rows}) == len(rows)
    one, other = EMPTY.then(rows[0]).then(rows[1]), EMPTY.then(rows[1]).then(rows[0])
    assert one.number == other.number == 2 and one.digest != other.digest


def test_a_counter_is_read_back_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "l.counter"
    assert read_counter(path) is None
    write_counter(path, Head(7, "ab"))
    assert read_counter(path) == Head(7, "ab")
    path.write_text("{}")
    with pytest.raises(PrivacyError, match=r"l\.counter"):
        read_counter(path)
