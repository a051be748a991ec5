"""Paired differences: their interval, their verdict, and the groups'."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.comparison import Gain, Outcome, gain, group_gains, mean_interval
from tests.simulation.report_sample import sample


def test_the_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(0.05, 0.2, size=2000)
    interval = mean_interval(values)
    assert interval is not None
    error = values.std(ddof=1) / len(values) ** 0.5
    assert interval == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.001)


def test_a_user_with_more_pairs_weighs_more() -> None:
    values, weights = np.repeat([0.0, 1.0], 50), np.repeat([1.0, 9.0], 50)
    interval = mean_interval(values, weights)
    assert interval is not None and interval[0] < 0.9 < interval[1]
    assert interval[1] - interval[0] < 0.2


def test_few_users_give_no_interval() -> None:
    assert mean_interval(np.ones(9)) is None


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(11)
    found = [mean_interval(rng.normal(0, 1, size=80), resamples=400) for _ in range(200)]
    covered = sum(ends is not None and ends[0] <= 0 <= ends[1] for ends in found)
    assert 178 <= covered <= 199


@pytest.mark.parametrize(
    ("value", "interval", "separate", "outcome"),
    [
        (0.08, (0.07, 0.09), True, Outcome.HELPED),
        (0.08, (0.07, 0.09), False, Outcome.HELPED),  # the paired interval decides
        (0.01, (0.005, 0.015), None, Outcome.HELPED_LITTLE),
        (0.03, (-0.01, 0.07), None, Outcome.UNCLEAR),
        (0.0, (-0.01, 0.01), None, Outcome.NOTHING),
        (-0.04, (-0.05, -0.03), True, Outcome.WORSE),
        (0.08, None, True, Outcome.HELPED),
        (-0.08, None, True, Outcome.WORSE),
        (0.08, None, False, Outcome.UNCLEAR),
        (0.08, None, None, Outcome.UNCLEAR),
    ],
)
def test_the_verdict_needs_evidence(
    value: float, interval: tuple[float, float] | None, separate: bool | None, outcome: Outcome
) -> None:
    assert Gain("dual", "shared", value, interval, separate, 100).outcome is outcome


def test_a_gain_is_the_mean_over_paired_users() -> None:
    results = sample()
    dual, shared = results.column("accuracy_dual"), results.column("accuracy_shared")
    found = gain(results, "dual", "shared")
    assert found is not None and dual is not None and shared is not None
    assert found.value == pytest.approx(float((dual - shared).mean()))
    assert found.users == 400 and found.separate is True


def test_minority_pairs_weigh_users() -> None:
    results = sample()
    pairs = np.arange(400) % 7
    weighted = gain(sample(users_extra={"minority_pairs": pairs}), "dual", "shared", "minority_accuracy")
    dual, shared = (results.column(f"minority_accuracy_{arm}") for arm in ("dual", "shared"))
    assert weighted is not None and dual is not None and shared is not None
    known = ~np.isnan(dual - shared)
    assert weighted.value == pytest.approx(np.average((dual - shared)[known], weights=pairs[known]))


def test_without_users_the_arms_own_intervals_decide() -> None:
    found = gain(sample(users_columns=False), "dual", "shared")
    assert found is not None and found.interval is None and found.outcome is Outcome.HELPED


def test_a_missing_arm_gives_no_gain() -> None:
    results = sample()
    without = {name: arm for name, arm in results.arms.items() if name != "shared"}
    assert gain(sample(arms=without), "dual", "shared") is None


def test_a_lost_group_is_found_and_luck_is_not() -> None:
    results = sample()
    columns = dict(results.users)
    groups = np.array(columns["group"])
    rng = np.random.default_rng(5)
    change = rng.normal(0, 0.05, size=400) - 0.1 * (groups == "terse")
    columns["accuracy_dual"] = np.asarray(columns["accuracy_shared"]) + change
    found = group_gains(sample(users=400, users_table=columns), "dual", "shared")
    assert found[0].group == "terse" and found[0].lost
    assert not any(item.lost for item in found[1:])
