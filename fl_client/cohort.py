"""A node's data: its users' records, all texts as tokens, and the public values pairs."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from fl_core.base_model import BaseModel, render_prompt
from fl_core.config import RunConfig, TrainConfig
from fl_core.engine import Examples
from fl_core.records import NO_TEXT, Population, Split
from fl_core.trunk import Tokens


class Cohort:
    """The data of a node: its users' records, all texts as tokens, and the public pairs.

    Texts of the values pairs are appended to the population's texts: ``values`` are the public
    pairs that train, ``floor`` those of every third public prompt, which set the values floor and
    never train, and ``hidden_values`` those that only an evaluation may look at.
    """

    def __init__(
        self, config: RunConfig, population: Population, base: BaseModel, users: npt.NDArray[np.int64]
    ) -> None:
        self.config, self.population, self.base, self.users = config, population, base, users
        rendered = [(text.prompt, text.response) for text in population.texts]
        first = len(rendered)
        for pair in population.values:
            rendered += [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
        self.tokens = tuple(_tokens(base, prompt, response, config.train) for prompt, response in rendered)
        public = np.array([pair.public for pair in population.values], dtype=bool)
        floor = _every_third_prompt([pair.prompt for pair in population.values], public)
        self.values = _values(np.flatnonzero(public & ~floor) * 2 + first)
        self.floor = _values(np.flatnonzero(public & floor) * 2 + first)
        self.hidden_values = _values(np.flatnonzero(~public) * 2 + first)
        self.federated = np.array([population.users[int(user)].federated for user in users], dtype=bool)

    def public_pairs(self, most: int) -> Examples:
        """At most ``most`` of the public pairs that train, evenly spaced."""
        count = len(self.values)
        return self.values.take(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))

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

    def everybodys_train_examples(self) -> Examples:
        """TRAIN records of all users of the population; only their texts, which are public, are used."""
        records = self.population.records.of_split(Split.TRAIN)
        columns = (records.user, records.chosen, records.rejected, records.label)
        return Examples(*(column.astype(np.int64) for column in columns))

    def online(self, server_round: int) -> npt.NDArray[np.bool_]:
        """[U] which federated users take part in a round (simulated availability)."""
        if all(self.population.users[int(user)].availability >= 1.0 for user in self.users):
            return self.federated
        rows = []
        for user in self.users:
            generator = np.random.default_rng([self.config.seed, int(user), server_round, 77])
            rows.append(generator.random() < self.population.users[int(user)].availability)
        return np.asarray(self.federated & np.array(rows, dtype=bool))


def _every_third_prompt(prompts: list[str], public: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[V] True where a pair's prompt is the second, fifth, ... of the public ones."""
    order: dict[str, int] = {}
    for prompt, known in zip(prompts, public, strict=True):
        if known:
            order.setdefault(prompt, len(order))
    return np.array([order.get(prompt, 0) % 3 == 1 for prompt in prompts], dtype=bool)


def _values(chosen: npt.NDArray[np.int64]) -> Examples:
    """Values pairs whose better answers stand at ``chosen``, each followed by its worse one."""
    zero = np.zeros(len(chosen), dtype=np.int64)
    return Examples(zero, chosen, chosen + 1, zero + 1)


def _tokens(base: BaseModel, prompt: str, response: str, train: TrainConfig) -> Tokens:
    """A text as tokens; of the prompt at most ``train.prompt_tokens`` are kept, its last ones."""
    given = prompt if train.prompt_tokens else ""
    ids, mask = render_prompt(base.tokenizer, given, response, train.max_tokens)
    over = max(0, mask.index(True) - max(train.prompt_tokens, 4))
    return Tokens(tuple(ids[over:]), tuple(mask[over:]))


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


def texts_of(*examples: Examples) -> npt.NDArray[np.int64]:
    """The distinct texts that some examples index, in order."""
    named = [column for part in examples for column in (part.chosen, part.rejected[part.rejected != NO_TEXT])]
    return np.unique(np.concatenate(named))
