"""Calibration: the target is met from below, by as little noise as that takes."""

from __future__ import annotations

import pytest

from fl_core.calibration import Sigmas, calibrate
from fl_core.config import PrivacyConfig
from fl_core.errors import PrivacyError
from fl_core.privacy import DpEvent, epsilon


def spent(config: PrivacyConfig, sigmas: Sigmas, shared: int, personal: int) -> float:
    q, clip = config.sampling_rate, config.clip
    pair = [
        DpEvent(q, sigmas.shared, shared, clip, "shared"),
        DpEvent(q, sigmas.personal, personal, clip, "personal"),
    ]
    return epsilon(pair, config.delta)


@pytest.mark.parametrize(
    ("target", "share", "shared", "personal"), [(2.0, 0.5, 40, 60), (8.0, 0.8, 20, 5), (8.0, 0.5, 0, 30)]
)
def test_calibration_meets_the_target_from_below_and_splits_as_asked(
    target: float, share: float, shared: int, personal: int
) -> None:
    config = PrivacyConfig(epsilon=target, personal_share=share)
    sigmas = calibrate(config, shared, personal)
    cost = spent(config, sigmas, shared, personal)
    assert target * 0.999 <= cost <= target
    less = Sigmas(sigmas.shared * 0.998, sigmas.personal * 0.998)
    assert spent(config, less, shared, personal) > target
    if shared:
        parts = shared / sigmas.shared**2, personal / sigmas.personal**2
        assert parts[1] / sum(parts) == pytest.approx(share, abs=1e-3)


def test_calibration_without_sampling_is_the_exact_gaussian() -> None:
    config = PrivacyConfig(epsilon=1.53, delta=1e-6, sampling_rate=1.0)
    sigmas = calibrate(config, 6, 0)
    assert sigmas.shared == pytest.approx(7.0, rel=0.005)
    assert sigmas.personal == sigmas.shared


def test_calibration_of_nothing_private() -> None:
    assert calibrate(PrivacyConfig(epsilon=0.0), 40, 60) == Sigmas(0.0, 0.0)
    assert calibrate(PrivacyConfig(sampling_rate=1.0), 0, 0).personal > 0


def test_an_unreachable_target_is_an_error_with_a_fix() -> None:
    config = PrivacyConfig(epsilon=1e-9, delta=1e-12, sampling_rate=1.0)
    with pytest.raises(PrivacyError, match=r"epsilon=1e-09.*raise privacy\.epsilon"):
        calibrate(config, 1000, 1000)
    with pytest.raises(PrivacyError, match="steps"):
        calibrate(config, -1, 10)
