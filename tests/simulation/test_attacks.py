"""Attacks: their measures by hand, and that they succeed without privacy and not with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from fl_core.base_model import load_base
from fl_core.config import RunConfig
from fl_core.records import Split
from simulation import attacks
from simulation.attacks import (
    WITHOUT,
    attacked_population,
    auc,
    exposure,
    hits,
    membership,
    membership_attacks,
)
from tests.tiny_runs import tiny_population

MEMBER = np.array([True, True, False, False])


@pytest.mark.parametrize(
    ("scores", "area"),
    [
        ([4.0, 3.0, 2.0, 1.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0], 0.0),
        ([4.0, 2.0, 3.0, 1.0], 0.75),
        ([1.0] * 4, 0.5),
    ],
)
def test_auc_by_hand(scores: list[float], area: float) -> None:
    assert auc(np.array(scores), MEMBER) == area


def test_hits_by_hand() -> None:
    """200 others: two of them may be above the threshold, which is the third."""
    others = np.arange(200.0)
    scores, member = np.concatenate([others, [197.0, 198.5, 500.0]]), np.arange(203) >= 200
    assert hits(scores, member) == pytest.approx(2 / 3)
    assert hits(np.ones(203), member) == 0.0, "ties with others are no hits"


def test_membership_of_gaussian_scores() -> None:
    """Scores of members are one standard deviation higher: AUC Phi(1 / sqrt 2), and it is covered."""
    generator = np.random.default_rng(0)
    member, user = generator.random(4000) < 0.5, np.repeat(np.arange(200), 20)
    found = membership(generator.standard_normal(4000) + member, member, user, 0)
    area, rate = norm.cdf(1 / np.sqrt(2)), norm.sf(norm.isf(0.01) - 1)
    assert found.auc == pytest.approx(area, abs=0.02)
    assert found.auc_interval[0] < area < found.auc_interval[1]
    assert found.tpr_interval[0] < rate < found.tpr_interval[1]
    assert found.members + found.others == 4000


def test_attacked_population_keeps_records_and_texts() -> None:
    population = tiny_population("pairs")
    kept = attacked_population(population, most=3)
    before = population.records.of_split(Split.TRAIN)
    assert np.bincount(kept.records.user).max() == 3
    for user in np.unique(kept.records.user):
        old, new = before.take(before.user == user), kept.records.take(kept.records.user == user)
        for column in ("chosen", "rejected"):
            names = [population.texts[int(text)] for text in getattr(old, column)[:3]]
            assert [kept.texts[int(text)] for text in getattr(new, column)] == names


def test_membership_attacks_succeed_without_privacy_alone(tiny_model_folder: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_model_folder), "users": 12, "federation.rounds": 20, "train.max-tokens": 24}
    population = tiny_population("pairs")
    found = membership_attacks(RunConfig.from_flat(settings), population, (0.5,), tmp_path)
    assert set(found) == {
        f"{part}, {attack}, {privacy}"
        for part in ("shared", "personal")
        for attack in ("loss", "calibrated")
        for privacy in (WITHOUT, "epsilon 0.5")
    }
    control, private = found[f"personal, calibrated, {WITHOUT}"], found["personal, calibrated, epsilon 0.5"]
    assert control.auc > 0.85
    most = np.exp(0.5) / (1 + np.exp(0.5))  # the largest area that epsilon 0.5 allows (Kairouz et al. 2015)
    assert private.auc_interval[0] < most < control.auc_interval[0]


def test_a_secret_is_exposed_without_privacy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "CANDIDATES", 64)
    monkeypatch.setattr(attacks, "SECRET_USERS", 4)
    config, base = RunConfig(), load_base("", "float32")
    control, private = exposure(config, base, 0.0), exposure(config, base, 1.0)
    assert control.most == 6.0
    assert control.by_chance == pytest.approx(6 - np.log2(np.arange(1, 65)).mean())
    assert len(control.ranks) == 4
    assert control.bits > 3.5
    assert private.bits < 3.0
