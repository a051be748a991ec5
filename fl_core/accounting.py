"""What many users have spent at once, and what an adaptive ledger may still charge.

The bounds here hold where each next event may depend on the outcome of those before it, because
only a running sum is compared with a bound fixed beforehand: Renyi divergences (Feldman and
Zrnic 2021; over several orders at once Lecuyer 2021, section 4) and, without subsampling, the
Gaussian's mu^2 (Smith and Thakurta 2022).  For schedules declared beforehand
``fl_core.privacy.epsilon`` is tighter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import erfc

from fl_core.errors import PrivacyError
from fl_core.privacy import (
    RENYI_ORDERS,
    DpEvent,
    composed,
    gaussian_epsilon,
    renyi_divergences,
    renyi_epsilon,
)

Floats = npt.NDArray[np.float64]
Step = tuple[float, float]
"""(q, sigma) of a Gaussian step."""

USERS_AT_A_TIME = 8192
"""Rows of [users, orders] in memory at once."""
BEYOND = 1e250
"""In place of an infinite divergence, so that 0 steps of it are 0."""


def gate_epsilon(events: Sequence[DpEvent], delta: float) -> float:
    """An upper bound on the joint cost of ``events`` that also holds when they were chosen adaptively.

    Exact without subsampling; else from Renyi divergences.  Raises as ``fl_core.privacy.epsilon``.
    """
    mechanisms, pure = composed(events, delta)
    if not mechanisms:
        return pure
    if any(sigma == 0 for _, sigma, _ in mechanisms):
        return math.inf
    if all(q == 1 for q, _, _ in mechanisms):
        return gaussian_epsilon(math.sqrt(sum(t / sigma**2 for _, sigma, t in mechanisms)), delta) + pure
    return renyi_epsilon(mechanisms, delta) + pure


def gate_epsilons(counts: npt.ArrayLike, steps: Sequence[Step], delta: float) -> Floats:
    """[U] ``gate_epsilon`` of users who made ``counts`` [U, E] steps of each of ``steps`` [E].

    Raises ``PrivacyError`` on shapes that do not agree or a ``delta`` outside (0, 1).
    """
    made = np.asarray(counts, dtype=np.float64)
    if made.ndim != 2 or made.shape[1] != len(steps) or (made.size and made.min() < 0):
        raise PrivacyError(f"counts of shape {made.shape}: must be [users, {len(steps)}] and >= 0")
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta!r}: must be in (0, 1)")
    kept = [i for i, (q, sigma) in enumerate(steps) if q > 0 and sigma < math.inf]
    made, steps = made[:, kept], [steps[i] for i in kept]
    rates, sigmas = (np.array([step[i] for step in steps], dtype=np.float64) for i in (0, 1))
    result = np.zeros(len(made))
    sampled = (made[:, rates < 1] > 0).any(axis=1)
    bare = (made[:, sigmas == 0] > 0).any(axis=1)
    exact, noised = ~sampled & ~bare, sigmas > 0
    mu_squared = made[np.ix_(exact, noised)] @ sigmas[noised] ** -2.0
    result[exact] = _gaussian_epsilons(np.sqrt(mu_squared), delta)
    if sampled.any():
        usual = [step for step, here in zip(steps, noised, strict=True) if here]
        result[sampled] = _renyi_epsilons(made[np.ix_(sampled, noised)], usual, delta)
    result[bare] = np.inf
    return result


def _renyi_epsilons(counts: Floats, steps: Sequence[Step], delta: float) -> Floats:
    """counts [U, E] @ divergences [E, orders], then the best order (Canonne et al. 2020, Prop. 12)."""
    orders = np.asarray(RENYI_ORDERS)
    table = np.minimum(np.array([renyi_divergences(*step) for step in steps]), BEYOND)
    table = table.reshape(len(steps), len(orders))
    conversion = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    result = np.empty(len(counts))
    for start in range(0, len(counts), USERS_AT_A_TIME):
        part = slice(start, start + USERS_AT_A_TIME)
        result[part] = (counts[part] @ table + conversion).min(axis=1)
    return np.where(result >= BEYOND, np.inf, np.maximum(result, 0.0))


def _gaussian_epsilons(mu: Floats, delta: float) -> Floats:
    """[U] ``gaussian_epsilon``, its bisection for all at once."""
    low = np.zeros_like(mu)
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    small = (mu == 0) | (_gaussian_deltas(low, mu) <= delta)
    open_ = ~small
    while open_.any():
        here = np.flatnonzero(open_)
        middle = (low[here] + high[here]) / 2
        enough = _gaussian_deltas(middle, mu[here]) <= delta
        high[here] = np.where(enough, middle, high[here])
        low[here] = np.where(enough, low[here], middle)
        open_[here] = high[here] - low[here] > 1e-10 * high[here]
    return np.asarray(np.where(small, 0.0, high * (1 + 1e-9)))


def _gaussian_deltas(eps: Floats, mu: Floats) -> Floats:
    """``gaussian_delta`` of ``fl_core.privacy``, for arrays; 0 where mu is 0."""
    safe = np.where(mu == 0, 1.0, mu)
    first = erfc((eps / safe - safe / 2) / math.sqrt(2)) / 2
    second = erfc((eps / safe + safe / 2) / math.sqrt(2)) / 2
    delta = np.where(eps < 700, first - np.exp(np.minimum(eps, 700.0)) * second, first)
    return np.asarray(np.where(mu == 0, 0.0, delta))
