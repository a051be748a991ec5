"""From a privacy target to noise: the least noise multipliers whose declared steps cost at most that.

Sigma is derived from a target and an enforced clip, never declared; it is rounded up, and the
result is checked against the accountant (``fl_core.privacy.epsilon``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from fl_core.config import PrivacyConfig
from fl_core.errors import PrivacyError
from fl_core.privacy import DpEvent, epsilon

SIGMA_DECIMALS = 4
MOST_SIGMA = 1e5


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
