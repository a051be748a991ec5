"""How far a figure over users can be trusted: bootstrap intervals, and who was really harmed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from simulation.held_out import TestPairs

RESAMPLES = 2000
LEVEL = 0.05

Array = npt.NDArray[np.float64]


def bootstrap_interval(
    numerator: Array, denominator: Array, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95% percentile interval of sum(numerator) / sum(denominator), resampling users.

    Both are [U], one number a user; with a denominator of ones this is the interval of a mean
    (Efron 1979).  ``None`` where the denominator sums to zero.
    """
    users = len(numerator)
    if users == 0 or denominator.sum() <= 0:
        return None
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(users, size=users)
        below = denominator[drawn].sum()
        ratios[i] = numerator[drawn].sum() / below if below > 0 else np.nan
    low, high = np.nanquantile(ratios, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class HarmTest:
    """Of each user, is he worse under an arm than under the reference?

    ``p_value`` [U]: one-sided; 1 where there is nothing to test.  ``false_rate`` [U]: bound on
    the probability that an unharmed user's p-value is at most ``LEVEL``: for few or no test
    pairs it is far below ``LEVEL``, even 0.
    """

    p_value: Array
    false_rate: Array

    def significant(self) -> npt.NDArray[np.bool_]:
        """[U]."""
        return self.p_value <= LEVEL


def harm_test(right: Array, reference: Array, pairs: TestPairs, users: int) -> HarmTest:
    """Test each user's pairs; ``right``, ``reference`` [P] are 1 (right), 1/2 (tie) or 0.

    Where no text of a user stands in two of his pairs, they are independent: McNemar's exact
    sign test (McNemar 1947) over the pairs that the two disagree on.  A user's votes, though,
    make every combination of agreed and disagreed texts; 20 votes can make 75 pairs, and a
    sign test over those found 6 to 17% of users harmed where two arms were equally good.
    There, as DeLong et al. 1988 compare two areas under one curve, the variance of the mean
    difference is summed over agreed and over disagreed texts, with Student's t for few texts
    (same experiment: 0.4 to 4%).
    """
    p_value, false_rate = np.ones(users), np.zeros(users)
    difference = right - reference
    starts = np.flatnonzero(np.diff(pairs.user, prepend=-1))
    for part in np.split(np.arange(len(pairs)), starts[1:]):
        if len(part):
            found = _test(difference[part], pairs.chosen[part], pairs.rejected[part])
            p_value[pairs.user[part[0]]], false_rate[pairs.user[part[0]]] = found
    return HarmTest(p_value, false_rate)


def sign_test(wins: int, losses: int) -> tuple[float, float]:
    """(p, size): P(X <= wins) for X ~ Binomial(wins + losses, 1/2), and the exact test's size.

    The size is the largest attainable p-value not above ``LEVEL``.

    >>> sign_test(0, 5)
    (0.03125, 0.03125)
    >>> sign_test(1, 3)
    (0.3125, 0.0)
    """
    trials = wins + losses
    tails = special.bdtr(np.arange(trials + 1), trials, 0.5)
    return float(tails[wins]), float(tails[tails <= LEVEL].max(initial=0.0))


def _test(
    difference: Array, chosen: npt.NDArray[np.int32], rejected: npt.NDArray[np.int32]
) -> tuple[float, float]:
    above, below = int((difference > 0).sum()), int((difference < 0).sum())
    if len(np.unique(np.concatenate([chosen, rejected]))) == 2 * len(chosen):
        return sign_test(above, below)
    columns, rows = _means(difference, chosen), _means(difference, rejected)
    fewer = min(len(columns), len(rows))
    if fewer < 2:
        return 1.0, 0.0
    variance = columns.var(ddof=1) / len(columns) + rows.var(ddof=1) / len(rows)
    mean = float(difference.mean())
    if variance <= 0:
        return (0.5**fewer if mean < 0 else 1.0), LEVEL
    freedom = len(columns) + len(rows) - 2
    return float(stats.t.cdf(mean / np.sqrt(variance), freedom)), LEVEL


def _means(values: Array, keys: npt.NDArray[np.int32]) -> Array:
    """The mean of ``values`` for each distinct key."""
    _, inverse = np.unique(keys, return_inverse=True)
    return np.asarray(np.bincount(inverse, weights=values) / np.bincount(inverse))
