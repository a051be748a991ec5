"""Numbers as a reader sees them."""

from __future__ import annotations

import math

import pytest

from simulation import wording


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.percent(0.8153), "81.5%"),
        (wording.percent(None), "–"),
        (wording.percent(math.nan), "–"),
        (wording.points(0.077), "+7.7 points"),
        (wording.points(-0.0304), "−3.0 points"),
        (wording.points(-0.0001), "0.0 points"),
        (wording.interval((-0.002, 0.03), signed=True), "−0.2 to +3.0"),
        (wording.size(12345), "12.3 kB"),
        (wording.size(3), "3 B"),
        (wording.duration(4.21), "4.2 s"),
        (wording.duration(200), "3 min 20 s"),
        (wording.duration(3900), "1 h 05 min"),
        (wording.duration(59.97), "1 min 00 s"),
        (wording.compact(1e-5), "1e-5"),
        (wording.name("matrix_factorization_k8"), "matrix factorization, K = 8"),
        (wording.name("dual_dp"), "dual with DP"),
    ],
)
def test_a_value_reads_as_it_should(shown: str, expected: str) -> None:
    assert shown == expected
