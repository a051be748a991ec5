"""Differential privacy: what was done, and what it costs.

Contract.  Unit: one *record* of one user (a vote, or a pair with both of its texts).
Neighbouring relation: add or remove one record.  Mechanism: the Poisson-subsampled Gaussian
(Abadi et al. 2016): in each step every record is taken independently with probability q, its
gradient is clipped to norm C, and N(0, sigma^2 C^2) is added to each number of the sum.  The
number of records is itself private: sums are divided by public constants only.  No
amplification is claimed from the server's choice of clients.

A record that trains both adapters composes over both; one step that clips the concatenated
gradient of both is one event.  All inexact arithmetic rounds towards a larger epsilon.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl_core.errors import PrivacyError

Adapter = Literal["shared", "personal"]
Mechanism = tuple[float, float, int]
"""(sampling rate q, noise multiplier sigma, steps)."""

UNIT = "record"
RELATION = "add or remove one record"

PRV_MOST_EPSILON = 60.0
"""Above this Renyi bound the privacy loss overflows the PRV accountant's grid."""
PRV_MOST_POINTS = 2_000_000
RENYI_ORDERS = (*(1 + x / 10 for x in range(1, 100, 3)), *range(11, 65), 80, 128, 256, 512, 1024)


# --- What was done -----------------------------------------------------------------------


@dataclass(frozen=True)
class DpEvent:
    """``steps`` equal private steps on one adapter of one user; it says nothing of their cost.

    ``sampling_rate`` q in [0, 1]: Poisson rate of a record in a step; ``noise_multiplier``
    sigma >= 0: noise std over ``clip``; ``clip`` C > 0: enforced bound on the norm of one
    record's contribution.  Raises ``PrivacyError`` on values outside these ranges.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    clip: float
    adapter: Adapter
    unit: str = UNIT
    relation: str = RELATION

    def __post_init__(self) -> None:
        for name, holds, condition in (
            ("sampling_rate", 0 <= self.sampling_rate <= 1, "in [0, 1]"),
            ("noise_multiplier", self.noise_multiplier >= 0, ">= 0"),
            ("steps", self.steps >= 0, ">= 0"),
            ("clip", 0 < self.clip < math.inf, "> 0 and finite"),
        ):
            if not holds:
                raise PrivacyError(f"DpEvent.{name}={getattr(self, name)!r}: must be {condition}")


# --- What it costs -----------------------------------------------------------------------


def epsilon(events: Sequence[DpEvent], delta: float) -> float:
    """The joint (epsilon, delta) cost of all ``events`` for one record; an upper bound.

    0.0 without a step and ``inf`` where a step had no noise.  Without subsampling (q = 1) the
    exact Gaussian; else the smaller of two upper bounds: the PRV accountant of Opacus (Gopi,
    Lee, Wutschitz 2021; its upper estimate, error included) and the Renyi accountant
    (Mironov, Talwar, Zhang 2019).  The latter alone where the former's grid cannot hold the
    privacy loss (epsilon beyond about 60, or a delta near rounding error).

    Raises ``PrivacyError`` when ``delta`` is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta!r}: must be in (0, 1); 1e-5 suits tens of records a user")
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        if event.steps and event.sampling_rate and event.noise_multiplier < math.inf:
            steps[event.sampling_rate, event.noise_multiplier] += event.steps
    return _composed_epsilon(tuple((q, sigma, t) for (q, sigma), t in sorted(steps.items())), float(delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism with sensitivity over noise std ``mu``, rounded up.

    Balle and Wang 2018, Theorem 8.  T full-batch steps at sigma are mu = sqrt(T) / sigma.
    """
    if mu == 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _gaussian_delta(middle, mu) <= delta else (middle, high)
    return high * (1 + 1e-9)


def renyi_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Upper bound on the joint epsilon from Renyi divergences at ``RENYI_ORDERS``.

    Conversion: Canonne, Kamath, Steinke 2020, Proposition 12.
    """
    orders = np.asarray(RENYI_ORDERS)
    divergences = sum((t * _renyi_divergences(q, sigma) for q, sigma, t in mechanisms), np.zeros(len(orders)))
    bounds = divergences - (math.log(delta) + np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.min(np.where(np.isnan(bounds), np.inf, bounds))))


@functools.lru_cache(maxsize=4096)
def _composed_epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    if not mechanisms:
        return 0.0
    if any(sigma == 0 for _, sigma, _ in mechanisms):
        return math.inf
    mechanisms = _full_batches_merged(mechanisms)
    if all(q == 1 for q, _, _ in mechanisms):
        return gaussian_epsilon(1 / mechanisms[0][1], delta)
    bound = renyi_epsilon(mechanisms, delta)
    return min(bound, _prv_epsilon(mechanisms, delta, bound)) if bound <= PRV_MOST_EPSILON else bound


def _full_batches_merged(mechanisms: tuple[Mechanism, ...]) -> tuple[Mechanism, ...]:
    """Gaussians compose exactly: T steps at sigma without sampling are one at sigma / sqrt(T)."""
    precision = sum(t / sigma**2 for q, sigma, t in mechanisms if q == 1)
    sampled = tuple(item for item in mechanisms if item[0] < 1)
    return (*sampled, (1.0, precision**-0.5, 1)) if precision else sampled


def _gaussian_delta(eps: float, mu: float) -> float:
    """delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2); an upper bound past eps 700."""
    first = _normal_cdf(-eps / mu + mu / 2)
    return first - math.exp(eps) * _normal_cdf(-eps / mu - mu / 2) if eps < 700 else first


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@functools.lru_cache(maxsize=4096)
def _renyi_divergences(q: float, sigma: float) -> npt.NDArray[np.float64]:
    """[orders] Renyi divergence of one step; ``inf`` at orders that cannot be computed."""
    from opacus.accountants.analysis.rdp import _compute_rdp

    result = np.full(len(RENYI_ORDERS), np.inf)
    for i, order in enumerate(RENYI_ORDERS):
        try:
            result[i] = _compute_rdp(q, sigma, order)
        except (ValueError, OverflowError):  # a log-space difference of equal terms at extreme q, sigma
            continue
    result[np.isnan(result) | (result < 0)] = np.inf
    return result


def _prv_epsilon(mechanisms: tuple[Mechanism, ...], delta: float, bound: float) -> float:
    """The PRV accountant's upper estimate; ``inf`` where it refuses.

    Its absolute error in epsilon is part of the result, so it is kept near a five-hundredth
    of ``bound`` (a known upper bound), but no smaller than a grid of ``PRV_MOST_POINTS`` allows.
    """
    from opacus.accountants import PRVAccountant

    delta_error = delta / 1000
    reach = renyi_epsilon(mechanisms, delta_error / 4) + 3
    spread = math.sqrt(sum(t for _, _, t in mechanisms) * math.log(12 / delta_error) / 2)
    eps_error = max(0.002 * bound, 1e-3, 2 * reach * spread / PRV_MOST_POINTS)
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, t) for q, sigma, t in mechanisms]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            result = float(accountant.get_epsilon(delta, eps_error=eps_error, delta_error=delta_error))
    except (ValueError, RuntimeError, OverflowError, ZeroDivisionError, IndexError):
        return math.inf
    return result if result > 0 else math.inf
