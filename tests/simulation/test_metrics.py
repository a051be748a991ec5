"""Measures of an arm on tiny cases worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import Population, Records, Split, Text, User
from simulation import metrics
from simulation.held_out import TestPairs, held_out_pairs

TRAIN, SEEN = int(Split.TRAIN), int(Split.SEEN)

# Four users.  a (group x) has 4 test pairs, b (x) has 2, c (y, not federated) has 1, d none.
# Responses of text i have i + 1 words.
ROWS = [(0, 0, 1), (0, 2, 3), (0, 4, 5), (0, 7, 6), (1, 1, 0), (1, 2, 3), (2, 3, 2)]
MARGINS = np.array([1.0, 2.0, -1.0, 0.0, 3.0, -2.0, 0.5])
# Right: a 1, 1, 0, 1/2 = 2.5 / 4; b 1, 0 = 1/2; c 1.
SHARED = np.array([1.0, -2.0, -1.0, 1.0, -3.0, 2.0, 0.5])
# Right: a 1, 0, 0, 1 = 2 / 4; b 0, 1 = 1/2; c 1.


def population() -> Population:
    rows = [(u, c, r, 1, u % 2, 0, SEEN) for u, c, r in ROWS]
    # Training: a 12 records in which 0 beats 1 and 2 beats 3, d one.
    rows += [(0, 0, 1, 1, 0, 0, TRAIN)] * 6 + [(0, 2, 3, 1, 0, 0, TRAIN)] * 6 + [(3, 4, 5, 1, 0, 0, TRAIN)]
    return Population(
        name="tiny",
        texts=tuple(Text(str(i), "q", " ".join(["word"] * (i + 1))) for i in range(8)),
        users=(User("a", "x"), User("b", "x"), User("c", "y", federated=False), User("d", "y")),
        records=Records.from_rows(rows),
        values=(),
        contexts=("home", "work"),
    )


@pytest.fixture
def pairs() -> TestPairs:
    return held_out_pairs(population(), Split.SEEN)


def test_order_of_pairs(pairs):
    assert list(zip(pairs.user, pairs.chosen, pairs.rejected, strict=True)) == ROWS


def test_accuracy(pairs):
    found = metrics.summarise(MARGINS, pairs, population())
    assert found.pair_accuracy == pytest.approx(4.5 / 7) == metrics.pair_accuracy(MARGINS)
    assert found.accuracy == pytest.approx((0.625 + 0.5 + 1) / 3)
    assert found.bottom_decile == pytest.approx(0.5 + 0.2 * 0.125)
    assert found.ci95 is not None and 0.5 <= found.ci95[0] < found.accuracy < found.ci95[1] <= 1
    assert found.mean_margin == pytest.approx(3.5 / 7)
    assert (found.users, found.users_without_pairs, found.pairs) == (3, 1, 7)
    assert found.accuracy_unfederated == 1


def test_pairs_against_the_majority(pairs):
    # 1 over 0 (b, margin 3: right) and 3 over 2 (c, margin .5: right); under shared b is wrong.
    assert pairs.against_majority.tolist() == [False] * 4 + [True, False, True]
    assert metrics.summarise(MARGINS, pairs, population()).minority_accuracy == 1
    found = metrics.summarise(SHARED, pairs, population())
    assert found.minority_accuracy == 0.5 and found.minority_pairs == 2 and found.minority_ci95 == (0, 1)
    none = metrics.summarise(MARGINS, replace(pairs, against_majority=np.zeros(7, bool)), population())
    assert none.minority_accuracy is None and none.minority_ci95 is None and none.minority_pairs == 0


def test_against_shared(pairs):
    found = metrics.summarise(MARGINS, pairs, population(), shared=SHARED)
    assert found.harmed_share == 0
    # Preferred lengths, arm minus shared: pair 1: 3 - 4; pair 3 (tie): 7.5 - 8; b: 2 - 1, 4 - 3.
    assert found.length_shift_words == pytest.approx((-1 - 0.5 + 1 + 1) / 7)
    back = metrics.summarise(SHARED, pairs, population(), shared=MARGINS)
    assert back.harmed_share == pytest.approx(1 / 3) and back.harmed_share_significant == 0
    assert back.length_shift_words == pytest.approx(-0.5 / 7)
    alone = metrics.summarise(MARGINS, pairs, population())
    assert alone.harmed_share is alone.harmed_share_significant is alone.length_shift_words is None
    same = metrics.summarise(MARGINS, pairs, population(), shared=MARGINS)
    assert same.harmed_share == same.harmed_share_significant == same.length_shift_words == 0


def test_slices(pairs):
    found = metrics.summarise(MARGINS, pairs, population())
    assert found.by_group == {"x": metrics.Slice(0.5625, 2), "y": metrics.Slice(1.0, 1)}
    assert found.by_records == {"0": metrics.Slice(0.75, 2), "10-19": metrics.Slice(0.625, 1)}
    assert found.by_context == {"home": metrics.Slice(0.8125, 2), "work": metrics.Slice(0.5, 1)}


def test_values(pairs):
    values = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [-1.0, 1.0]])
    found = metrics.summarise(
        MARGINS,
        pairs,
        population(),
        values=values,
        shared_values=np.array([[1.0, 1.0]]),
        alone_values=np.array([[1.0, 0.0]]),
    )
    assert found.values_accuracy == pytest.approx((1 + 0.5 + 0.75 + 0.5) / 4)
    assert found.values_worst_user == 0.5 and found.values_drop_worst == 50
    assert found.values_drop_personal == pytest.approx(25)
    shared = metrics.summarise(MARGINS, pairs, population(), values=np.array([[1.0, -1.0]]))
    assert shared.values_accuracy == shared.values_worst_user == 0.5 and shared.values_drop_worst is None
    assert shared.values_drop_personal is None
    none = metrics.summarise(MARGINS, pairs, population(), values=np.empty((4, 0)))
    assert none.values_accuracy is None and none.values_worst_user is None


def test_no_pairs_at_all():
    everyone = population()
    empty = held_out_pairs(everyone, Split.UNSEEN)
    found = metrics.summarise(np.empty(0), empty, everyone, shared=np.empty(0))
    assert found.accuracy is found.ci95 is found.bottom_decile is found.harmed_share is None
    assert found.users == 0 and found.users_without_pairs == 4


def test_bad_margins_are_refused(pairs):
    with pytest.raises(DataError, match="shape"):
        metrics.summarise(MARGINS[:-1], pairs, population())
    with pytest.raises(DataError, match="shape"):
        metrics.summarise(MARGINS, pairs, population(), shared=SHARED[:-1])
    with pytest.raises(DataError, match="2 of 3"):
        metrics.right(np.array([np.nan, 1.0, np.inf]))


def test_mapping_is_json(pairs):
    found = metrics.summarise(MARGINS, pairs, population(), shared=SHARED).to_mapping()
    again = json.loads(json.dumps(found))
    assert again["by_group"]["x"] == {"accuracy": 0.5625, "users": 2}
    assert again["values_accuracy"] is None and len(again["ci95"]) == 2


def test_same_seed_same_interval(pairs):
    first, again, other = (metrics.summarise(MARGINS, pairs, population(), seed=s) for s in (0, 0, 1))
    assert first == again and first.accuracy == other.accuracy


def test_users_table(pairs):
    values = {
        "dual": np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [-1.0, 1.0]]),
        "shared": np.array([[1.0, -1.0]]),
    }
    arms = {"dual": MARGINS, "shared": SHARED}
    unseen = (held_out_pairs(population(), Split.UNSEEN), {"dual": np.empty(0)})
    table = metrics.users_table(population(), pairs, arms, values, unseen)
    assert {len(column) for column in table.values()} == {4}
    assert table["user_id"].tolist() == ["a", "b", "c", "d"] and table["federated"].tolist() == [1, 1, 0, 1]
    assert table["train_records"].tolist() == [12, 0, 0, 1] and table["test_pairs"].tolist() == [4, 2, 1, 0]
    assert np.array_equal(table["accuracy_dual"], [0.625, 0.5, 1, np.nan], equal_nan=True)
    assert np.array_equal(table["minority_accuracy_shared"], [np.nan, 0, 1, np.nan], equal_nan=True)
    assert table["values_accuracy_shared"].tolist() == [0.5] * 4
    assert table["values_accuracy_dual"].tolist() == [1, 0.5, 0.75, 0.5]
    assert np.isnan(table["accuracy_unseen_dual"]).all()
