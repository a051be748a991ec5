"""The mean over users of what nodes report as (sum, count)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl_core.config import RunConfig
from fl_core.noise import NoiseSource
from fl_core.wire import Arrays
from strategies.user_level import noised_mean


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


def round_mean(
    config: RunConfig,
    arm: str,
    reports: Sequence[tuple[Arrays, int]],
    noise: NoiseSource,
    server_round: int,
    attempt: int = 0,
) -> tuple[dict[str, npt.NDArray[np.float64]], float]:
    """(a round's mean update, how many users the federation has in all).

    Noised, and over public constants alone, where the arm's release is private for users.
    """
    federation, privacy = config.federation, config.privacy
    if not config.noised_release(arm):
        mean, users = mean_update(reports)
        return mean, users / federation.fraction
    rounds_a_user = min(privacy.participations, federation.rounds)
    noised = noised_mean(reports, privacy, noise, server_round, attempt)
    return noised, privacy.round_users * federation.rounds / max(1, rounds_a_user)
