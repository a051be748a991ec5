"""Record-level differential privacy: what was done, what it costs, and the randomness for it.

Contract.  Unit: one *record* of one user (a vote, or a pair with both of its texts).
Neighbouring relation: add or remove one record.  Mechanism: the Poisson-subsampled Gaussian
(Abadi et al. 2016): in each step every record is taken independently with probability q, its
gradient is clipped to norm C, and N(0, sigma^2 C^2) is added to each number of the sum.  The
number of records is itself private: sums are divided by public constants only.  No
amplification is claimed from the server's choice of clients.

A record that trains both adapters composes over both; one step that clips the concatenated
gradient of both is one event.  All inexact arithmetic rounds towards a larger epsilon.

Limits: numbers are floating point, so the guarantee is that of the ideal mechanism (Mironov
2012 on least significant bits); ``SimulationNoise`` is reproducible and protects nobody.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import math
import secrets
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fl_core.config import PrivacyConfig
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
SIGMA_DECIMALS = 4
MOST_SIGMA = 1e5


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


# --- From a target to noise --------------------------------------------------------------


@dataclass(frozen=True)
class Sigmas:
    """Noise multipliers of the shared and the personal steps; both 0 means no DP."""

    shared: float
    personal: float


def calibrate(config: PrivacyConfig, shared_steps: int, personal_steps: int) -> Sigmas:
    """The least noise for which all declared steps together cost at most ``config.epsilon``.

    Of the sum of 1/sigma^2 over all steps, ``config.personal_share`` goes to the personal
    ones; if one count is 0 the other kind gets everything, and a step of the absent kind
    would get the same noise.  ``config.epsilon`` = 0 gives ``Sigmas(0, 0)``: no DP.  Sigmas
    are rounded up, and the result is checked against ``epsilon`` before it is returned.

    Raises ``PrivacyError`` when a count is negative or no sigma up to 1e5 reaches the target.
    """
    if min(shared_steps, personal_steps) < 0:
        raise PrivacyError(f"steps=({shared_steps}, {personal_steps}): both counts must be >= 0")
    if config.epsilon == 0:
        return Sigmas(0.0, 0.0)
    return _calibrated(config, shared_steps, personal_steps)


@functools.lru_cache(maxsize=256)
def _calibrated(config: PrivacyConfig, shared_steps: int, personal_steps: int) -> Sigmas:
    def at(scale: float) -> Sigmas:
        return _split(scale, config.personal_share, shared_steps, personal_steps)

    def cost(scale: float) -> float:
        sigmas = at(scale)
        q, clip = config.sampling_rate, config.clip
        events = (
            DpEvent(q, sigmas.shared, shared_steps, clip, "shared"),
            DpEvent(q, sigmas.personal, personal_steps or int(shared_steps == 0), clip, "personal"),
        )
        return epsilon(events, config.delta)

    return at(_least_scale(cost, config.epsilon, config.delta))


def _split(scale: float, share: float, shared_steps: int, personal_steps: int) -> Sigmas:
    """Sigmas, rounded up, with 1/scale^2 = T_s/sigma_s^2 + T_p/sigma_p^2, split by ``share``."""
    if not shared_steps or not personal_steps:
        only = _rounded_up(scale * math.sqrt(max(shared_steps, personal_steps, 1)))
        return Sigmas(only, only)
    return Sigmas(
        shared=_rounded_up(scale * math.sqrt(shared_steps / (1 - share))),
        personal=_rounded_up(scale * math.sqrt(personal_steps / share)),
    )


def _rounded_up(sigma: float) -> float:
    steps_per_unit = 10.0**SIGMA_DECIMALS
    return math.ceil(sigma * steps_per_unit) / steps_per_unit


def _least_scale(cost: Callable[[float], float], target: float, delta: float) -> float:
    """The least scale with cost(scale) <= target, to 1e-4 relative; cost falls with the scale."""
    low = high = 1.0
    while cost(high) > target:
        low, high = high, 2 * high
        if high > MOST_SIGMA:
            raise PrivacyError(
                f"epsilon={target!r} at delta={delta!r}: no noise multiplier up to {MOST_SIGMA:g} reaches "
                "it; raise privacy.epsilon or privacy.delta, or lower the steps or privacy.sampling-rate"
            )
    while cost(low) <= target and low > 1e-3:
        low, high = low / 2, low
    while high > low * (1 + 1e-4):
        middle = _guess(low, high, cost(low) / target, cost(high) / target)
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return high


def _guess(low: float, high: float, above: float, below: float) -> float:
    """Where log cost over log scale, taken as a line, is zero; kept 2% (at least 4e-5) inside."""
    width = math.log(high / low)
    usable = above < math.inf and below > 0 and above > below
    at = math.log(above) / math.log(above / below) if usable else 0.5
    edge = max(0.02, min(0.5, 4e-5 / width))
    # A little past the root, towards the farther end: that end moves close to the root at once.
    aim = at + (edge if at < 0.5 else -edge)
    return low * math.exp(width * min(max(aim, edge), 1 - edge))


# --- Randomness --------------------------------------------------------------------------


class Purpose(enum.IntEnum):
    """What random numbers are for; part of their key, so that no two uses share numbers."""

    SHARED_STEP = 0
    PERSONAL_STEP = 1
    SHARED_SAMPLE = 2
    PERSONAL_SAMPLE = 3
    FUSION = 4
    AT_PRIOR = 5
    USER_LEVEL = 6


class NoiseSource(Protocol):
    """Independent random numbers for one (user, round, step, purpose)."""

    def normal(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float32]:
        """Standard normal numbers, float32."""
        ...

    def uniform(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float64]:
        """Numbers uniform on [0, 1), float64."""
        ...


@dataclass(frozen=True)
class SimulationNoise:
    """Reproducible noise: the key alone decides it, not the cohort.  Protects nobody."""

    seed: int

    def normal(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float32]:
        """Standard normal numbers of the key (seed, user, round, step, purpose)."""
        return keyed_normal(shape, (self.seed, user, server_round, step, purpose))

    def uniform(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float64]:
        """Uniform numbers of the same key, from a stream of their own."""
        return _keyed_generator((self.seed, user, server_round, step, purpose), "uniform").random(shape)


@dataclass(frozen=True)
class SystemNoise:
    """Noise for devices, from the operating system's entropy; the key is ignored."""

    def normal(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float32]:
        """Standard normal numbers, new at each call."""
        return system_normal(shape)

    def uniform(
        self, shape: tuple[int, ...], user: int, server_round: int, step: int, purpose: int
    ) -> npt.NDArray[np.float64]:
        """Uniform numbers, new at each call."""
        return system_uniform(shape)


def keyed_normal(shape: tuple[int, ...], key: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal numbers that ``key`` alone decides (Philox, keyed by a hash of ``key``).

    The same bytes for the same key under one numpy version.  For simulation only.
    """
    return _keyed_generator(key, "normal").standard_normal(shape, dtype=np.float32)


def poisson_mask(n: int, rate: float, key: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """[n] True where a record takes part, each independently with probability ``rate``.

    Record i is decided by the key's i-th number alone: not by n, nor by other records.  On a
    device use ``poisson_sample`` with ``SystemNoise``: which records were taken is secret.
    """
    return _keyed_generator(key, "poisson").random(n) < rate


def poisson_sample(
    noise: NoiseSource, n: int, rate: float, user: int, server_round: int, step: int, purpose: int
) -> npt.NDArray[np.bool_]:
    """[n] a Poisson sample as ``poisson_mask`` gives, from ``noise``."""
    return noise.uniform((n,), user, server_round, step, purpose) < rate


def system_normal(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal numbers from the operating system's cryptographic generator.

    Box and Muller's transform of 53-bit uniform numbers: no state in the process, nothing
    shared between forks, no global generator; the largest possible magnitude is 8.57.
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    radius = np.sqrt(-2 * np.log1p(-system_uniform((pairs,))))
    angle = 2 * np.pi * system_uniform((pairs,))
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return numbers[:count].astype(np.float32).reshape(shape)


def system_uniform(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Numbers uniform on [0, 1) with 53 random bits each, from the operating system."""
    words = np.frombuffer(secrets.token_bytes(8 * math.prod(shape)), dtype=np.uint64)
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def _keyed_generator(key: tuple[int, ...], stream: str) -> np.random.Generator:
    """Hashing first, because ``SeedSequence`` gives (1,) and (1, 0) the same state."""
    text = f"{stream}:{','.join(str(int(part)) for part in key)}"
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"duet-noise").digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))
