"""The mean over users of what nodes report as (sum, count)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl_core.wire import Arrays


def mean_update(reports: Sequence[tuple[Arrays, int]]) -> tuple[dict[str, npt.NDArray[np.float64]], int]:
    """(sum of sums / sum of counts, sum of counts), added in float64 in the given order.

    Every user weighs the same, whichever node hosts him: one node with the sum of n users and
    n nodes with one user each give the same mean, up to the rounding of the nodes' own sums.
    Raises ``ValueError`` on no report.
    """
    if not reports:
        raise ValueError("a mean over no report does not exist")
    users = sum(count for _, count in reports)
    names = sorted(reports[0][0])
    total = {name: np.zeros(reports[0][0][name].shape, dtype=np.float64) for name in names}
    for arrays, _ in reports:
        for name in names:
            total[name] += arrays[name]
    return {name: value / users for name, value in total.items()}, users
