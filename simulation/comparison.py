"""Is one arm better than another for the same users?  Paired differences with intervals.

Two arms are compared user by user, so that the interval is of the *difference*: users vary far
more among themselves than one user does between two arms, and two overlapping intervals of
means say little about a paired difference.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from simulation.results import Results

MINIMUM_USERS = 10
"""Fewer users than this give no interval: a bootstrap over them would promise too much."""

SMALL = 0.02
"""A difference below two points is called small, however certain it is."""

RESAMPLES = 2000
_DRAWS_AT_ONCE = 1_000_000


class Outcome(enum.Enum):
    """What may honestly be said of a difference."""

    HELPED = "helped"
    HELPED_LITTLE = "helped a little"
    UNCLEAR = "too small to tell"
    NOTHING = "no difference that matters"
    WORSE = "made things worse"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Gain:
    """``arm`` minus ``against``, as fractions of test pairs.

    ``interval``: 95% interval of the mean difference, paired over users, or ``None`` when the
    users' own values are not at hand.  ``separate``: whether the two arms' own 95% intervals
    do not overlap (``None``: unknown).  ``users``: number of users that were paired (0: none).
    """

    arm: str
    against: str
    value: float
    interval: tuple[float, float] | None
    separate: bool | None
    users: int

    @property
    def outcome(self) -> Outcome:
        """The verdict; it needs an interval, or two separate ones, to be other than unclear."""
        low, high = self.interval if self.interval else self._from_separation()
        if low > 0:
            return Outcome.HELPED if self.value >= SMALL else Outcome.HELPED_LITTLE
        if high < 0:
            return Outcome.WORSE
        if self.interval and high < SMALL and low > -SMALL:
            return Outcome.NOTHING
        return Outcome.UNCLEAR

    def _from_separation(self) -> tuple[float, float]:
        return (self.value, self.value) if self.separate else (-1.0, 1.0)


@dataclass(frozen=True)
class GroupGain:
    """The mean change of one group's users, with its 95% interval where it has enough users.

    ``lost``: whether it lost by more than the worst of so many groups would by chance
    (normal approximation, 5% divided by the number of groups: Bonferroni).
    """

    group: str
    users: int
    value: float
    interval: tuple[float, float] | None
    lost: bool


def mean_interval(
    values: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """95% percentile-bootstrap interval over users of the (weighted) mean of ``values`` [n].

    ``None`` for fewer than ``MINIMUM_USERS`` values.  Resampling uses a generator of its own
    with a fixed seed: the same values give the same interval.
    """
    if len(values) < MINIMUM_USERS:
        return None
    weights = np.ones(len(values)) if weights is None else weights
    return _bootstrap(
        np.asarray(values, np.float64).tobytes(), np.asarray(weights, np.float64).tobytes(), resamples
    )


@lru_cache(maxsize=128)
def _bootstrap(values: bytes, weights: bytes, resamples: int) -> tuple[float, float]:
    """``mean_interval`` of the arrays' bytes; cached, since a report asks for each several times."""
    weight = np.frombuffer(weights)
    weighted = np.frombuffer(values) * weight
    users = len(weight)
    generator = np.random.default_rng(np.random.SeedSequence(users))
    rows = max(1, _DRAWS_AT_ONCE // users)
    means = []
    for start in range(0, resamples, rows):
        draws = generator.integers(users, size=(min(rows, resamples - start), users))
        totals = weight[draws].sum(axis=1)
        means.append(weighted[draws].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return (float(low), float(high))


def changes(
    results: Results, arm: str, against: str, measure: str = "accuracy"
) -> npt.NDArray[np.float64] | None:
    """[users] each user's ``measure`` under ``arm`` minus under ``against`` (NaN: not measured).

    ``None`` where the users' table lacks either column.
    """
    mine, theirs = results.column(f"{measure}_{arm}"), results.column(f"{measure}_{against}")
    return None if mine is None or theirs is None else mine - theirs


def gain(results: Results, arm: str, against: str, measure: str = "accuracy") -> Gain | None:
    """``arm`` against ``against`` by ``accuracy``, ``minority_accuracy`` or ``accuracy_unseen``.

    The value and its interval are over the users measured under both arms (minority pairs
    weighed by their number, where known); without users' columns the value is the difference
    of the arms' figures, with no interval.  ``None`` where either arm lacks the measure.
    """
    unseen = measure == "accuracy_unseen"
    field = "accuracy" if unseen else measure
    first, second = results.arm(arm, unseen), results.arm(against, unseen)
    mine, theirs = getattr(first, field, None), getattr(second, field, None)
    if mine is None or theirs is None:
        return None
    ends = "minority_ci95" if field == "minority_accuracy" else "ci95"
    separate = _separate(getattr(first, ends), getattr(second, ends))
    paired = changes(results, arm, against, measure)
    measured = None if paired is None else ~np.isnan(paired)
    if paired is None or measured is None or not measured.any():
        return Gain(arm, against, float(mine - theirs), None, separate, 0)
    paired, weights = paired[measured], _weights(results, measure, len(paired))[measured]
    value = float(np.average(paired, weights=weights))
    return Gain(arm, against, value, mean_interval(paired, weights), separate, len(paired))


def _weights(results: Results, measure: str, users: int) -> npt.NDArray[np.float64]:
    """[users] what each user counts: one, or his pairs where the arms' figure is over pairs."""
    pairs = results.column("minority_pairs") if measure == "minority_accuracy" else None
    return np.ones(users) if pairs is None else pairs


def group_gains(results: Results, arm: str, against: str) -> tuple[GroupGain, ...]:
    """The change of every named group, the worst first; empty where users have no group."""
    paired = changes(results, arm, against)
    if paired is None or "group" not in results.users:
        return ()
    groups = np.array([str(group) for group in results.users["group"]])
    names = sorted(set(groups[~np.isnan(paired)]) - {""})
    gains = [_group_gain(name, paired[~np.isnan(paired) & (groups == name)], len(names)) for name in names]
    return tuple(sorted(gains, key=lambda item: item.value))


def _group_gain(group: str, values: npt.NDArray[np.float64], groups: int) -> GroupGain:
    interval, mean = mean_interval(values), float(values.mean())
    if interval is None:
        return GroupGain(group, len(values), mean, None, False)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    lost = mean + NormalDist().inv_cdf(1 - 0.05 / groups) * error < 0
    return GroupGain(group, len(values), mean, interval, lost)


def _separate(first: tuple[float, float] | None, second: tuple[float, float] | None) -> bool | None:
    if first is None or second is None:
        return None
    return first[0] > second[1] or second[0] > first[1]
