"""Whom it hurt: users, groups, the bottom decile, universal values."""

from __future__ import annotations

from typing import Any

import pytest

from simulation.findings import findings
from simulation.harm import harms, hurt_headline, hurt_sentences
from tests.simulation.report_sample import sample


def test_no_harm_is_not_called_proof_of_none() -> None:
    results = sample()
    assert harms(results) == ()
    assert hurt_headline(results).startswith("No harm beyond chance was found, which does not prove")
    assert findings(results).answers[1].tone == "plain"


def test_shares_stand_beside_what_chance_shows() -> None:
    first = next(hurt_sentences(sample()))
    assert "dual 18.0%, significantly 1.8% (chance alone: up to 3.1%)" in first
    assert "dual with DP 25.8%" in first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"harmed_share_significant": 0.12}, "more users are significantly worse off than chance"),
        ({"values_drop_worst": 1.2}, "a user's universal values"),
        ({"bottom_decile": 0.4}, "the worst-served tenth"),
    ],
)
def test_each_harm_reaches_the_headline(change: dict[str, Any], words: str) -> None:
    results = sample(arm_changes={"dual_dp": change})
    assert f"Harm was found: {words}" in hurt_headline(results)
    assert "under dual with DP" in hurt_headline(results)
    assert findings(results).answers[1].tone == "bad"


def test_a_share_within_the_noise_of_chance_is_no_harm() -> None:
    just_above = sample(arm_changes={"dual": {"harmed_share_significant": 0.035}})
    assert harms(just_above) == ()


def test_a_group_that_lost_is_named() -> None:
    base = sample()
    columns = {name: list(values) for name, values in base.users.items()}
    for index, group in enumerate(columns["group"]):
        if group == "formal":
            columns["accuracy_dual"][index] = columns["accuracy_shared"][index] - 0.1 + 0.001 * (index % 9)
    results = sample(users_table=columns)
    assert "the group formal under dual" in hurt_headline(results)
    assert any("a loss beyond chance" in text for text in hurt_sentences(results))


def test_values_and_newcomers_are_told() -> None:
    text = " ".join(hurt_sentences(sample()))
    assert "universal values, worst user: dual 96.0% (largest fall of any user 0.4 points; 0.2 below" in text
    assert "users who never took part" in text and "bottom decile" in text
