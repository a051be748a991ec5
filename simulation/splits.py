"""Which record may be used for what: splits by record, by text and by user.

Everything is decided by keyed hashes of contents (user id, prompt, response) and the seed,
never by position, so that adding a user leaves the others' splits as they were.

- by user: a share of users is not federated; they only personalise.
- by text: a share of texts is unseen.  Where records are pairs, whole prompts are held out,
  because both answers of an unseen pair must be new; where they are votes, single texts are.
- by record: each user's other records, in an order given by their hashes, are cut into SEEN
  (test), VALIDATION and the rest, so that also a user of few records gets his share of each.
  Of the rest, HOLDBACK is decided by each record's own hash, without regard to the user's other
  records: the privacy of fusion (``fl_core.fusion``) rests on that.  So a user of few records
  may have none to hold back, or none to train on.  Two records of one user on the same texts
  always fall together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl_core.errors import DataError
from fl_core.records import NO_TEXT, Population, Records, Split, Text

FEWEST_UNITS = 5
"""Below this number of distinct prompts (pairs) or texts (votes) none is held out as unseen."""

_SEPARATOR = "\x1f"
_TRAINED = (Split.TRAIN, Split.HOLDBACK, Split.VALIDATION)


class SplitShares(BaseModel):
    """How much goes where.

    ``test``: share of a user's records on seen texts that test (SEEN).  ``validation``: share
    of his remaining records; ``holdback``: likewise, but only in expectation.
    ``unseen_texts``: share of texts (votes) or prompts (pairs) in nobody's training.
    ``unfederated_users``: share of users who never take part in rounds and only personalise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: float = Field(default=0.2, gt=0, lt=1)
    holdback: float = Field(default=0.1, ge=0, lt=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    unseen_texts: float = Field(default=0.2, ge=0, lt=1)
    unfederated_users: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> SplitShares:
        if self.holdback + self.validation >= 1:
            raise ValueError(
                f"holdback={self.holdback} + validation={self.validation} must be below 1, "
                "or no record is left to train on"
            )
        return self


def hashed_uniform(seed: int, purpose: str, keys: Iterable[str]) -> npt.NDArray[np.float64]:
    """[N] numbers in [0, 1), one a key: blake2b of the key, personalised by seed and purpose."""
    secret = f"{purpose}{_SEPARATOR}{seed}".encode()
    digests = (blake2b(key.encode(), key=secret, digest_size=8).digest() for key in keys)
    values = np.frombuffer(b"".join(digests), dtype=">u8")
    uniform: npt.NDArray[np.float64] = np.right_shift(values, 11) / 2.0**53
    return uniform


def choose_users(user_ids: Sequence[str], users: int, seed: int) -> list[str]:
    """``users`` of the ids (0: all) by smallest hash, in the order given.

    Raises ``DataError`` where there is none to choose from.
    """
    if not user_ids:
        raise DataError("users: the source has no user with enough records; lower its minimum")
    if users <= 0 or users >= len(user_ids):
        return list(user_ids)
    chosen = np.sort(np.argsort(hashed_uniform(seed, "user", user_ids), kind="stable")[:users])
    return [user_ids[i] for i in chosen]


def federated_users(user_ids: Sequence[str], shares: SplitShares, seed: int) -> npt.NDArray[np.bool_]:
    """[U] True where a user takes part in rounds.  Raises ``DataError`` if nobody would."""
    federated = hashed_uniform(seed, "federated", user_ids) >= shares.unfederated_users
    if not federated.any():
        raise DataError(
            f"unfederated_users={shares.unfederated_users} leaves none of {len(user_ids)} users to "
            "train the shared adapter; lower it, or take more users"
        )
    return federated


def unseen_units(units: Sequence[str], shares: SplitShares, seed: int) -> npt.NDArray[np.bool_]:
    """[T] True where a text's unit (prompt or text) is in nobody's training.

    None is where there are fewer than ``FEWEST_UNITS`` distinct ones.  Raises ``DataError``
    where nothing would be left to train on.
    """
    if len(set(units)) < FEWEST_UNITS:
        return np.zeros(len(units), dtype=np.bool_)
    unseen = hashed_uniform(seed, "unseen", units) < shares.unseen_texts
    if unseen.all():
        raise DataError(
            f"unseen_texts={shares.unseen_texts} holds out all {len(units)} texts; "
            "lower it or change the seed"
        )
    return unseen


def split_by_record(
    user: npt.NDArray[np.int32],
    uniform: npt.NDArray[np.float64],
    held_back: npt.NDArray[np.bool_],
    shares: SplitShares,
) -> npt.NDArray[np.int8]:
    """[N] TRAIN, HOLDBACK, VALIDATION or SEEN, by rank of ``uniform`` within each user.

    A user's k-th of n distinct numbers stands at (k - 1/2) / n; positions below ``test`` are
    SEEN, then ``validation`` of what remains.  Equal numbers fall together.  What is neither
    trains, or is held back where ``held_back`` [N], decided for each record alone, says so.

    >>> import numpy as np
    >>> tenths = np.arange(10) / 10
    >>> split_by_record(np.zeros(10, dtype=np.int32), tenths, tenths > 0.7, SplitShares()).tolist()
    [3, 3, 2, 0, 0, 0, 0, 0, 1, 1]
    """
    position = _positions(user, uniform)
    rest = (position - shares.test) / (1 - shares.test)
    split = _trained_as(held_back)
    split[rest < shares.validation] = Split.VALIDATION
    split[rest < 0] = Split.SEEN
    return split


def held_back_alone(
    keys: Iterable[str], holdback: float, validation: float, seed: int
) -> npt.NDArray[np.bool_]:
    """[N] whether each record, named by its ``record_keys``, is held back if it tests nothing.

    By its own hash alone.  A record that is not for validation is held back with probability
    holdback / (1 - validation), so that a share ``holdback`` of both together is.
    """
    return hashed_uniform(seed, "holdback", keys) < holdback / (1 - validation)


def _trained_as(held_back: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    return np.where(held_back, int(Split.HOLDBACK), int(Split.TRAIN)).astype(np.int8)


def _positions(user: npt.NDArray[np.int32], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N] (dense rank within the user + 1/2) / (distinct numbers of the user)."""
    order = np.lexsort((uniform, user))
    new_user = np.diff(user[order], prepend=-1) != 0
    new_rank = new_user | (np.diff(uniform[order], prepend=-1.0) != 0)
    running = np.cumsum(new_rank) - 1
    first = np.maximum.accumulate(np.where(new_user, running, 0))
    counts = np.bincount(user[order], weights=new_rank)
    position = np.empty(len(user), dtype=np.float64)
    position[order] = (running - first + 0.5) / counts[user[order]]
    return position


def assign_splits(population: Population, shares: SplitShares, seed: int) -> Population:
    """The population with ``split`` of every record and ``federated`` of every user set anew.

    A SEEN record whose texts turn out to be in nobody's training becomes UNSEEN, and one of
    which only some texts are in the federated users' TRAIN records trains or is held back, so
    that both test splits mean what they say also where texts are rare.
    """
    records = population.records
    federated = federated_users([u.user_id for u in population.users], shares, seed)
    unseen = unseen_units(_units(population), shares, seed)
    split = np.full(len(records), int(Split.UNSEEN), dtype=np.int8)
    seen = ~unseen[records.chosen]
    keys = record_keys(population)
    uniform = hashed_uniform(seed, "record", keys)
    held_back = held_back_alone(keys, shares.holdback, shares.validation, seed)
    split[seen] = split_by_record(records.user[seen], uniform[seen], held_back[seen], shares)
    contents = content_index(population.texts)
    split = _settled(replace(records, split=split), contents, federated, held_back)
    users = tuple(replace(u, federated=bool(f)) for u, f in zip(population.users, federated, strict=True))
    return replace(population, users=users, records=replace(records, split=split))


def record_keys(population: Population) -> list[str]:
    """One key a record: user id and the contents of its texts, in either order of the pair."""
    ids = [u.user_id for u in population.users]
    r = population.records
    return keys_of(
        population.texts, [ids[u] for u in r.user.tolist()], r.chosen.tolist(), r.rejected.tolist()
    )


def keys_of(
    texts: Sequence[Text], user_ids: Sequence[str], chosen: Sequence[int], rejected: Sequence[int]
) -> list[str]:
    """``record_keys`` of records given as columns."""
    contents = [text.prompt + _SEPARATOR + text.response for text in texts] + [""]
    return [
        _SEPARATOR.join((user_id, *sorted((contents[a], contents[b]))))
        for user_id, a, b in zip(user_ids, chosen, rejected, strict=True)
    ]


def content_index(texts: Sequence[Text]) -> npt.NDArray[np.int64]:
    """[T] number of each text's content: texts of equal prompt and response share one."""
    numbers: dict[tuple[str, str], int] = {}
    found = [numbers.setdefault((t.prompt, t.response), len(numbers)) for t in texts]
    return np.array(found, dtype=np.int64)


def _units(population: Population) -> list[str]:
    if population.records.is_pair().any():
        return [text.prompt for text in population.texts]
    return [text.prompt + _SEPARATOR + text.response for text in population.texts]


def _settled(
    records: Records,
    contents: npt.NDArray[np.int64],
    federated: npt.NDArray[np.bool_],
    held_back: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """[N] splits after SEEN records on texts that nobody trains on found their place."""
    split = records.split.copy()
    of_record = _contents_of(records, contents)
    while True:
        everyone = _present(of_record[np.isin(split, _TRAINED)], len(contents))
        shared = _present(of_record[(split == Split.TRAIN) & federated[records.user]], len(contents))
        seen = split == Split.SEEN
        known, trained = shared[of_record].all(axis=1), everyone[of_record].any(axis=1)
        mixed = seen & ~known & trained
        if not mixed.any():
            split[seen & ~known] = Split.UNSEEN
            return split
        split[mixed] = _trained_as(held_back[mixed])


def _contents_of(records: Records, contents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[N, 2] content numbers of each record's texts; a vote's text stands twice."""
    second = np.where(records.rejected == NO_TEXT, records.chosen, records.rejected)
    return np.stack([contents[records.chosen], contents[second]], axis=1)


def _present(numbers: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
    present = np.zeros(size, dtype=np.bool_)
    present[numbers.ravel()] = True
    return present


def check_no_leak(population: Population) -> None:
    """Raise ``DataError`` where a test record could have been learned from.

    Checked on contents, not on ids: no text of an UNSEEN record is in anybody's TRAIN,
    HOLDBACK or VALIDATION records, and no user has records on the same texts (or the same
    pair, either way round) in two splits.
    """
    records = population.records
    of_record = _contents_of(records, content_index(population.texts))
    trained = _present(of_record[np.isin(records.split, _TRAINED)], len(population.texts))
    leaked = (records.split == Split.UNSEEN) & trained[of_record].any(axis=1)
    if leaked.any():
        raise DataError(
            f"population {population.name!r}: {int(leaked.sum())} UNSEEN records have texts that training "
            f"records contain, first that of user {_user_at(population, leaked)!r}; use assign_splits"
        )
    twice = _in_two_splits(records, np.sort(of_record, axis=1))
    if twice.any():
        raise DataError(
            f"population {population.name!r}: {int(twice.sum())} records stand in two splits, "
            f"first of user {_user_at(population, twice)!r}; use assign_splits"
        )


def _in_two_splits(records: Records, pair: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[N] True where the previous record, by user and texts, has the same but another split."""
    order = np.lexsort((records.split, pair[:, 1], pair[:, 0], records.user))
    rows = np.column_stack([records.user, pair])[order]
    same = (rows[1:] == rows[:-1]).all(axis=1)
    twice = np.zeros(len(records), dtype=np.bool_)
    twice[order[1:]] = same & (np.diff(records.split[order]) != 0)
    return twice


def _user_at(population: Population, where: npt.NDArray[np.bool_]) -> str:
    return population.users[int(population.records.user[np.argmax(where)])].user_id
