"""Simulated people choose between answers: catalogue, splits and records.

The splits hold by construction: prompts are seen or unseen for the whole population; a
user's pair of answers occurs once; SEEN test pairs have texts that others' federated training
records contain.  Tests check all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core.errors import DataError
from fl_core.records import Records, Split, Text
from simulation.people import Floats, People, PeopleConfig
from simulation.splits import held_back_alone, keys_of

Ints = npt.NDArray[np.int64]
_START_MS = 1_700_000_000_000
_DAY_MS = 86_400_000.0
_SPARE = 3
"""Draws per wanted test pair, so that enough remain after the checks."""


@dataclass(frozen=True)
class Catalogue:
    """What can be chosen, over T texts and D attributes.

    ``attributes`` [T, D]; ``flaws`` [T] how many of honesty and harmlessness a text lacks;
    ``prompt`` [T] index of its prompt, 0..P-1; ``unseen`` [P] True where a prompt occurs in
    the UNSEEN test set only.  Every prompt has at least two sound (flawless) texts.
    """

    names: tuple[str, ...]
    texts: tuple[Text, ...]
    attributes: Floats
    flaws: Ints
    prompt: Ints
    unseen: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        sound = np.bincount(self.prompt[self.flaws == 0], minlength=len(self.unseen))
        if len(sound) == 0 or int(sound.min()) < 2:
            raise DataError("catalogue: every prompt needs at least two sound answers to choose from")
        if self.unseen.all() or not self.unseen.any():
            raise DataError(
                f"catalogue: {len(self.unseen)} prompts leave none to train on or none to test on; "
                "give more prompts, or another unseen_prompt_share"
            )


@dataclass(frozen=True)
class Truth:
    """What the simulation knows and no model may: for tests and for oracle references."""

    config: PeopleConfig
    people: People
    catalogue: Catalogue

    def margins(self, records: Records) -> Floats:
        """[N] true utility of chosen minus rejected, for that user, context and time."""
        time = (records.time - _START_MS) / (self.config.span_days * _DAY_MS)
        return _margins(
            self.people, self.catalogue, records.user, records.chosen, records.rejected, records.context, time
        )

    def oracle_accuracy(self, records: Records) -> float:
        """Share of the records that the true preference vectors order rightly (noise included)."""
        margins = self.margins(records)
        return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def unseen_prompts(
    count: int, share: float, first: npt.NDArray[np.bool_], generator: np.random.Generator
) -> Any:
    """[count] bool: ``round(count * share)`` prompts (at least 1), those in ``first`` [count] first."""
    order = np.lexsort((generator.permutation(count), ~first))
    unseen = np.zeros(count, dtype=bool)
    unseen[order[: max(1, round(count * share))]] = True
    return unseen


def draw_records(
    config: PeopleConfig, people: People, catalogue: Catalogue, seed: tuple[int, ...]
) -> Records:
    """Every user's records with their splits.

    Each user has a generator of his own, from ``seed`` and his index.  A user of a very small
    catalogue may get fewer records than drawn for him: no pair is asked twice.
    """
    drawer = _Drawer(config, people, catalogue)
    generators = [np.random.default_rng([*seed, user]) for user in range(len(people.users))]
    training = [drawer.training(user, generator) for user, generator in enumerate(generators)]
    popularity = _train_popularity(training, people, len(catalogue.texts))
    tests = [
        drawer.tests(user, generators[user], training[user], popularity) for user in range(len(people.users))
    ]
    return _assembled(training + tests)


def _margins(
    people: People, catalogue: Catalogue, user: Any, chosen: Any, rejected: Any, context: Any, time: Floats
) -> Floats:
    taste = people.taste(user, context, time)
    style = np.einsum("nd,nd->n", taste, catalogue.attributes[chosen] - catalogue.attributes[rejected])
    flaws = catalogue.flaws[chosen] - catalogue.flaws[rejected]
    return np.asarray(style - people.values[user] * flaws)


class _Drawer:
    """Draws one user's records; columns are those of ``Records``, as rows [n, 7] int64."""

    def __init__(self, config: PeopleConfig, people: People, catalogue: Catalogue) -> None:
        self.config, self.people, self.catalogue = config, people, catalogue
        by_prompt = [np.flatnonzero(catalogue.prompt == p) for p in range(len(catalogue.unseen))]
        self.sound = [texts[catalogue.flaws[texts] == 0] for texts in by_prompt]
        self.flawed = [texts[catalogue.flaws[texts] > 0] for texts in by_prompt]
        self.seen_prompts = np.flatnonzero(~catalogue.unseen)
        self.unseen_prompts = np.flatnonzero(catalogue.unseen)

    def training(self, user: int, generator: np.random.Generator) -> Ints:
        """Feedback records: TRAIN, HOLDBACK and VALIDATION.

        Which are held back is decided for each record alone (``splits.held_back_alone``).
        """
        wanted = int(self.people.records[user])
        pairs = self._pairs(self.seen_prompts, wanted, generator, taken=set())
        checked = int(len(pairs) * self.config.validation_share + generator.random())
        split = np.where(self._held_back(user, pairs), int(Split.HOLDBACK), int(Split.TRAIN))
        split[: min(checked, len(pairs) - 1)] = Split.VALIDATION
        return self._rows(user, pairs, split, generator)

    def _held_back(self, user: int, pairs: Ints) -> npt.NDArray[np.bool_]:
        ids = [self.people.users[user].user_id] * len(pairs)
        keys = keys_of(self.catalogue.texts, ids, pairs[:, 0].tolist(), pairs[:, 1].tolist())
        config = self.config
        return held_back_alone(keys, config.holdback_share, config.validation_share, config.seed)

    def tests(self, user: int, generator: np.random.Generator, training: Ints, popularity: Ints) -> Ints:
        """SEEN and UNSEEN test records."""
        wanted = max(self.config.test_minimum, round(self.config.test_share * int(self.people.records[user])))
        taken = {(min(a, b), max(a, b)) for a, b in training[:, 1:3].tolist()}
        others = popularity - self._own_popularity(user, training)
        seen = self._pairs(self.seen_prompts, _SPARE * wanted, generator, taken)
        seen = seen[(others[seen] > 0).all(axis=1)][:wanted]
        unseen = self._pairs(self.unseen_prompts, wanted, generator, taken)
        split = np.repeat([int(Split.SEEN), int(Split.UNSEEN)], [len(seen), len(unseen)])
        return self._rows(user, np.concatenate([seen, unseen]), split, generator)

    def _own_popularity(self, user: int, training: Ints) -> Ints:
        if not self.people.users[user].federated:
            return np.zeros(len(self.catalogue.texts), dtype=np.int64)
        return _texts_used(training, len(self.catalogue.texts))

    def _pairs(
        self, prompts: Ints, wanted: int, generator: np.random.Generator, taken: set[tuple[int, int]]
    ) -> Ints:
        """[n <= wanted, 2] distinct pairs of texts of one prompt, none of them in ``taken``."""
        pairs: list[tuple[int, int]] = []
        done = set(taken)
        for _ in range(4 * wanted + 20):
            if len(pairs) == wanted:
                break
            first, second = self._pair(int(generator.choice(prompts)), generator)
            key = (min(first, second), max(first, second))
            if key not in done:
                done.add(key)
                pairs.append((first, second))
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def _pair(self, prompt: int, generator: np.random.Generator) -> tuple[int, int]:
        sound, flawed = self.sound[prompt], self.flawed[prompt]
        if len(flawed) and generator.random() < self.config.flawed_pair_share:
            return int(generator.choice(sound)), int(generator.choice(flawed))
        first = int(generator.integers(len(sound)))
        second = (first + 1 + int(generator.integers(len(sound) - 1))) % len(sound)
        return int(sound[first]), int(sound[second])

    def _rows(self, user: int, pairs: Ints, split: Ints, generator: np.random.Generator) -> Ints:
        """Let the user choose: first is chosen with probability sigmoid(margin / noise)."""
        count = len(pairs)
        users = np.full(count, user)
        context = (generator.random(count) < self.people.work_share[user]).astype(np.int64)
        span = self.config.span_days * _DAY_MS
        stamp = _START_MS + (generator.random(count) * span).astype(np.int64)
        time = (stamp - _START_MS) / span
        margin = _margins(self.people, self.catalogue, users, pairs[:, 0], pairs[:, 1], context, time)
        first = generator.random(count) < _probability(margin, self.config.choice_noise)
        chosen = np.where(first, pairs[:, 0], pairs[:, 1])
        rejected = np.where(first, pairs[:, 1], pairs[:, 0])
        return np.stack([users, chosen, rejected, np.ones_like(users), context, stamp, split], axis=1)


def _probability(margin: Floats, noise: float) -> Floats:
    """Bradley-Terry probability; without noise a step, 1/2 at a tie."""
    if noise == 0:
        return np.asarray(0.5 + 0.5 * np.sign(margin))
    return np.asarray(0.5 + 0.5 * np.tanh(margin / (2 * noise)))


def _texts_used(rows: Ints, texts: int) -> Ints:
    """[texts] 1 where a text occurs in a TRAIN row."""
    used = np.zeros(texts, dtype=np.int64)
    used[rows[rows[:, 6] == Split.TRAIN, 1:3].ravel()] = 1
    return used


def _train_popularity(training: list[Ints], people: People, texts: int) -> Ints:
    """[texts] how many federated users have a text in their TRAIN records."""
    popularity = np.zeros(texts, dtype=np.int64)
    for rows, user in zip(training, people.users, strict=True):
        if user.federated:
            popularity += _texts_used(rows, texts)
    return popularity


def _assembled(rows: list[Ints]) -> Records:
    """All rows as ``Records``: by user, then by time."""
    table = np.concatenate(rows)
    table = table[np.lexsort((table[:, 5], table[:, 0]))]
    return Records.from_rows(map(tuple, table.tolist()))
