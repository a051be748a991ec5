"""References: against hand-worked cases, planted structure, and published figures of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User
from simulation import metrics, references
from simulation.held_out import TestPairs, held_out_pairs
from simulation.polis import build_polis
from simulation.splits import SplitShares, assign_splits
from simulation.words import words

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "polis"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real votes (../shared/data/polis) are not here")

TRAIN, SEEN = int(Split.TRAIN), int(Split.SEEN)


def planted(users: int = 120, texts: int = 80, seed: int = 0) -> Population:
    """Votes by the sign of a two-dimensional taste; texts about cats or dogs, good or bad."""
    generator = np.random.default_rng(seed)
    kinds = generator.choice([-1.0, 1.0], (texts, 2))
    tastes = generator.normal(0, 1, (users, 2))
    score = tastes @ kinds.T
    rows = [
        (u, t, NO_TEXT, 1 if score[u, t] > 0 else -1, 0, 0, 0)
        for u, t in np.argwhere(generator.random((users, texts)) < 0.6).tolist()
    ]
    response = [
        f"{'cats' if a > 0 else 'dogs'} are {'good' if b > 0 else 'bad'} number {i}"
        for i, (a, b) in enumerate(kinds)
    ]
    population = Population(
        name="planted",
        texts=tuple(Text(str(i), "q", r) for i, r in enumerate(response)),
        users=tuple(User(str(u)) for u in range(users)),
        records=Records.from_rows(rows),
        values=(),
    )
    return assign_splits(population, SplitShares(), seed)


def accuracy(margins: np.ndarray, pairs: TestPairs) -> float:
    found = metrics.pair_accuracy(margins)
    assert found is not None and margins.shape == (len(pairs),)
    return found


def test_text_mean_by_hand():
    rows = [
        (0, 0, NO_TEXT, 1, 0, 0, TRAIN),
        (0, 1, NO_TEXT, -1, 0, 0, TRAIN),
        (1, 1, NO_TEXT, 1, 0, 0, TRAIN),
    ]
    rows += [(1, 0, NO_TEXT, 1, 0, 0, SEEN), (1, 2, NO_TEXT, -1, 0, 0, SEEN), (0, 2, NO_TEXT, 1, 0, 0, SEEN)]
    texts = tuple(Text(str(i), "q", "w " * (i + 1)) for i in range(3))
    population = Population("tiny", texts, (User("a"), User("b")), Records.from_rows(rows), ())
    pairs = held_out_pairs(population, Split.SEEN)
    # Means 1, 0, unknown (the average, 1/2); the one pair is b's, text 0 over text 2.
    assert references.text_mean(population, pairs).tolist() == [0.5]
    assert references.longer(population, pairs).tolist() == [-2]


def test_factorization_finds_planted_tastes():
    population = planted()
    pairs = held_out_pairs(population, Split.SEEN)
    assert accuracy(references.text_mean(population, pairs), pairs) < 0.65
    assert accuracy(references.factorization(population, pairs, factors=2, ridge=1.0), pairs) > 0.9


def test_factorization_is_a_stationary_point():
    # The last half-step solves every user's ridge regression exactly: its gradient is zero.
    population = planted(users=30, texts=25)
    ridge = 2.0
    found = references.fit_factors(population, 2, ridge, sweeps=3)
    votes = population.records.of_split(Split.TRAIN)
    for user in range(30):
        own = votes.take(votes.user == user)
        if not len(own):
            continue
        x = np.column_stack([np.ones(len(own)), found.items[own.chosen]])
        residual = own.label - found.item_bias[own.chosen]
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(3), x.T @ residual)
        assert found.weights[user] == pytest.approx(weights[1:])


def test_unfederated_users_do_not_move_the_items():
    population = planted()
    changed_labels = population.records.label.copy()
    federated = np.array([user.federated for user in population.users])[population.records.user]
    assert (~federated).any()
    changed_labels[~federated] *= -1
    records = Records(
        *[
            changed_labels if n == "label" else getattr(population.records, n)
            for n in ("user", "chosen", "rejected", "label", "context", "time", "split")
        ]
    )
    changed = Population(population.name, population.texts, population.users, records, ())
    first, second = references.fit_factors(population), references.fit_factors(changed)
    assert np.array_equal(first.items, second.items)
    assert not np.array_equal(first.weights, second.weights)


def test_only_training_records_are_used():
    population = planted()
    pairs = held_out_pairs(population, Split.SEEN)
    label = population.records.label.copy()
    label[population.records.split != TRAIN] *= -1
    records = Records(
        *[
            label if n == "label" else getattr(population.records, n)
            for n in ("user", "chosen", "rejected", "label", "context", "time", "split")
        ]
    )
    changed = Population(population.name, population.texts, population.users, records, ())
    before, after = (references.reference_margins(p, pairs) for p in (population, changed))
    assert set(before) == {
        "text_mean",
        "longer",
        "text_features",
        "text_features_personal",
        "factorization_2",
        "factorization_4",
        "factorization_8",
    }
    for name in before:
        assert np.array_equal(before[name], after[name]), name


def test_factorization_needs_votes():
    rows = [(0, 0, 1, 1, 0, 0, TRAIN)]
    texts = (Text("0", "q", "a b"), Text("1", "q", "c"))
    population = Population("pairs", texts, (User("a"),), Records.from_rows(rows), ())
    with pytest.raises(DataError, match="needs TRAIN votes"):
        references.fit_factors(population)
    pairs = held_out_pairs(population, Split.TRAIN)
    assert "factorization_4" not in references.reference_margins(population, pairs)


def test_words():
    assert words("It's 5 o’clock — 我有 Uber") == ["it's", "5", "o’clock", "我", "有", "uber"]


def test_tfidf_by_hand():
    texts = tuple(Text(str(i), "q", r) for i, r in enumerate(["cat cat dog", "cat", "fish"]))
    matrix = references.tfidf(texts, fewest_texts=1).toarray()
    # Terms in order: cat, "cat cat", "cat dog", dog, fish; df 2, 1, 1, 1, 1 of 3 texts.
    common, rare = 1 + np.log(4 / 3), 1 + np.log(2)
    first = np.array([(1 + np.log(2)) * common, rare, rare, rare, 0])
    assert matrix[0] == pytest.approx(first / np.linalg.norm(first))
    assert matrix[1].tolist() == [1, 0, 0, 0, 0] and matrix[2].tolist() == [0, 0, 0, 0, 1]
    assert references.tfidf(texts, fewest_texts=3).toarray().tolist() == [[0]] * 3


def test_features_are_the_leading_singular_directions():
    texts = planted().texts
    matrix = references.tfidf(texts).toarray()
    left, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    everything = references.features(texts, dimensions=1000)
    assert (everything[:, -1] == 1).all()
    assert everything[:, :-1] @ everything[:, :-1].T == pytest.approx(matrix @ matrix.T)
    assert singular[2] > 1.05 * singular[3]
    three = references.features(texts, dimensions=3)[:, :-1]
    best = (left[:, :3] * singular[:3] ** 2) @ left[:, :3].T
    assert three @ three.T == pytest.approx(best, abs=1e-6)


def test_text_features_know_unseen_texts():
    population = planted()
    pairs = held_out_pairs(population, Split.UNSEEN)
    everyone = accuracy(references.text_features(population, pairs, personal=False), pairs)
    personal = accuracy(references.text_features(population, pairs, personal=True, personal_ridge=1.0), pairs)
    assert accuracy(references.text_mean(population, pairs), pairs) == 0.5
    assert personal > 0.8 > everyone


def test_text_features_of_pairs():
    # Everybody prefers "good"; learned from pairs, it carries over to held-out prompts.
    texts = [
        Text(str(i), f"p{i // 2}", f"{'good' if i % 2 else 'bad'} answer to p{i // 2}") for i in range(120)
    ]
    rows = [(u, 2 * p + 1, 2 * p, 1, 0, 0, 0) for u in range(10) for p in range(60)]
    population = assign_splits(
        Population(
            "pairs", tuple(texts), tuple(User(str(u)) for u in range(10)), Records.from_rows(rows), ()
        ),
        SplitShares(),
        0,
    )
    pairs = held_out_pairs(population, Split.UNSEEN)
    assert len(pairs) and accuracy(references.text_features(population, pairs, personal=True), pairs) == 1


def test_both_sides_of_ridge_agree():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 7)), generator.normal(size=7)
    wide = references._ridge(np.column_stack([x, np.zeros(7)]), y, 2.0)
    assert wide[:7] == pytest.approx(references._ridge(x, y, 2.0))


@needs_data
def test_figures_of_real_votes():
    # A second conversation of the data's notes: statement mean .779, factorization up to .923.
    folder = DATA / "ssis.land-bank-farmland.2rumnecbeh.2021-08-01"
    population = build_polis(folder, 0, 0, SplitShares(unseen_texts=0, unfederated_users=0))
    pairs = held_out_pairs(population, Split.SEEN)
    assert accuracy(references.text_mean(population, pairs), pairs) == pytest.approx(0.779, abs=0.02)
    assert accuracy(references.factorization(population, pairs, 4), pairs) == pytest.approx(0.923, abs=0.02)
