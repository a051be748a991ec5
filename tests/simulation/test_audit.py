"""The audit's verdict: what it makes of what was observed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fl_core.audit import Bound
from fl_core.config import RunConfig
from fl_core.errors import PrivacyError
from fl_core.privacy import DpEvent
from simulation.audit import Audit, audit, contribution_error, path_audit
from simulation.canaries import Observed


def ideal(sigma: float = 4.0, actual: float = 4.0, shift: float = 1.0, seed: int = 0) -> Observed:
    """What a mechanism with noise ``actual`` and contributions ``shift`` shows, if it declares ``sigma``."""
    generator = np.random.default_rng(seed)
    included = generator.random((4, 200)) < 0.5
    taken = shift * (included & (generator.random((5, 4, 200)) < 0.5))
    scores = taken + actual * generator.standard_normal(taken.shape)
    return Observed(DpEvent(0.5, sigma, 5, 0.25, "shared"), included, scores, taken, np.ones((4, 200)))


def test_ideal_mechanism_passes() -> None:
    found = path_audit("shared", ideal(), 1e-5)
    assert found.gate and found.within_claim
    assert found.to_json()["verdict"] == "pass"


@pytest.mark.parametrize(
    ("observed", "test"),
    [
        (ideal(actual=3.2), "noise variance, each step"),
        (ideal(shift=3.0), "mean of included"),
        (ideal(shift=1.2), "contribution is not 0 or C"),
    ],
)
def test_faults_are_named(observed: Observed, test: str) -> None:
    found = path_audit("shared", observed, 1e-5)
    assert test in found.caught()
    assert found.to_json()["moment_gate"] == "fail"
    assert found.to_json()["verdict"] == "fail"


def test_noise_that_repeats_is_seen_in_the_sum_alone() -> None:
    """The same noise in each step: right in each, and T^2 instead of T in the sum."""
    observed = ideal()
    noise = observed.scores - observed.contributions
    found = path_audit("shared", replace(observed, scores=observed.contributions + noise[:1]), 1e-5)
    assert "noise variance" in found.caught()


def test_not_a_number_is_caught() -> None:
    observed = ideal()
    observed.scores[0, 0, 0] = np.nan
    assert path_audit("shared", observed, 1e-5).caught()


def test_a_left_out_canary_contributes_nothing() -> None:
    observed = ideal()
    observed.contributions[0][~observed.included] = 1.0
    assert contribution_error(observed) == 1.0


def test_the_worst_path_stands_at_the_top() -> None:
    good = path_audit("shared", ideal(), 1e-5)
    bad = replace(good, bound=Bound(2 * good.claimed, 10, 10))
    found = Audit({"a": good, "b": bad}, 1e-5, 0).to_json()
    assert found["epsilon_lower_bound"] == 2 * good.claimed
    assert found["epsilon_claimed"] == good.claimed
    assert found["moment_gate"] == "pass"
    assert found["verdict"] == "fail"


def test_a_large_claim_is_at_the_top_only_if_it_is_refuted() -> None:
    low = replace(path_audit("shared", ideal(), 1e-5), claimed=1.0, bound=Bound(0.1, 10, 6))
    high = replace(low, claimed=8.0, bound=Bound(4.0, 10, 9))
    assert Audit({"low": low, "high": high}, 1e-5, 0).worst() is low
    refuted = replace(high, bound=Bound(9.0, 10, 10))
    assert Audit({"low": low, "high": refuted}, 1e-5, 0).worst() is refuted


def test_the_files_json_has_numbers_only() -> None:
    """JSON knows no infinity: such a test is null, and named among those that failed."""
    found = replace(path_audit("shared", ideal(), 1e-5), z={"batch size": np.inf}).to_json()
    assert found["z"] == {"batch size": None}
    assert found["failed_tests"] == ["batch size"]


@pytest.mark.parametrize(
    ("claim", "canaries", "configured", "named"),
    [(0.0, 512, 8.0, "epsilon=0.0"), (1.5, 512, 8.0, "epsilon=1.5"), (1.0, 8, 8.0, "canaries=8"),
     (1.0, 512, 0.0, "privacy.epsilon=0")],
)  # fmt: skip
def test_wrong_settings_are_refused(claim: float, canaries: int, configured: float, named: str) -> None:
    config = RunConfig.from_flat({"privacy.epsilon": configured})
    with pytest.raises(PrivacyError, match=named):
        audit(config, claim, canaries)
