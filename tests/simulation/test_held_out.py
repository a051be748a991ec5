"""Test pairs: combinations of votes, contexts, the majority, and sampling."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User
from simulation.held_out import held_out_pairs, text_means

TRAIN, SEEN, UNSEEN = int(Split.TRAIN), int(Split.SEEN), int(Split.UNSEEN)


def population(rows, users=("a", "b", "c"), texts=6, contexts=("",), prompts=None) -> Population:
    return Population(
        name="tiny",
        texts=tuple(Text(str(i), prompts[i] if prompts else "q", f"t{i}") for i in range(texts)),
        users=tuple(User(u, federated=u != "c") for u in users),
        records=Records.from_rows(rows),
        values=(),
        contexts=contexts,
    )


def test_votes_make_every_combination():
    rows = [(1, t, NO_TEXT, label, 0, 0, SEEN) for t, label in ((0, 1), (1, -1), (2, 1), (3, -1))]
    rows += [(0, 0, NO_TEXT, 1, 0, 0, SEEN), (1, 4, NO_TEXT, -1, 0, 0, TRAIN)]
    pairs = held_out_pairs(population(rows), Split.SEEN)
    assert pairs.user.tolist() == [1] * 4
    assert set(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == {
        (0, 1),
        (0, 3),
        (2, 1),
        (2, 3),
    }


def test_combinations_stay_in_one_context_and_under_one_prompt():
    rows = [(0, 0, NO_TEXT, 1, 0, 0, SEEN), (0, 1, NO_TEXT, -1, 1, 0, SEEN), (0, 2, NO_TEXT, -1, 0, 0, SEEN)]
    rows += [(0, 3, NO_TEXT, -1, 0, 0, SEEN)]
    pairs = held_out_pairs(
        population(rows, contexts=("home", "work"), prompts=["q", "q", "q", "other", "q", "q"]), Split.SEEN
    )
    assert list(zip(pairs.chosen, pairs.rejected, pairs.context, strict=True)) == [(0, 2, 0)]


def test_the_majority_is_that_of_federated_training():
    # Text 0: votes +1 (a), text 1: -1 (a), +1 (b).  User c is not federated: his vote is nothing.
    rows = [
        (0, 0, NO_TEXT, 1, 0, 0, TRAIN),
        (0, 1, NO_TEXT, -1, 0, 0, TRAIN),
        (1, 1, NO_TEXT, 1, 0, 0, TRAIN),
    ]
    rows += [(2, 0, NO_TEXT, -1, 0, 0, TRAIN), (2, 3, NO_TEXT, 1, 0, 0, TRAIN)]
    rows += [(1, 0, NO_TEXT, -1, 0, 0, SEEN), (1, 2, NO_TEXT, 1, 0, 0, SEEN), (1, 4, NO_TEXT, 1, 0, 0, SEEN)]
    rows += [(2, 1, NO_TEXT, 1, 0, 0, SEEN), (2, 0, NO_TEXT, -1, 0, 0, SEEN)]
    everyone = population(rows)
    assert np.array_equal(text_means(everyone), [1, 0, np.nan, np.nan, np.nan, np.nan], equal_nan=True)
    pairs = held_out_pairs(everyone, Split.SEEN)
    # b: 2 over 0 and 4 over 0 (2 and 4 unknown: not against); c: 1 over 0 (0 < 1: against).
    found = dict(
        zip(zip(pairs.user, pairs.chosen, pairs.rejected, strict=True), pairs.against_majority, strict=True)
    )
    assert found == {(1, 2, 0): False, (1, 4, 0): False, (2, 1, 0): True}


def test_equal_means_are_not_against():
    rows = [(0, t, NO_TEXT, 1, 0, 0, TRAIN) for t in (0, 1)]
    rows += [(1, 0, NO_TEXT, 1, 0, 0, SEEN), (1, 1, NO_TEXT, -1, 0, 0, SEEN)]
    assert held_out_pairs(population(rows), Split.SEEN).against_majority.tolist() == [False]


def test_majority_of_pairs_is_wins_over_appearances():
    rows = [(0, 0, 1, 1, 0, 0, TRAIN), (1, 0, 1, 1, 0, 0, TRAIN), (1, 1, 0, 1, 0, 0, TRAIN)]
    rows += [(2, 1, 0, 1, 0, 0, SEEN), (0, 0, 1, 1, 0, 0, SEEN)]
    everyone = population(rows)
    assert text_means(everyone)[:2] == pytest.approx([2 / 3, 1 / 3])
    pairs = held_out_pairs(everyone, Split.SEEN)
    assert pairs.user.tolist() == [0, 2] and pairs.against_majority.tolist() == [False, True]


def test_unseen_majority_leaves_the_own_record_out():
    # Text 0: a +1, b -1, c -1; text 1: a -1, b +1.  For a: others' means -1 and +1: against.
    # For b (1 over 0): text 1 by others -1, text 0 by others 0: against.
    rows = [(u, t, NO_TEXT, label, 0, 0, UNSEEN) for u, t, label in ((0, 0, 1), (1, 0, -1), (2, 0, -1))]
    rows += [(0, 1, NO_TEXT, -1, 0, 0, UNSEEN), (1, 1, NO_TEXT, 1, 0, 0, UNSEEN)]
    pairs = held_out_pairs(population(rows), Split.UNSEEN)
    assert pairs.user.tolist() == [0, 1] and pairs.against_majority.tolist() == [True, True]
    # A pair that only one user judged has no majority.
    alone = held_out_pairs(population([(0, 0, 1, 1, 0, 0, UNSEEN)]), Split.UNSEEN)
    assert alone.against_majority.tolist() == [False]
    # With a second judge of the other opinion each is against the other.
    two = population([(0, 0, 1, 1, 0, 0, UNSEEN), (1, 1, 0, 1, 0, 0, UNSEEN)])
    assert held_out_pairs(two, Split.UNSEEN).against_majority.tolist() == [True, True]


def test_sampling_is_seeded_and_does_not_depend_on_other_users():
    rows = [(u, t, NO_TEXT, 1 if t < 3 else -1, 0, 0, SEEN) for u in range(3) for t in range(6)]
    everyone = population(rows)
    kept = held_out_pairs(everyone, Split.SEEN, maximum_per_user=4)
    assert np.bincount(kept.user).tolist() == [4, 4, 4]
    assert len({*zip(kept.user, kept.chosen, kept.rejected, strict=True)}) == 12
    fewer = held_out_pairs(population(rows[6:]), Split.SEEN, maximum_per_user=4)
    assert fewer.chosen.tolist() == kept.chosen[4:].tolist()
    other = held_out_pairs(everyone, Split.SEEN, maximum_per_user=4, seed=1)
    assert other.chosen.tolist() != kept.chosen.tolist() or other.rejected.tolist() != kept.rejected.tolist()
    with pytest.raises(DataError, match="maximum_per_user=0"):
        held_out_pairs(everyone, Split.SEEN, maximum_per_user=0)


def test_no_record_no_pair():
    assert len(held_out_pairs(population([(0, 0, 1, 1, 0, 0, TRAIN)]), Split.UNSEEN, 5)) == 0


def test_margins_by_text_and_by_user():
    rows = [(0, 0, 1, 1, 0, 0, SEEN), (2, 1, 0, 1, 0, 0, SEEN)]
    pairs = held_out_pairs(population(rows), Split.SEEN)
    scores = np.arange(18.0).reshape(3, 6) ** 2
    assert pairs.margins(scores[0]).tolist() == [-1, 1]
    assert pairs.margins(scores).tolist() == [0 - 1, 169 - 144]
