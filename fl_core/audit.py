"""Statistics of a privacy audit: what releases say of the noise, the clip and the sampling behind them.

A *canary* is a record whose clipped gradient is known to the auditor, who puts it into a user's data
or leaves it out by a fair coin.  Its *score* is what the release holds in its direction, in units of
the clip C: in a step with noise multiplier sigma and sampling rate q that is N(0, sigma^2) for a
canary that was left out, and that plus ``strength`` with probability q for one that was included.

- ``one_run_bound``: how large epsilon must be, at the least, for the guesses made from the scores to be
  as good as they are (Steinke, Nasr and Jagielski 2023).  It believes nothing about the mechanism.
- z values of moments, each about N(0, 1) where the code does what it declares.  They believe that the
  noise is Gaussian, and see much smaller faults; ``GATE`` is how far out is a fault.

Pure functions of numbers; what makes the scores is in ``simulation.canaries``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl_core.errors import PrivacyError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SIGNIFICANCE = 0.05
"""How often a bound may exceed the true epsilon by chance, at most."""
GATE = 4.5
"""|z| beyond this is a fault: by chance once in 150,000 tests."""
GUESSES = ((1 / 2, 1 / 2), (1 / 4, 1 / 4), (1 / 8, 1 / 8), (1 / 16, 1 / 16), (1 / 32, 1 / 32), (1 / 8, 0.0))
"""(top, bottom): which parts of all canaries are guessed as included and as left out."""
MOST_EPSILON = 50.0


@dataclass(frozen=True)
class Bound:
    """``epsilon`` is not smaller than this, given ``correct`` of ``guesses`` (at 1 - ``SIGNIFICANCE``)."""

    epsilon: float
    guesses: int
    correct: int


def guess_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most likely that an (epsilon, delta)-DP mechanism lets ``correct`` or more of the guesses be right.

    Steinke, Nasr and Jagielski 2023, Theorem 5.2: with W ~ Binomial(guesses, e^eps / (1 + e^eps)),
    P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i.  ``canaries`` m, each included by a fair coin; the
    ``guesses`` may be chosen after the scores are seen.  Raises ``PrivacyError`` where the counts do
    not fit each other.
    """
    from scipy.stats import binom

    if not 0 <= correct <= guesses <= canaries:
        raise PrivacyError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: "
            "must be 0 <= correct <= guesses <= canaries"
        )
    right = 1 / (1 + math.exp(-epsilon))
    p = float(binom.sf(correct - 1, guesses, right))
    if delta and correct:
        below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
        p += 2 * canaries * delta * float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, p)


def guess_bound(canaries: int, guesses: int, correct: int, delta: float, p: float = SIGNIFICANCE) -> float:
    """The largest epsilon that the guesses refute at level ``p``, rounded down; 0.0 for none."""
    low, high = 0.0, MOST_EPSILON
    if guess_p_value(canaries, guesses, correct, low, delta) > p:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        refuted = guess_p_value(canaries, guesses, correct, middle, delta) <= p
        low, high = (middle, high) if refuted else (low, middle)
    return low


def one_run_bound(scores: Floats, included: Mask, delta: float, p: float = SIGNIFICANCE) -> Bound:
    """The best of the bounds over ``GUESSES``, each at level p / len(GUESSES) (Bonferroni).

    ``scores`` and ``included`` have one shape; higher scores speak for inclusion.  The canaries may
    belong to several users: each is one record of one of them.
    """
    flat, truth = scores.ravel(), included.ravel()
    order = np.argsort(-flat, kind="stable")
    found = [_bound(truth[order], parts, delta, p / len(GUESSES)) for parts in GUESSES]
    return max(found, key=lambda bound: bound.epsilon)


def _bound(ranked: Mask, parts: tuple[float, float], delta: float, p: float) -> Bound:
    """``ranked``: who was included, from the highest score to the lowest."""
    top, bottom = (int(part * len(ranked)) for part in parts)
    correct = int(ranked[:top].sum()) + int((~ranked[len(ranked) - bottom :]).sum())
    return Bound(guess_bound(len(ranked), top + bottom, correct, delta, p), top + bottom, correct)


# Moments ---------------------------------------------------------------------------------


def variance_z(values: Floats, variance: float) -> float:
    """z of independent N(0, ``variance``) numbers' mean square, which may be far too large or small.

    The sum of squares is chi-squared; its cube root is nearly normal (Wilson and Hilferty 1931).
    Without any noise at all it is finite: the cube root of 0.
    """
    count = values.size
    if not count or variance <= 0:
        raise PrivacyError(f"variance={variance!r} of {count} values: both must be above 0")
    return _chi_squared_z(float(np.square(values).mean()) / variance, count)


def _chi_squared_z(ratio: float, freedom: float) -> float:
    """z of a chi-squared number over its degrees of freedom."""
    spread = 2 / (9 * freedom)
    return (math.pow(ratio, 1 / 3) - (1 - spread)) / math.sqrt(spread)


def mean_z(values: Floats, means: Floats, stds: Floats) -> float:
    """z of the sum of independent ``values`` with these ``means`` and standard deviations."""
    return float((values - means).sum() / math.sqrt(np.square(stds).sum()))


def batch_size_z(sizes: Floats, records: Floats, rate: float) -> tuple[float, float]:
    """(z of the mean, z of the variance) of batch sizes, if each is Binomial(``records``, ``rate``).

    Shuffled or fixed-size batches have the right mean and hardly any variance; Poisson sampling has
    n q (1 - q).  At ``rate`` 1 there is nothing random: 0 where each batch is whole, else infinite.
    """
    variance = records * rate * (1 - rate)
    here = variance > 0
    if not here.any():
        off = math.inf if np.any(sizes != records * rate) else 0.0
        return off, off
    error, variance = (sizes - records * rate)[here], variance[here]
    # A squared standardised binomial has variance 2 + its excess kurtosis, a squared normal 2.
    freedom = 2 * len(error) ** 2 / float((2 + (1 - 6 * rate * (1 - rate)) / variance).sum())
    ratio = float((error**2 / variance).mean())
    return float(error.sum() / math.sqrt(variance.sum())), _chi_squared_z(ratio, freedom)


def same_noise_z(scores: Floats, left_out: Mask) -> float:
    """z of the strongest correlation between two users' noise; [U, n] scores, and who was left out.

    Each pair of users is compared on the canaries that both left out: Fisher's transform of the
    correlation of numbers of mean 0, and Bonferroni over pairs.  0.0 for fewer than two users.
    """
    from scipy.stats import norm

    noise = np.where(left_out, scores, 0.0)
    both = left_out.astype(np.float64) @ left_out.T.astype(np.float64)
    size = np.square(noise) @ left_out.T
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (noise @ noise.T) / np.sqrt(size * size.T)
    pairs = np.triu(both > 4, 1) & np.isfinite(correlation)
    if not pairs.any():
        return 0.0
    each = np.arctanh(np.clip(correlation[pairs], -1 + 1e-15, 1 - 1e-15)) * np.sqrt(both[pairs] - 2)
    worst = float(np.abs(each).max())
    log_p = math.log(2 * pairs.sum()) + float(norm.logsf(worst))
    return _z_of_log_p(log_p, worst)


def _z_of_log_p(log_p: float, uncorrected: float) -> float:
    """The two-sided z of a p-value, or what it was before the correction where that is beyond doubt."""
    from scipy.stats import norm

    if log_p < -300:
        return uncorrected
    return max(0.0, float(norm.isf(min(1.0, math.exp(log_p)) / 2)))
