"""The first lines tell the truth in both directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulation.findings import Findings, findings
from simulation.results import Results
from tests.simulation.report_sample import sample


def everything(found: Findings) -> str:
    answers = (f"{a.question} {a.headline} {' '.join(a.sentences)}" for a in found.answers)
    return " ".join((found.headline, *answers, *found.cautions))


def real(results: Results) -> Results:
    return replace(results, population=replace(results.population, simulated=False))


def flat_dual(noise: float, users: int = 400) -> Results:
    """Dual differs from shared by noise of mean zero only."""
    base = sample(users=users)
    change = np.random.default_rng(2).normal(0, noise, size=users)
    change -= change.mean()
    columns = {**base.users, "accuracy_dual": np.asarray(base.users["accuracy_shared"]) + change}
    shared = base.evaluated("shared")
    same = {"accuracy": shared.accuracy, "ci95": shared.ci95}
    return sample(users=users, users_table=columns, arm_changes={"dual": same})


def test_a_gain_is_called_a_gain_with_its_interval() -> None:
    found = findings(real(sample()))
    assert found.headline == "Personalization helped. With differential privacy it still helps."
    assert found.answers[0].tone == "good"
    first = found.answers[0].sentences[0]
    assert "dual 79.2%, shared 71.6%, +7.6 points (95% interval +6.8 to" in first
    assert "do not overlap" in first
    assert "against the majority" in found.answers[0].sentences[1]


def test_simulated_users_prove_nothing_about_people() -> None:
    assert "proves nothing about people" in findings(sample()).headline
    assert "proves nothing about people" not in everything(findings(real(sample())))


def test_a_small_gain_is_called_small() -> None:
    headline = findings(sample({"dual": 0.015, "dual_dp": 0.0})).headline
    assert headline.startswith("Personalization helped, but only a little.")


def test_no_difference_is_not_called_a_gain() -> None:
    nothing, unclear = findings(flat_dual(0.02)), findings(flat_dual(0.6, users=40))
    assert "did not help: it made no difference that matters" in nothing.headline
    assert nothing.answers[0].tone == unclear.answers[0].tone == "unclear"
    assert "too small to tell" in unclear.headline or "No gain" in unclear.headline
    assert "Personalization helped" not in nothing.headline + unclear.headline


def test_a_loss_is_called_a_loss() -> None:
    found = findings(sample({"dual": -0.05, "dual_dp": -0.08}))
    assert "it made the model worse" in found.headline
    assert "With differential privacy it makes the model worse" in found.headline
    assert found.answers[0].tone == "bad"
    assert "dual 66" in found.answers[0].sentences[0] and "−" in found.answers[0].sentences[0]


def test_privacy_can_lose_the_gain() -> None:
    results = sample({"dual_dp": -0.0095})
    assert "With differential privacy the gain is lost." in findings(results).headline
    worse = sample({"dual_dp": -0.06})
    assert "With differential privacy it makes the model worse." in findings(worse).headline


def test_an_arm_that_beats_only_a_noisy_baseline_is_told_so() -> None:
    text = everything(findings(sample({"shared_dp": -0.1, "dual_dp": -0.03})))
    assert "against the shared model trained without DP, dual with DP shows no gain" in text


def test_no_gain_on_new_texts_limits_the_claim() -> None:
    base = sample()
    columns = {**base.users, "accuracy_unseen_dual": base.users["accuracy_unseen_shared"]}
    text = everything(findings(sample(users_table=columns)))
    assert "already judged, not for new ones" in text
    assert "already judged" not in everything(findings(base))


def test_references_and_local_are_compared_both_ways() -> None:
    assert "matrix factorization, K = 4 (81.2%), does better than dual" in everything(findings(sample()))
    weak = sample(references={"text_mean": {"accuracy": 0.6}})
    assert "mean of each text (60.0%), does worse than dual" in everything(findings(weak))
    strong_local = everything(findings(sample({"local": 0.1})))
    assert "learning alone on the device does as well or better" in strong_local
    assert "learning alone" not in everything(findings(sample()))


def test_missing_arms_are_told() -> None:
    only = {name: sample().arms[name] for name in ("base", "shared")}
    found = findings(sample(arms=only))
    assert "was not measured" in found.headline and "Not measured" in found.answers[1].headline
    dp = {name: sample().arms[name] for name in ("shared_dp", "dual_dp")}
    assert "(Measured with differential privacy only.)" in findings(sample(arms=dp)).headline


def test_an_epsilon_never_stands_without_its_unit() -> None:
    for text in (findings(sample()).answers[2].headline, everything(findings(sample()))):
        for after in text.split("ε = ")[1:]:
            assert after.startswith("8.00 at δ = 1e-5, unit: one record, relation: add or remove one record")


def test_without_privacy_no_guarantee_is_claimed() -> None:
    plain = {name: sample().arms[name] for name in ("shared", "dual")}
    cost = findings(sample(arms=plain)).answers[2].headline
    assert "no guarantee" in cost and "ε" not in cost


def test_bytes_and_seconds_are_told() -> None:
    cost = findings(sample(seconds={"total": 200.0}))
    assert "12.3 kB sent and 41.0 kB received a user and round" in cost.answers[2].headline
    assert "3 min 20 s" in cost.answers[2].headline
    assert "2.1 MB over 40 rounds" in everything(cost)


def test_few_users_are_told() -> None:
    assert "only 30 users" in everything(findings(sample(users=30)))


@pytest.mark.parametrize("users", [3, 9])
def test_a_handful_of_users_never_gives_a_verdict_from_an_interval(users: int) -> None:
    assert "fewer than 10 users" in everything(findings(sample(users=users)))
