"""Central differential privacy for users: what the server does to a round's uploads.

Contract.  Unit: one *user*, with all that he ever sends.  Neighbouring relation: leave out all his
uploads; who is enrolled, who is asked in which round and every public constant stay as they are
(zero-out), and a round in which nobody sends is noised and released as any other.  Sensitivity of a
round's sum: ``user_clip`` C, since every upload is scaled to a norm of at most C: here for a device,
and for the users of a simulated node inside the node's own sum as well.  Mechanism: N(0, z^2 C^2) is
added to each number of the sum (McMahan et al. 2018, "Learning Differentially Private Recurrent
Language Models", Algorithm 1, with a fixed denominator), which is then divided by a public constant,
never by the number of users who came.  Who is asked is known, so nothing is claimed from sampling: k
participations are k Gaussian mechanisms, which compose to one with sensitivity over noise
mu = sqrt(k) / z (Dong, Roth, Su 2022), exactly.

It protects users from everybody who sees released adapters; the server, which adds the noise, is
trusted with the uploads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fl_core.config import PrivacyConfig
from fl_core.errors import ConfigurationError
from fl_core.noise import NoiseSource, Purpose, SimulationNoise, SystemNoise
from fl_core.wire import Arrays, norm

NOBODY = -1
"""In the place of a user in the key of simulated noise that is the server's own."""

ROUNDING = 1e-6
"""Relative slack between a node's clip, in its own float32 sums, and the server's."""


def clipped_report(arrays: Arrays, count: int, clip: float) -> Arrays:
    """A sum of ``count`` users' uploads, scaled to a norm of at most ``count * clip``.

    For one user this is the clip itself.  A simulated node clips each of its users, and its sum
    passes as it is; a node that did not is cut to what its users may weigh together.
    """
    size, most = norm(arrays), count * clip
    if size <= most * (1 + ROUNDING):
        return arrays
    return {name: (value * (most / size)).astype(np.float32) for name, value in arrays.items()}


def check_denominator(privacy: PrivacyConfig) -> None:
    """Raise ``ConfigurationError`` where a round's sum has no public constant to be divided by."""
    if privacy.round_users < 1:
        raise ConfigurationError(
            "privacy.round-users=0: with privacy.user-noise a round's sum is divided by a public constant; "
            "set it to the number of users that a round is expected to have"
        )


def noised_mean(
    reports: Sequence[tuple[Arrays, int]],
    privacy: PrivacyConfig,
    noise: NoiseSource,
    server_round: int,
    attempt: int = 0,
) -> dict[str, npt.NDArray[np.float64]]:
    """(sum of clipped uploads + N(0, z^2 C^2)) / ``privacy.round_users``, in float64.

    Raises ``ConfigurationError`` where the denominator was not declared.
    """
    check_denominator(privacy)
    clipped = [clipped_report(arrays, count, privacy.user_clip) for arrays, count in reports]
    names = sorted(clipped[0])
    std, mean = privacy.user_noise * privacy.user_clip, {}
    sizes = [clipped[0][name].size for name in names]
    drawn = noise.normal((sum(sizes),), NOBODY, server_round, attempt, int(Purpose.USER_LEVEL))
    for name, part in zip(names, np.split(drawn, np.cumsum(sizes)[:-1]), strict=True):
        total = np.sum([arrays[name] for arrays in clipped], axis=0, dtype=np.float64)
        mean[name] = (total + std * part.reshape(total.shape)) / privacy.round_users
    return mean


def server_noise(privacy: PrivacyConfig, seed: int) -> NoiseSource:
    """The operating system's noise, or in a simulation the seed's."""
    return SystemNoise() if privacy.noise == "system" else SimulationNoise(seed)
