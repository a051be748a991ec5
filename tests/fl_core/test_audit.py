"""The audit's statistics: closed cases, a slow reference, and ideal mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fl_core.audit import (
    GATE,
    Floats,
    batch_size_z,
    guess_bound,
    guess_p_value,
    mean_z,
    one_run_bound,
    same_noise_z,
    variance_z,
)
from fl_core.errors import PrivacyError
from fl_core.privacy import gaussian_epsilon

AUDITS = 25

# The one-run bound -----------------------------------------------------------------------


def slow_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Theorem 5.2 term by term, with probabilities counted one by one."""
    p = math.exp(eps) / (1 + math.exp(eps))
    mass = [math.comb(r, w) * p**w * (1 - p) ** (r - w) for w in range(r + 1)]
    alpha = max((sum(mass[max(0, v - i) : v]) / i for i in range(1, m + 1)), default=0.0)
    return min(1.0, sum(mass[v:]) + 2 * m * delta * alpha)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize(("m", "r", "v"), [(40, 20, 15), (40, 40, 40), (12, 5, 0), (9, 9, 5)])
def test_p_value_agrees_with_slow_code(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    assert guess_p_value(m, r, v, epsilon, delta) == pytest.approx(
        slow_p_value(m, r, v, epsilon, delta), rel=1e-9
    )


@pytest.mark.parametrize("guesses", [10, 100, 1000])
def test_all_guesses_right_has_a_closed_form(guesses: int) -> None:
    """Without delta: (e^eps / (1 + e^eps))^r = p."""
    right = 0.05 ** (1 / guesses)
    expected = math.log(right / (1 - right))
    assert guess_bound(guesses, guesses, guesses, 0.0) == pytest.approx(expected, abs=2e-4)
    assert guess_bound(guesses, guesses, guesses, 0.0) <= expected


def test_guessing_refutes_nothing() -> None:
    assert guess_bound(1000, 1000, 500, 1e-5) == 0.0
    assert guess_bound(1000, 0, 0, 1e-5) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200), st.floats(0, 1), st.floats(0, 4), st.floats(0, 1), st.sampled_from([0.0, 1e-6, 1e-3])
)
def test_monotonicity(guesses: int, share: float, epsilon: float, more: float, delta: float) -> None:
    correct = int(share * guesses)
    at = guess_p_value(300, guesses, correct, epsilon, delta)
    assert guess_p_value(300, guesses, min(guesses, correct + 1), epsilon, 0.0) <= guess_p_value(
        300, guesses, correct, epsilon, 0.0
    ) * (1 + 1e-12)
    assert guess_p_value(300, guesses, correct, epsilon, 2 * delta) >= at
    assert guess_p_value(300, guesses, correct, epsilon + more, 0.0) >= guess_p_value(
        300, guesses, correct, epsilon, 0.0
    ) * (1 - 1e-12)


@pytest.mark.parametrize(("guesses", "correct"), [(5, 6), (11, 3), (5, -1)])
def test_impossible_counts_are_refused(guesses: int, correct: int) -> None:
    with pytest.raises(PrivacyError, match="correct <= guesses <= canaries"):
        guess_p_value(10, guesses, correct, 1.0, 1e-5)


def gaussian_scores(generator: np.random.Generator, included: np.ndarray, mu: float) -> Floats:
    """The canaries' own shares of a Gaussian mechanism with orthogonal records: sensitivity over noise mu."""
    return mu * included + generator.standard_normal(len(included))


def randomized_response(generator: np.random.Generator, included: np.ndarray, epsilon: float) -> Floats:
    """The worst (epsilon, 0)-DP mechanism: says each coin, and lies with probability 1 / (1 + e^eps)."""
    lies = generator.random(len(included)) > 1 / (1 + math.exp(-epsilon))
    return np.where(included ^ lies, 1.0, 0.0) + 1e-6 * generator.standard_normal(len(included))


@pytest.mark.parametrize(
    ("mechanism", "parameter", "true", "least"),
    [
        (randomized_response, 1.0, 1.0, 0.7),
        (gaussian_scores, 0.5, gaussian_epsilon(0.5, 1e-5), 0.05),
        (gaussian_scores, 2.0, gaussian_epsilon(2.0, 1e-5), 2.0),
    ],
)
def test_bound_holds_for_ideal_mechanisms(
    mechanism: Callable[[np.random.Generator, np.ndarray, float], Floats],
    parameter: float,
    true: float,
    least: float,
) -> None:
    """Above the true epsilon at most 5% of the time, and not trivially: its median is above ``least``."""
    generator = np.random.default_rng(1)
    bounds = []
    for _ in range(AUDITS):
        included = generator.random(1000) < 0.5
        scores = mechanism(generator, included, parameter)
        bounds.append(one_run_bound(scores, included, 1e-5).epsilon)
    above = sum(bound > true for bound in bounds)
    assert binom.sf(above - 1, AUDITS, 0.05) > 1e-3
    assert np.median(bounds) > least


def test_bound_without_noise_is_large() -> None:
    included = np.random.default_rng(2).random(1000) < 0.5
    found = one_run_bound(included.astype(float), included, 1e-5)
    assert found.epsilon > 3.5
    assert found.correct == found.guesses


def test_bound_of_inverted_scores_is_zero() -> None:
    included = np.random.default_rng(2).random(1000) < 0.5
    assert one_run_bound(-included.astype(float), included, 1e-5).epsilon == 0.0


# Moments ---------------------------------------------------------------------------------


def looks_normal(z: list[float]) -> bool:
    """Mean and variance of N(0, 1) within five standard errors, and nothing beyond the gate."""
    values = np.array(z)
    count = len(values)
    near = abs(values.mean()) < 5 / math.sqrt(count) and abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    return bool(near and np.abs(values).max() < GATE)


@pytest.mark.parametrize("count", [40, 500])
def test_variance_z(count: int) -> None:
    generator = np.random.default_rng(3)
    draws = [generator.normal(0, 2.0, count) for _ in range(1000)]
    assert looks_normal([variance_z(draw, 4.0) for draw in draws])
    assert variance_z(np.zeros(count), 4.0) < -GATE
    assert variance_z(5 * draws[0], 4.0) > GATE


def test_variance_z_by_hand() -> None:
    """Where the mean square is what it should be, z is 1/3 sqrt(2 / n)."""
    assert variance_z(np.array([1.0, -1.0]), 1.0) == pytest.approx((1 / 9) / math.sqrt(1 / 9))


@pytest.mark.parametrize(("values", "variance"), [([], 1.0), ([1.0], 0.0)])
def test_variance_z_refuses_nothing_to_compare(values: list[float], variance: float) -> None:
    with pytest.raises(PrivacyError, match="variance="):
        variance_z(np.array(values), variance)


def test_mean_z() -> None:
    generator = np.random.default_rng(4)
    means, stds = np.linspace(0, 3, 50), np.linspace(1, 2, 50)
    assert looks_normal([mean_z(generator.normal(means, stds), means, stds) for _ in range(1000)])
    assert mean_z(np.array([3.0, 5.0]), np.array([1.0, 1.0]), np.array([3.0, 4.0])) == pytest.approx(6 / 5)


@pytest.mark.parametrize(("records", "rate"), [(100, 0.2), (30, 0.1), (400, 0.02)])
def test_batch_sizes(records: int, rate: float) -> None:
    """Poisson sampling passes; batches of one size, and more records than declared, do not."""
    generator = np.random.default_rng(5)
    each = np.full(60, float(records))
    drawn = [generator.binomial(records, rate, 60).astype(float) for _ in range(1000)]
    both = [batch_size_z(sizes, each, rate) for sizes in drawn]
    assert looks_normal([mean for mean, _ in both])
    variance = np.array([variance for _, variance in both])
    assert abs(variance.mean()) < 0.3
    assert (np.abs(variance) > GATE).sum() <= 1  # skewed at 3 records a batch
    assert batch_size_z(np.full(60, round(records * rate)), each, rate)[1] < -GATE
    assert batch_size_z(generator.binomial(records, min(1, 3 * rate), 60), each, rate)[0] > GATE


def test_whole_batches_are_not_random() -> None:
    assert batch_size_z(np.array([7.0, 9.0]), np.array([7.0, 9.0]), 1.0) == (0.0, 0.0)
    assert batch_size_z(np.array([7.0, 8.0]), np.array([7.0, 9.0]), 1.0) == (math.inf, math.inf)


def test_same_noise() -> None:
    generator = np.random.default_rng(6)
    found = []
    for _ in range(300):
        noise, left_out = generator.standard_normal((4, 120)), generator.random((4, 120)) < 0.5
        found.append(same_noise_z(noise, left_out))
    assert max(found) < GATE
    assert min(found) >= 0
    alike = np.concatenate([noise[:3], noise[:1]])
    assert same_noise_z(alike, left_out) > GATE
    partly = np.concatenate([noise[:3], noise[:1] + noise[3:]])
    assert same_noise_z(partly, np.ones((4, 120), dtype=bool)) > GATE
    assert same_noise_z(-alike + 2 * alike * (np.arange(4) == 3)[:, None], left_out) > GATE, (
        "its negative too"
    )


def test_one_user_has_nobody_to_be_like() -> None:
    assert same_noise_z(np.ones((1, 9)), np.ones((1, 9), dtype=bool)) == 0.0
