"""The mean over users."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.aggregation import mean_update


def test_by_hand() -> None:
    """(6 from 3 users) and (2 from 1): 8 / 4 = 2."""
    mean, users = mean_update([({"x": np.float32([6.0])}, 3), ({"x": np.float32([2.0])}, 1)])  # type: ignore[dict-item]
    assert users == 4 and float(mean["x"][0]) == 2.0 and mean["x"].dtype == np.float64


def test_float64_keeps_what_float32_would_lose() -> None:
    big, small = np.array([2.0**25], np.float32), np.array([1.0], np.float32)
    mean, _ = mean_update([({"x": big}, 1), ({"x": small}, 1), ({"x": -big}, 1)])
    assert float(mean["x"][0]) == pytest.approx(1 / 3)


def test_no_report_is_an_error() -> None:
    with pytest.raises(ValueError, match="no report"):
        mean_update([])
