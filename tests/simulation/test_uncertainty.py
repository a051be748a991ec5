"""Intervals over users, and the test of who was harmed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulation.held_out import TestPairs
from simulation.uncertainty import LEVEL, bootstrap_interval, harm_test, sign_test


def pairs_of(user, chosen, rejected) -> TestPairs:
    n = len(user)
    return TestPairs(
        np.array(user, np.int32),
        np.array(chosen, np.int32),
        np.array(rejected, np.int32),
        np.zeros(n, bool),
        np.zeros(n, np.int16),
    )


def test_interval_of_a_mean_has_the_textbook_width():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    low, high = bootstrap_interval(values, np.ones(400), seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (low, high) == bootstrap_interval(values, np.ones(400), seed=1)


def test_intervals_of_extremes():
    assert bootstrap_interval(np.array([]), np.array([]), 0) is None
    assert bootstrap_interval(np.zeros(3), np.zeros(3), 0) is None
    assert bootstrap_interval(np.ones(5), np.ones(5), 0) == (1.0, 1.0)


def test_a_ratio_weighs_users_by_their_pairs():
    # One user with 99 of 100 right and one with 0 of 1: resamples give .99, .98 or 0.
    low, high = bootstrap_interval(np.array([99.0, 0.0]), np.array([100.0, 1.0]), 0)
    assert (low, high) == (0.0, pytest.approx(0.99))


@pytest.mark.parametrize("wins", range(4))
@pytest.mark.parametrize("losses", range(8))
def test_sign_test_against_binomial_sums(wins, losses):
    n = wins + losses
    tails = [sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(n + 1)]
    p, size = sign_test(wins, losses)
    assert p == pytest.approx(tails[wins])
    assert size == pytest.approx(max((t for t in tails if t <= LEVEL), default=0.0))


def test_independent_pairs_use_the_sign_test():
    # User 0 loses five of five pairs (p = 1/32), user 2 four of four (1/16), user 1 has none.
    user = [0] * 5 + [2] * 4
    pairs = pairs_of(user, range(0, 18, 2), range(1, 18, 2))
    test = harm_test(np.zeros(9), np.ones(9), pairs, 3)
    assert test.p_value == pytest.approx([1 / 32, 1, 1 / 16])
    assert test.significant().tolist() == [True, False, False]
    assert test.false_rate == pytest.approx([1 / 32, 0, 0])


def test_vote_pairs_use_the_variance_over_texts():
    # 3 agreed x 2 disagreed.  Differences by agreed text: -1, -1/2, 0; by disagreed: -1/3, -2/3.
    difference = np.array([-1, -1, 0, -1, 0, 0], dtype=float)
    pairs = pairs_of([0] * 6, [0, 0, 1, 1, 2, 2], [3, 4, 3, 4, 3, 4])
    test = harm_test(0.5 + difference / 2, 0.5 - difference / 2, pairs, 1)
    variance = 0.25 / 3 + (1 / 18) / 2
    statistic = -0.5 / math.sqrt(variance)
    # Student's t with 3 degrees of freedom, in closed form.
    x = statistic / math.sqrt(3)
    expected = 0.5 + (x / (1 + x * x) + math.atan(x)) / math.pi
    assert test.p_value[0] == pytest.approx(expected)
    assert test.false_rate[0] == LEVEL


def test_one_disagreed_text_says_nothing():
    pairs = pairs_of([0] * 20, range(20), [20] * 20)
    test = harm_test(np.zeros(20), np.ones(20), pairs, 1)
    assert test.p_value.tolist() == [1.0] and test.false_rate.tolist() == [0.0]


def test_all_pairs_worse_and_all_alike():
    user, chosen, rejected = [0] * 25, np.repeat(range(5), 5), np.tile(range(5, 10), 5)
    pairs = pairs_of(user, chosen, rejected)
    assert harm_test(np.zeros(25), np.ones(25), pairs, 1).p_value[0] == 0.5**5
    assert harm_test(np.ones(25), np.ones(25), pairs, 1).p_value[0] == 1
    assert harm_test(np.ones(25), np.zeros(25), pairs, 1).p_value[0] == 1


def test_equal_arms_are_rarely_called_harmful():
    # 300 users, 12 x 6 votes; both arms see the truth through noise of equal size.
    generator = np.random.default_rng(4)
    agreed, disagreed = np.arange(12), np.arange(12, 18)
    chosen, rejected = np.repeat(agreed, 6), np.tile(disagreed, 12)
    pairs = pairs_of(np.repeat(np.arange(300), 72), np.tile(chosen, 300), np.tile(rejected, 300))
    truth = np.where(np.arange(18) < 12, 0.7, -0.7)
    arms = [pairs.margins(truth + generator.normal(0, 1, (300, 18))) > 0 for _ in range(2)]
    test = harm_test(arms[0].astype(float), arms[1].astype(float), pairs, 300)
    # Expected at most 5%; the standard error of 300 users is 1.3%.
    assert 0 < test.significant().mean() < 0.09
