"""Differential privacy: what was done, and what it costs.

Contract.  Unit: one *record* of one user (a vote, or a pair with both of its texts), or one
*user* with all his records.  Neighbouring relation: add or remove one record; leave out all that
one user sends, while who is enrolled and who is asked stay as they are (zero-out).  Mechanisms:

- record: the Poisson-subsampled Gaussian (Abadi et al. 2016).  In each step every record is
  taken independently with probability q, its gradient is clipped to norm C, and N(0, sigma^2 C^2)
  is added to each number of the sum.  The number of records is itself private: sums are divided
  by public constants only.
- record, fusion weights: the exponential mechanism, (e, 0)-DP (``fl_core.fusion``).
- user: the Gaussian on the sum of clipped user updates, noise z C.  No amplification is claimed
  from the server's choice of clients, so q = 1: k participations are a Gaussian mechanism with
  mu = sqrt(k) / z, exactly.

A record that trains both adapters composes over both; one step that clips the concatenated
gradient of both is one event.  What an adversary sees is a *view*: the server sees uploads, the
user's own device both adapters, the public what the server released under user-level noise.
All inexact arithmetic rounds towards a larger epsilon.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fl_core.errors import PrivacyError

Adapter = Literal["shared", "personal", "both", "fusion"]
"""Which numbers an event releases; ``both``: one step on the concatenated gradient of both."""
Unit = Literal["record", "user"]
View = Literal["server", "personal", "public"]
Kind = Literal["gaussian", "exponential"]
Mechanism = tuple[float, float, int]
"""(sampling rate q, noise multiplier sigma, steps)."""

RELATIONS: Mapping[str, str] = {
    "record": "add or remove one record",
    "user": "leave out one user's uploads",
}
"""The one relation that each unit is accounted under; under replace-one the same steps cost more."""

PRV_MOST_EPSILON = 60.0
"""Above this Renyi bound the privacy loss overflows the PRV accountant's grid."""
PRV_MOST_POINTS = 2_000_000
RENYI_ORDERS = (*(1 + x / 10 for x in range(1, 100, 3)), *range(11, 65), 80, 128, 256, 512, 1024)


# --- What was done -----------------------------------------------------------------------


@dataclass(frozen=True)
class DpEvent:
    """``steps`` equal private steps that one unit took part in; it says nothing of their cost.

    ``sampling_rate`` q in [0, 1]: Poisson rate of a record in a step, 1 for users;
    ``noise_multiplier`` sigma >= 0 (z for users): noise std over ``clip``; ``clip`` C > 0: enforced
    bound on the norm of one unit's contribution.  An exponential mechanism has ``pure_epsilon`` > 0
    a step in place of noise.  ``relation``: empty for the unit's own of ``RELATIONS``.

    Raises ``PrivacyError`` on values outside these ranges, and on a relation that is not accounted.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int
    clip: float
    adapter: Adapter
    unit: Unit = "record"
    relation: str = ""
    mechanism: Kind = "gaussian"
    pure_epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not self.relation and self.unit in RELATIONS:
            object.__setattr__(self, "relation", RELATIONS[self.unit])
        for name, holds, condition in (
            ("sampling_rate", 0 <= self.sampling_rate <= 1, "in [0, 1]"),
            ("noise_multiplier", self.noise_multiplier >= 0, ">= 0"),
            ("steps", self.steps >= 0, ">= 0"),
            ("clip", 0 < self.clip < math.inf, "> 0 and finite"),
            ("unit", self.unit in RELATIONS, f"one of {', '.join(RELATIONS)}"),
            ("relation", self.relation == RELATIONS.get(self.unit), f"{RELATIONS.get(self.unit)!r}"),
            ("mechanism", self.mechanism in get_args(Kind), f"one of {', '.join(get_args(Kind))}"),
            ("pure_epsilon", 0 <= self.pure_epsilon < math.inf, ">= 0 and finite"),
        ):
            if not holds:
                raise PrivacyError(f"DpEvent.{name}={getattr(self, name)!r}: must be {condition}")
        self._check_unit()

    def _check_unit(self) -> None:
        if (self.mechanism == "exponential") != (self.pure_epsilon > 0):
            raise PrivacyError(
                f"DpEvent.pure_epsilon={self.pure_epsilon!r}: must be > 0 for an exponential mechanism and 0 "
                f"for a Gaussian one, but mechanism={self.mechanism!r}"
            )
        if self.unit == "user" and self.sampling_rate != 1:
            raise PrivacyError(
                f"DpEvent.sampling_rate={self.sampling_rate!r}: must be 1 for users; the server sees whom it "
                "asks, so its choice amplifies nothing"
            )

    @property
    def view(self) -> View:
        """The narrowest view that shows what the event released."""
        if self.unit == "user":
            return "public"
        return "server" if self.adapter in ("shared", "both") else "personal"

    @property
    def mechanism_of_step(self) -> tuple[float, float]:
        """(q, sigma) of a Gaussian step."""
        return self.sampling_rate, self.noise_multiplier


def participations(z: float, count: int, clip: float) -> DpEvent:
    """A user's ``count`` participations in rounds whose sum got noise of std ``z`` * ``clip``."""
    return DpEvent(1.0, z, count, clip, "shared", unit="user")


def fusion_choice(pure_epsilon: float) -> DpEvent:
    """One private choice of fusion weights from held-back records (``fl_core.fusion``).

    Its utilities move by at most 1 with a record, which stands as the clip.
    """
    return DpEvent(1.0, 0.0, 1, 1.0, "fusion", mechanism="exponential", pure_epsilon=pure_epsilon)


def in_view(events: Sequence[DpEvent], view: View) -> list[DpEvent]:
    """The events whose result ``view`` shows: the device's own holds the uploads as well."""
    shown = ("server", "personal") if view == "personal" else (view,)
    return [event for event in events if event.view in shown]


# --- What it costs -----------------------------------------------------------------------


def epsilon(events: Sequence[DpEvent], delta: float) -> float:
    """The joint (epsilon, delta) cost of all ``events`` for one unit; an upper bound.

    For schedules declared beforehand: where the next event is chosen by what the last ones gave,
    ``fl_core.accounting.gate_epsilon`` is the bound that holds.  0.0 without a step and ``inf``
    where a step had no noise.  Without subsampling (q = 1) the exact Gaussian; else the smaller of
    two upper bounds: the PRV accountant of Opacus (Gopi, Lee, Wutschitz 2021; its upper estimate,
    error included) and the Renyi accountant (Mironov, Talwar, Zhang 2019).  The latter alone where
    the former's grid cannot hold the privacy loss (epsilon beyond about 60, or a delta near
    rounding error).  Pure epsilons add up.

    Raises ``PrivacyError`` when ``delta`` is not in (0, 1) or the events have different units.
    """
    mechanisms, pure = composed(events, delta)
    return _composed_epsilon(mechanisms, float(delta)) + pure


def composed(events: Sequence[DpEvent], delta: float) -> tuple[tuple[Mechanism, ...], float]:
    """The distinct Gaussian mechanisms with their steps, sorted, and the sum of pure epsilons.

    Raises ``PrivacyError`` as ``epsilon`` does.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta={delta!r}: must be in (0, 1); 1e-5 suits tens of records a user")
    if len(units := {event.unit for event in events}) > 1:
        raise PrivacyError(
            f"events of the units {', '.join(sorted(units))}: one unit a cost; take one view's events"
        )
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        noised = event.mechanism == "gaussian" and event.noise_multiplier < math.inf
        if event.steps and event.sampling_rate and noised:
            steps[event.mechanism_of_step] += event.steps
    pure = sum(event.steps * event.pure_epsilon for event in events)
    return tuple((q, sigma, t) for (q, sigma), t in sorted(steps.items())), float(pure)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism with sensitivity over noise std ``mu``, rounded up.

    Balle and Wang 2018, Theorem 8.  T full-batch steps at sigma are mu = sqrt(T) / sigma.
    """
    if mu == 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_delta(middle, mu) <= delta else (middle, high)
    return high * (1 + 1e-9)


def renyi_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Upper bound on the joint epsilon from Renyi divergences at ``RENYI_ORDERS``.

    Conversion: Canonne, Kamath, Steinke 2020, Proposition 12.
    """
    orders = np.asarray(RENYI_ORDERS)
    divergences = sum((t * renyi_divergences(q, sigma) for q, sigma, t in mechanisms), np.zeros(len(orders)))
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


def gaussian_delta(eps: float, mu: float) -> float:
    """delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2); an upper bound past eps 700."""
    first = _normal_cdf(-eps / mu + mu / 2)
    return first - math.exp(eps) * _normal_cdf(-eps / mu - mu / 2) if eps < 700 else first


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@functools.lru_cache(maxsize=4096)
def renyi_divergences(q: float, sigma: float) -> npt.NDArray[np.float64]:
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
