"""Splits by record, by text and by user: shares, stability, and no leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User
from simulation import splits
from simulation.splits import SplitShares, assign_splits, check_no_leak

TRAINED = [Split.TRAIN, Split.HOLDBACK, Split.VALIDATION]


def votes(users: int, texts: int, seed: int = 0) -> Population:
    """Every user votes on about half of the texts."""
    generator = np.random.default_rng(seed)
    cast = generator.random((users, texts)) < 0.5
    rows = [(u, t, NO_TEXT, 1 if (u + t) % 3 else -1, 0, 0, 0) for u, t in np.argwhere(cast).tolist()]
    return Population(
        name="votes",
        texts=tuple(Text(str(t), "question", f"statement {t}") for t in range(texts)),
        users=tuple(User(f"person {u}") for u in range(users)),
        records=Records.from_rows(rows),
        values=(),
    )


def choices(users: int, prompts: int, answers: int = 4) -> Population:
    """Every user compares two answers of every prompt."""
    rows = []
    for user in range(users):
        for prompt in range(prompts):
            first = (user + prompt) % answers
            rows.append(
                (user, prompt * answers + first, prompt * answers + (first + 1) % answers, 1, 0, 0, 0)
            )
    return Population(
        name="choices",
        texts=tuple(Text(str(i), f"prompt {i // answers}", f"answer {i}") for i in range(prompts * answers)),
        users=tuple(User(f"person {u}") for u in range(users)),
        records=Records.from_rows(rows),
        values=(),
    )


def by_user(population: Population) -> dict[str, dict[tuple[int, int], int]]:
    """User id to (chosen, rejected) to split."""
    r = population.records
    found: dict[str, dict[tuple[int, int], int]] = {user.user_id: {} for user in population.users}
    for u, c, j, s in zip(r.user, r.chosen, r.rejected, r.split, strict=True):
        found[population.users[u].user_id][int(c), int(j)] = int(s)
    return found


def test_ten_records_by_hand():
    # Positions .05 .15 .25 ... ; below .2 is SEEN; the rest, rescaled to [0, 1), is
    # .0625 VALIDATION, and of the seven others two say that they are held back.
    uniform, held_back = np.arange(10)[::-1] / 10, np.array([1, 0, 0, 0, 1, 0, 0, 1, 1, 0], dtype=bool)
    split = splits.split_by_record(np.zeros(10, dtype=np.int32), uniform, held_back, SplitShares())
    assert split.tolist() == [1, 0, 0, 0, 1, 0, 0, 2, 3, 3]


def test_equal_keys_of_one_user_fall_together_and_users_are_apart():
    user = np.array([0, 0, 0, 1, 1], dtype=np.int32)
    uniform = np.array([0.9, 0.1, 0.1, 0.1, 0.5])
    # User 0 has two distinct numbers (positions .25, .75), and so has user 1.
    none = np.zeros(5, dtype=bool)
    split = splits.split_by_record(user, uniform, none, SplitShares(test=0.3))
    assert split.tolist() == [0, 3, 3, 3, 0]


def test_whether_a_record_is_held_back_does_not_depend_on_the_user_s_other_records():
    population, alone = votes(40, 60), SplitShares(unseen_texts=0)
    whole = by_user(assign_splits(population, alone, seed=4))
    rows = np.random.default_rng(0).random(len(population.records)) < 0.5
    half = by_user(assign_splits(replace(population, records=population.records.take(rows)), alone, seed=4))
    kinds = {int(Split.TRAIN), int(Split.HOLDBACK)}
    both = [
        (split, whole[user][texts])
        for user, own in half.items()
        for texts, split in own.items()
        if {split, whole[user][texts]} <= kinds
    ]
    assert sum(first == Split.HOLDBACK for first, _ in both) > 20
    assert all(first == second for first, second in both)


def test_held_back_numbers_spread_as_independent_draws_do():
    # With 40 records each, ranks would give every user exactly 4; independent draws do not.
    keys = [f"user {i // 40}: {i}" for i in range(40 * 500)]
    counts = splits.held_back_alone(keys, 0.09, 0.1, seed=0).reshape(500, 40).sum(axis=1)
    # Binomial(40, 0.1): mean 4 (standard error .085), variance 3.6 (standard error about .23).
    assert counts.mean() == pytest.approx(4.0, abs=0.4)
    assert counts.var() == pytest.approx(3.6, abs=1.0)


def test_a_user_may_have_all_records_held_back():
    population = assign_splits(votes(400, 4), SplitShares(unseen_texts=0, unfederated_users=0), seed=0)
    r = population.records
    trained, held = (np.bincount(r.user[r.split == s], minlength=400) > 0 for s in (0, 1))
    assert (held & ~trained).any() and (trained & ~held).any()


@pytest.mark.parametrize("population", [votes(150, 120), choices(20, 300)], ids=["votes", "pairs"])
def test_shares_are_met_and_nothing_leaks(population):
    split = assign_splits(population, SplitShares(), seed=1)
    check_no_leak(split)
    counts = np.bincount(split.records.split, minlength=5)
    assert counts[Split.UNSEEN] / counts.sum() == pytest.approx(0.2, abs=0.1)
    rest = counts.sum() - counts[Split.UNSEEN]
    assert counts[Split.SEEN] / rest == pytest.approx(0.2, abs=0.02)
    assert counts[Split.HOLDBACK] / (rest - counts[Split.SEEN]) == pytest.approx(0.1, abs=0.02)
    assert counts[Split.VALIDATION] / (rest - counts[Split.SEEN]) == pytest.approx(0.1, abs=0.02)
    assert 0.75 < np.mean([user.federated for user in split.users]) < 1


def test_unseen_prompts_are_whole():
    split = assign_splits(choices(30, 50), SplitShares(), seed=3)
    r = split.records
    prompts = np.array([text.prompt for text in split.texts])
    unseen = set(prompts[r.chosen[r.split == Split.UNSEEN]])
    others = set(prompts[r.chosen[r.split != Split.UNSEEN]])
    assert unseen and not unseen & others


def test_adding_users_leaves_the_others_as_they_were():
    few, many = votes(40, 60), votes(80, 60)
    before = by_user(assign_splits(few, SplitShares(), seed=5))
    shared = {user.user_id for user in few.users}
    many_rows = [
        row for row in range(len(many.records)) if many.users[many.records.user[row]].user_id not in shared
    ]
    joined = Population(
        name="joined",
        texts=few.texts,
        users=many.users,
        records=Records(
            *(
                np.concatenate([getattr(few.records, name), getattr(many.records, name)[many_rows]])
                for name in ("user", "chosen", "rejected", "label", "context", "time", "split")
            )
        ),
        values=(),
    )
    after = by_user(assign_splits(joined, SplitShares(), seed=5))
    assert all(after[user] == before[user] for user in shared)


def test_same_seed_same_splits_and_another_seed_others():
    population = votes(30, 40)
    first, again, other = (assign_splits(population, SplitShares(), seed).records.split for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_text_that_only_test_records_hold_becomes_unseen():
    # Every user votes on texts that nobody else votes on: nothing can be SEEN.  Of each user's
    # ten, two are tests and one (of eight, at (k - 1/2) / 10) is for validation.
    rows = [(u, 10 * u + t, NO_TEXT, 1, 0, 0, 0) for u in range(8) for t in range(10)]
    population = Population(
        name="private",
        texts=tuple(Text(str(t), "q", f"s{t}") for t in range(80)),
        users=tuple(User(str(u)) for u in range(8)),
        records=Records.from_rows(rows),
        values=(),
    )
    split = assign_splits(population, SplitShares(unseen_texts=0, unfederated_users=0), seed=0)
    counts = np.bincount(split.records.split, minlength=5)
    assert (counts[Split.VALIDATION], counts[Split.SEEN], counts[Split.UNSEEN]) == (8, 0, 16)
    assert counts[Split.TRAIN] + counts[Split.HOLDBACK] == 56 and counts[Split.HOLDBACK] > 0
    check_no_leak(split)


def test_seen_texts_are_in_federated_training():
    split = assign_splits(choices(4, 12, answers=6), SplitShares(unfederated_users=0.3), seed=2)
    r = split.records
    federated = np.array([user.federated for user in split.users])[r.user]
    trained = r.take((r.split == Split.TRAIN) & federated)
    known = set(trained.chosen) | set(trained.rejected)
    seen = r.of_split(Split.SEEN)
    assert set(seen.chosen) | set(seen.rejected) <= known
    check_no_leak(split)


@pytest.mark.parametrize("split", TRAINED)
def test_a_leaked_unseen_text_is_found(split):
    population = assign_splits(votes(20, 30), SplitShares(), seed=0)
    records = population.records
    changed = records.split.copy()
    changed[np.flatnonzero(changed == Split.UNSEEN)[0]] = split
    with pytest.raises(DataError, match="UNSEEN"):
        check_no_leak(replace(population, records=replace(records, split=changed)))


def test_a_leak_by_equal_content_under_another_id_is_found():
    texts = (Text("a", "q", "same"), Text("b", "q", "same"))
    rows = [(0, 0, NO_TEXT, 1, 0, 0, int(Split.TRAIN)), (1, 1, NO_TEXT, 1, 0, 0, int(Split.UNSEEN))]
    population = Population("twins", texts, (User("x"), User("y")), Records.from_rows(rows), ())
    with pytest.raises(DataError, match="user 'y'"):
        check_no_leak(population)


def test_one_pair_in_two_splits_is_found_either_way_round():
    texts = tuple(Text(str(i), "q", str(i)) for i in range(2))
    rows = [(0, 0, 1, 1, 0, 0, int(Split.TRAIN)), (0, 1, 0, 1, 0, 0, int(Split.SEEN))]
    population = Population("twice", texts, (User("x"),), Records.from_rows(rows), ())
    with pytest.raises(DataError, match="two splits"):
        check_no_leak(population)


def test_few_prompts_hold_none_out():
    split = assign_splits(choices(30, 3), SplitShares(), seed=0)
    assert not (split.records.split == Split.UNSEEN).any()


def test_choose_users_keeps_the_order_and_is_nested():
    ids = [f"u{i}" for i in range(50)]
    ten, twenty = splits.choose_users(ids, 10, 0), splits.choose_users(ids, 20, 0)
    assert len(ten) == 10 and set(ten) < set(twenty) and ten == sorted(ten, key=ids.index)
    assert splits.choose_users(ids, 0, 0) == ids == splits.choose_users(ids, 500, 0)
    with pytest.raises(DataError, match="no user"):
        splits.choose_users([], 3, 0)


def test_hashes_are_uniform():
    values = splits.hashed_uniform(0, "record", (str(i) for i in range(20000)))
    assert values.min() >= 0 and values.max() < 1
    # 10 bins of 2000: the standard deviation of a count is 42.
    assert np.abs(np.histogram(values, bins=10, range=(0, 1))[0] - 2000).max() < 5 * 42


@pytest.mark.parametrize(
    "bad", [{"test": 0}, {"test": 1}, {"unseen_texts": -0.1}, {"holdback": 0.6, "validation": 0.4}]
)
def test_impossible_shares_are_refused(bad):
    with pytest.raises(ValidationError):
        SplitShares(**bad)


def test_nobody_federated_is_an_error():
    with pytest.raises(DataError, match="unfederated_users"):
        splits.federated_users(["a"], SplitShares(unfederated_users=0.999999), seed=0)
