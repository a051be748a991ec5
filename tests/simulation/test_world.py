"""The world: splits without leaks, people as configured, tastes that an oracle can see."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError

from fl_core.config import validated
from fl_core.errors import ConfigurationError
from fl_core.records import Population, Records, Split
from simulation.choices import Truth
from simulation.people import power_law_exponent
from simulation.world import WorldConfig, build_world, world_truth

CONFIG = WorldConfig(users=300, seed=5)
DEVICE_SPLITS = (Split.TRAIN, Split.HOLDBACK, Split.VALIDATION)


@cache
def world() -> tuple[Population, Truth]:
    return build_world(CONFIG), world_truth(CONFIG)


def texts_of(records: Records) -> set[int]:
    return set(records.chosen.tolist()) | set(records.rejected.tolist())


def majority_accuracy(population: Population, records: Records) -> float:
    """Ordering by each text's share of wins in the federated users' TRAIN records."""
    federated = np.array([user.federated for user in population.users])
    train = population.records.of_split(Split.TRAIN)
    train = train.take(federated[train.user])
    size = len(population.texts)
    wins = np.bincount(train.chosen, minlength=size)
    shown = wins + np.bincount(train.rejected, minlength=size)
    mean = np.where(shown > 0, wins / np.maximum(shown, 1), 0.5)
    margin = mean[records.chosen] - mean[records.rejected]
    return float(np.mean((margin > 0) + 0.5 * (margin == 0)))


def test_no_record_occurs_in_two_splits_or_twice() -> None:
    records = world()[0].records
    low, high = np.minimum(records.chosen, records.rejected), np.maximum(records.chosen, records.rejected)
    keys = list(zip(records.user.tolist(), low.tolist(), high.tolist(), strict=True))
    assert len(set(keys)) == len(keys)


def test_unseen_texts_and_prompts_are_in_nobodys_other_records() -> None:
    population = world()[0]
    unseen = texts_of(population.records.of_split(Split.UNSEEN))
    others = texts_of(population.records.of_split(*DEVICE_SPLITS, Split.SEEN))
    assert unseen and not unseen & others
    prompts = [{population.texts[index].prompt for index in side} for side in (unseen, others)]
    assert not prompts[0] & prompts[1]
    assert not {pair.prompt for pair in population.values} & prompts[0]


def test_seen_texts_are_in_the_training_of_other_federated_users() -> None:
    population = world()[0]
    train, seen = population.records.of_split(Split.TRAIN), population.records.of_split(Split.SEEN)
    users: dict[int, set[int]] = {}
    for user, *pair in zip(train.user.tolist(), train.chosen.tolist(), train.rejected.tolist(), strict=True):
        if population.users[user].federated:
            for text in pair:
                users.setdefault(text, set()).add(user)
    assert len(seen) > 0
    for user, *pair in zip(seen.user.tolist(), seen.chosen.tolist(), seen.rejected.tolist(), strict=True):
        assert all(users.get(text, set()) - {user} for text in pair)


def test_pairs_are_answers_to_one_prompt() -> None:
    population = world()[0]
    for chosen, rejected in zip(population.records.chosen, population.records.rejected, strict=True):
        assert population.texts[chosen].prompt == population.texts[rejected].prompt
        assert chosen != rejected


def test_everybody_can_train_and_be_tested() -> None:
    population = world()[0]
    for splits in ((Split.TRAIN, Split.HOLDBACK), (Split.SEEN,), (Split.UNSEEN,)):
        assert len(set(population.records.of_split(*splits).user.tolist())) == CONFIG.users
    # A user of very few records may have all of them held back: each is decided alone.
    assert len(set(population.records.of_split(Split.TRAIN).user.tolist())) >= 0.98 * CONFIG.users
    shares = np.bincount(population.records.split, minlength=5)[:3]
    assert shares[1:] / shares.sum() == pytest.approx([0.1, 0.1], abs=0.02)


def test_same_config_same_world_other_seed_another() -> None:
    again = build_world(CONFIG)
    for name in ("chosen", "rejected", "time", "split", "context"):
        assert np.array_equal(getattr(again.records, name), getattr(world()[0].records, name))
    assert again.users == world()[0].users and again.texts == world()[0].texts
    other = build_world(CONFIG.model_copy(update={"seed": 6}))
    assert other.texts != again.texts and other.users != again.users


def test_it_survives_the_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    population = build_world(WorldConfig(users=5, prompts=12))
    population.save(tmp_path)
    loaded = Population.load(tmp_path)
    assert loaded.texts == population.texts and loaded.values == population.values
    assert np.array_equal(loaded.records.chosen, population.records.chosen)


def test_numbers_of_records_follow_the_power_law() -> None:
    config = WorldConfig(users=4000, cold_start_share=0.1)
    numbers = world_truth(config).people.records
    cold = np.sort(numbers)[:400]
    assert cold.min() >= 1 and cold.max() <= config.cold_start_records_max
    warm = np.sort(numbers)[400:]
    assert warm.min() >= config.records_min and warm.max() <= config.records_max
    assert warm.mean() == pytest.approx(config.records_mean, rel=0.1)
    exponent = power_law_exponent(config.records_mean, config.records_min, config.records_max)
    values = np.arange(config.records_min, config.records_max + 1, dtype=float)
    chance = values**-exponent / (values**-exponent).sum()
    for limit in (20, 50, 150):
        expected = chance[values <= limit].sum()
        error = 4 * np.sqrt(expected * (1 - expected) / len(warm))
        assert np.mean(warm <= limit) == pytest.approx(expected, abs=error)


def test_power_law_exponent_by_hand() -> None:
    """On {1, 2}: mean = (1 + 2 * 2^-e) / (1 + 2^-e) = 4/3 at e = 1."""
    assert power_law_exponent(4 / 3, 1, 2) == pytest.approx(1.0)
    assert power_law_exponent(1.5, 1, 2) == pytest.approx(0.0, abs=1e-9)


def test_shares_of_people_are_met() -> None:
    users = world()[0].users
    assert sum(user.adversarial for user in users) == 15
    assert sum(not user.federated for user in users) == 30
    assert len({user.group for user in users}) == CONFIG.groups
    assert np.mean([user.availability for user in users]) == pytest.approx(0.8, abs=0.05)
    assert all(0 <= user.availability <= 1 and user.speed > 0 for user in users)


def test_adversarial_users_choose_the_flawed_answer_and_others_do_not() -> None:
    population, truth = world()
    records, flaws = population.records, truth.catalogue.flaws
    mixed = flaws[records.chosen] != flaws[records.rejected]
    flawed_won = flaws[records.chosen] > flaws[records.rejected]
    adversarial = np.array([user.adversarial for user in population.users])[records.user]
    assert np.mean(mixed) == pytest.approx(CONFIG.flawed_pair_share, abs=0.02)
    assert np.mean(flawed_won[mixed & adversarial]) > 0.8  # style still counts: about .95 expected
    assert np.mean(flawed_won[mixed & ~adversarial]) < 0.1


def test_an_oracle_sees_what_a_majority_cannot() -> None:
    population, truth = world()
    seen = population.records.of_split(Split.SEEN)
    oracle, majority = truth.oracle_accuracy(seen), majority_accuracy(population, seen)
    assert 0.85 < oracle < 0.99
    assert 0.6 < majority < 0.72
    assert majority_accuracy(population, population.records.of_split(Split.UNSEEN)) == 0.5


def test_without_noise_the_oracle_is_always_right() -> None:
    config = WorldConfig(users=50, choice_noise=0)
    population, truth = build_world(config), world_truth(config)
    assert truth.oracle_accuracy(population.records) == 1.0
    flipped = population.records
    flipped = Records(
        flipped.user,
        flipped.rejected,
        flipped.chosen,
        flipped.label,
        flipped.context,
        flipped.time,
        flipped.split,
    )
    assert truth.oracle_accuracy(flipped) == 0.0


def test_one_person_differs_by_context_and_over_time() -> None:
    people = world()[1].people
    user, zero, one = np.zeros(1, dtype=int), np.zeros(1, dtype=int), np.ones(1, dtype=int)
    middle, start = np.full(1, 0.5), np.zeros(1)
    assert not np.allclose(people.taste(user, zero, middle), people.taste(user, one, middle))
    assert not np.allclose(people.taste(user, zero, middle), people.taste(user, zero, start))
    assert np.allclose(people.taste(user, zero, middle)[0], people.base[0])
    still = world_truth(WorldConfig(users=5, context_shift=0, drift=0)).people
    assert np.array_equal(still.taste(user, zero, middle), still.taste(user, one, start))


def test_groups_and_individuals_have_the_spread_asked_for() -> None:
    people = world_truth(WorldConfig(users=2000, group_spread=0, individual_spread=0.7)).people
    assert people.base.std(axis=0) == pytest.approx(np.full(people.base.shape[1], 0.7), rel=0.08)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("users", 0),
        ("records_mean", 5.0),
        ("choice_noise", -1.0),
        ("adversarial_share", 1.5),
        ("unseen_prompt_share", 0.0),
        ("prompts", 10_000),
        ("flawed_answers", 12),
        ("holdback_share", 0.95),
        ("colour", "red"),
    ],
)
def test_wrong_knobs_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name.split("_")[0]):
        validated(WorldConfig, {name: value})


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        CONFIG.users = 3


def test_a_tiny_world_still_works() -> None:
    population = build_world(WorldConfig(users=2, prompts=2, answers=3, flawed_answers=0))
    assert len(population.records.of_split(Split.TRAIN, Split.HOLDBACK)) >= 2


def test_whether_a_record_is_held_back_is_decided_for_it_alone() -> None:
    config = WorldConfig(users=300, records_mean=30)
    few = _held_back(config)
    many = _held_back(config.model_copy(update={"records_mean": 60.0}))
    both = few.keys() & many.keys()
    assert len(both) > 300 and sum(few[key] for key in both) > 20
    assert all(few[key] == many[key] for key in both)
    assert np.mean(list(few.values())) == pytest.approx(0.1 / 0.9, abs=0.02)  # validation is left out


def _held_back(config: WorldConfig) -> dict[tuple[int, int, int], bool]:
    """(user, text, text) of each TRAIN or HOLDBACK record, and whether it is held back."""
    records = build_world(config).records.of_split(Split.TRAIN, Split.HOLDBACK)
    low, high = np.minimum(records.chosen, records.rejected), np.maximum(records.chosen, records.rejected)
    keys = zip(records.user.tolist(), low.tolist(), high.tolist(), strict=True)
    return dict(zip(keys, (records.split == Split.HOLDBACK).tolist(), strict=True))
