"""Test pairs: which text each user is held to prefer, and whether the majority disagrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from fl_core.records import Population, Records, Split


@dataclass(frozen=True)
class TestPairs:
    """P ordered pairs of texts, sorted by user.

    ``user`` [P] int32; ``chosen``, ``rejected`` [P] int32 text indices; ``context`` [P] int16;
    ``against_majority`` [P] True where the chosen text has the strictly lower mean in
    others' records (see ``held_out_pairs``).
    """

    __test__ = False  # pytest: a value, not a test class

    user: npt.NDArray[np.int32]
    chosen: npt.NDArray[np.int32]
    rejected: npt.NDArray[np.int32]
    against_majority: npt.NDArray[np.bool_]
    context: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.user)

    def margins(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """[P] score(chosen) - score(rejected) for scores [T] (one for all) or [U, T] (by user)."""
        if scores.ndim == 1:
            difference = scores[self.chosen] - scores[self.rejected]
        else:
            difference = scores[self.user, self.chosen] - scores[self.user, self.rejected]
        return np.asarray(difference, dtype=np.float64)


def held_out_pairs(
    population: Population, split: Split, maximum_per_user: int | None = None, seed: int = 0
) -> TestPairs:
    """The test pairs of ``split`` (SEEN, UNSEEN, or VALIDATION when choosing parameters).

    A pair record is one test pair.  A user's votes make every combination of a text he agreed
    with and one he disagreed with, in one context and under one prompt.  ``maximum_per_user``
    keeps that many of a user's pairs, drawn by ``seed`` and user.

    The majority is each text's mean (mean vote; wins over appearances in pairs) in the
    federated users' TRAIN records.  Texts of UNSEEN have none, so there it is the mean over
    the other records of that split: used to divide the report, never by an arm.
    """
    records = population.records.of_split(split)
    pairs = records.is_pair()
    index = np.flatnonzero(pairs)
    by_vote = _vote_combinations(records.take(~pairs), population)
    user = np.concatenate([records.user[index], by_vote[:, 0]]).astype(np.int32)
    chosen = np.concatenate([records.chosen[index], by_vote[:, 1]]).astype(np.int32)
    rejected = np.concatenate([records.rejected[index], by_vote[:, 2]]).astype(np.int32)
    context = np.concatenate([records.context[index], by_vote[:, 3]]).astype(np.int16)
    is_pair = np.arange(len(user)) < len(index)
    against = _against_majority(population, split, chosen, rejected, is_pair)
    keep = _sampled(user, maximum_per_user, seed)
    return TestPairs(user[keep], chosen[keep], rejected[keep], against[keep], context[keep])


def text_sums(records: Records, texts: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """([T] sum, [T] count) of votes (+1 or -1) and of pairs (1 won, 0 lost) on each text."""
    pair = records.is_pair()
    voted, won, lost = records.chosen[~pair], records.chosen[pair], records.rejected[pair]
    votes = np.bincount(voted, weights=records.label[~pair], minlength=texts)
    counts = np.bincount(np.concatenate([voted, won, lost]), minlength=texts)
    return np.asarray(votes + np.bincount(won, minlength=texts), dtype=np.float64), counts.astype(np.float64)


def text_means(population: Population) -> npt.NDArray[np.float64]:
    """[T] each text's mean in the federated users' TRAIN records; NaN where it has none."""
    federated = np.array([user.federated for user in population.users])
    train = population.records.of_split(Split.TRAIN)
    return _ratio(*text_sums(train.take(federated[train.user]), len(population.texts)))


def _ratio(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    ratio = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=ratio, where=counts > 0)
    return ratio


def _against_majority(
    population: Population,
    split: Split,
    chosen: npt.NDArray[np.int32],
    rejected: npt.NDArray[np.int32],
    is_pair: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """[P] chosen's mean below rejected's; comparisons with an unknown mean are False."""
    if split != Split.UNSEEN:
        means = text_means(population)
        return np.asarray(means[chosen] < means[rejected])
    sums, counts = text_sums(population.records.of_split(split), len(population.texts))
    own_rejected = np.where(is_pair, 0.0, -1.0)
    mean_chosen = _ratio(sums[chosen] - 1.0, counts[chosen] - 1.0)
    mean_rejected = _ratio(sums[rejected] - own_rejected, counts[rejected] - 1.0)
    return np.asarray(mean_chosen < mean_rejected)


def _vote_combinations(votes: Records, population: Population) -> npt.NDArray[np.int64]:
    """[V, 4] user, agreed text, disagreed text, context: all combinations, by user."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(t.prompt for t in population.texts))}
    prompt = np.array([prompts[text.prompt] for text in population.texts] or [0], dtype=np.int64)
    cell = np.column_stack([votes.user, votes.context, prompt[votes.chosen]])
    order = np.lexsort((cell[:, 2], cell[:, 1], cell[:, 0]))
    starts = np.flatnonzero((np.diff(cell[order], axis=0, prepend=-1) != 0).any(axis=1))
    blocks = [_combinations(votes.take(part)) for part in np.split(order, starts[1:]) if len(part)]
    return np.concatenate([np.empty((0, 4), dtype=np.int64), *blocks])


def _combinations(votes: Records) -> npt.NDArray[np.int64]:
    """[V, 4] for votes of one user in one context."""
    agreed, disagreed = votes.chosen[votes.label > 0], votes.chosen[votes.label < 0]
    size = len(agreed) * len(disagreed)
    return np.column_stack(
        [
            np.full(size, votes.user[0]),
            np.repeat(agreed, len(disagreed)),
            np.tile(disagreed, len(agreed)),
            np.full(size, votes.context[0]),
        ]
    ).astype(np.int64)


def _sampled(user: npt.NDArray[np.int32], maximum: int | None, seed: int) -> npt.NDArray[np.int64]:
    """[<= P] indices, sorted by user and then in order, at most ``maximum`` a user."""
    order = np.argsort(user, kind="stable")
    if maximum is None:
        return order
    if maximum < 1:
        raise DataError(f"maximum_per_user={maximum} must be at least 1; leave it out to keep all pairs")
    starts = np.flatnonzero(np.diff(user[order], prepend=-1))
    kept = [
        _draw(part, maximum, (seed, int(user[part[0]]))) for part in np.split(order, starts[1:]) if len(part)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *kept])


def _draw(part: npt.NDArray[np.int64], maximum: int, entropy: tuple[int, int]) -> npt.NDArray[np.int64]:
    if len(part) <= maximum:
        return part
    return np.sort(np.random.default_rng(entropy).choice(part, maximum, replace=False))
