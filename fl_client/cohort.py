"""A node's data: its users' records, and the texts that everybody knows."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from fl_core.base_model import BaseModel
from fl_core.config import RunConfig
from fl_core.engine import Examples
from fl_core.public_texts import PublicTexts
from fl_core.records import NO_TEXT, Population, Split


class Cohort:
    """The data of a node: its users' records, and the public ``texts`` that everybody knows."""

    def __init__(
        self, config: RunConfig, population: Population, base: BaseModel, users: npt.NDArray[np.int64]
    ) -> None:
        self.config, self.population, self.base, self.users = config, population, base, users
        self.texts = PublicTexts(config, population, base)
        self.federated = np.array([population.users[int(user)].federated for user in users], dtype=bool)
        self._online = -1, self.federated

    def examples(self, split: Split) -> Examples:
        """The hosted users' records of a split, ``user`` counted within the node."""
        records = self.population.records.of_split(split)
        place = np.full(len(self.population.users), -1, dtype=np.int64)
        place[self.users] = np.arange(len(self.users))
        records = records.take(place[records.user] >= 0)
        return Examples(
            place[records.user],
            records.chosen.astype(np.int64),
            records.rejected.astype(np.int64),
            records.label.astype(np.int64),
        )

    def online(self, server_round: int) -> npt.NDArray[np.bool_]:
        """[U] which federated users take part in a round (simulated availability); not to be written to.

        Several ask in one round, and a draw a user is not free: the last round's answer is kept.
        """
        if self._online[0] != server_round:
            self._online = server_round, self._drawn(server_round)
        return self._online[1]

    def _drawn(self, server_round: int) -> npt.NDArray[np.bool_]:
        if all(self.population.users[int(user)].availability >= 1.0 for user in self.users):
            return self.federated
        rows = []
        for user in self.users:
            generator = np.random.default_rng([self.config.seed, int(user), server_round, 77])
            rows.append(generator.random() < self.population.users[int(user)].availability)
        return np.asarray(self.federated & np.array(rows, dtype=bool))


def schedule(population: Population, examples: Examples, shards: int) -> npt.NDArray[np.int64]:
    """[E] in which round of a cycle an example is due: decided by its prompt and text alone.

    Pairs go by their prompt, so that all texts of one prompt are due together.
    """
    keys = np.empty(len(examples), dtype=np.int64)
    names: dict[int, int] = {}
    for place, (chosen, rejected) in enumerate(zip(examples.chosen, examples.rejected, strict=True)):
        text = int(chosen)
        if text not in names:
            known = population.texts[text] if text < len(population.texts) else None
            name = str(text) if known is None else known.prompt if rejected != NO_TEXT else known.response
            names[text] = zlib.crc32(name.encode())
        keys[place] = names[text]
    return keys % shards
