"""A population, a model and settings so small that whole runs take less than a second.

The model is random, made here and saved to a folder, so that everything from ``load_base`` on
is the real part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from fl_client.trainer import NodeTrainer
from fl_core.config import RunConfig
from fl_core.records import NO_TEXT, Population, Records, Split, Text, User, ValuesPair
from fl_core.shared import Arrays, initial_shared
from fl_core.wire import read_instruction, reply_content
from tests.fl_core.tiny_models import VOCABULARY, tiny_model

USERS, PROMPTS, ANSWERS = 12, 5, 4
TEXTS = PROMPTS * ANSWERS
NO_RECORDS, NOT_TRAINED = 5, 7
"""A user without any record, and one whose records are all held back."""
UNFEDERATED = (9, 10)

SMALL: dict[str, Any] = {
    "users": USERS,
    "arms": "shared,local,dual",
    "shared.kind": "components",
    "shared.rank": 2,
    "shared.targets": "q_proj,down_proj",
    "shared.layers": "top:1",
    "shared.components": 3,
    "personal.components": 3,
    "local.rank": 4,
    "train.max-tokens": 24,
    "train.prompt-tokens": 6,
    "train.text-shards": 2,
    "train.final-steps": 4,
    "federation.rounds": 4,
    "privacy.sampling-rate": 1.0,
}


def save_tiny_model(folder: Path) -> None:
    """A random Llama of width 24 and a tokenizer of one word an id."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = Tokenizer(WordLevel(words, unk_token="w2"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_population(form: str = "mixed", seed: int = 0) -> Population:
    """``USERS`` users who mostly like one half of the vocabulary; ``form``: votes, pairs or mixed.

    The last prompt is in UNSEEN records alone.  Users ``UNFEDERATED`` only personalise.
    """
    generator = np.random.default_rng(seed)
    texts = tuple(
        Text(f"t{i}", f"w{2 + i // ANSWERS} w9", _words(generator, 3 + i % 4)) for i in range(TEXTS)
    )
    rows = [row for user in range(USERS) for row in _records(user, form, generator)]
    return Population(
        name="tiny",
        texts=texts,
        users=tuple(User(f"u{i}", federated=i not in UNFEDERATED) for i in range(USERS)),
        records=Records.from_rows(rows),
        values=tuple(
            ValuesPair(f"w{3 + i}", _words(generator, 4), _words(generator, 5), public=i < 6)
            for i in range(9)
        ),
    )


def without_floor(population: Population) -> Population:
    """The same with hidden values pairs alone: on a random model the floor may undo everybody's own part."""
    return replace(population, values=tuple(replace(pair, public=False) for pair in population.values))


def _words(generator: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in generator.integers(2, VOCABULARY, count))


def _records(user: int, form: str, generator: np.random.Generator) -> list[tuple[int, ...]]:
    if user == NO_RECORDS:
        return []
    rows = []
    for chosen in generator.permutation(TEXTS).tolist():
        prompt = chosen // ANSWERS
        other = prompt * ANSWERS + (chosen + 1 + int(generator.integers(ANSWERS - 1))) % ANSWERS
        vote = form == "votes" or (form == "mixed" and chosen % 2 == 0)
        label = (1 if (chosen + user) % 3 else -1) if vote else 1
        split = int(generator.choice([0, 1, 2, 3], p=[0.6, 0.15, 0.05, 0.2]))
        split = int(Split.UNSEEN) if prompt == PROMPTS - 1 else split
        if user == NOT_TRAINED and split == Split.TRAIN:
            split = int(Split.HOLDBACK)
        rejected = (
            NO_TEXT if vote else other if other != chosen else prompt * ANSWERS + (chosen + 1) % ANSWERS
        )
        rows.append((user, chosen, rejected, label, 0, 0, split))
    return rows


def tiny_config(model: Path, **changes: Any) -> RunConfig:
    """``SMALL``, with some settings changed: ``train__inner_lr=1.0`` sets ``train.inner-lr``."""
    named = {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    return RunConfig.from_flat({"model": str(model), **SMALL, **named})


def answering_with(trainer: NodeTrainer) -> Callable[[Message], Message]:
    """What ``fl_client.app`` does with a message, without Flower around it."""

    def answer(message: Message) -> Message:
        shared, asked = read_instruction(message.content)
        if asked.phase == "train.personalize":
            count = trainer.personalize(asked.arm, asked.server_round, shared)
            return Message(reply_content(count), reply_to=message)
        total, count = trainer.train(asked.arm, asked.server_round, shared)
        return Message(reply_content(count, total if count else None), reply_to=message)

    return answer


def nodes_of(config: RunConfig, population: Path, out: Path, count: int) -> list[NodeTrainer]:
    """The run's users on ``count`` nodes."""
    return [NodeTrainer(config, population, out, node, count) for node in range(count)]


def train_rounds(nodes: Sequence[NodeTrainer], arm: str, rounds: int, step: float = 0.3) -> Arrays:
    """Rounds of plain averaging over ``nodes``; returns the released shared adapter."""
    shared = initial_shared(nodes[0].config, arm)
    for server_round in range(1, rounds + 1):
        total, users = sum_of(nodes, arm, server_round, shared)
        shared = {name: value + step / max(1, users) * total[name] for name, value in shared.items()}
    return shared


def sum_of(nodes: Sequence[NodeTrainer], arm: str, server_round: int, shared: Arrays) -> tuple[Arrays, int]:
    """What a server would add up in a round."""
    replies = [node.train(arm, server_round, shared) for node in nodes]
    total = {name: np.sum([reply[name] for reply, _ in replies], axis=0) for name in shared}
    return total, sum(count for _, count in replies)


def finish_arm(nodes: Sequence[NodeTrainer], arm: str, rounds: int) -> Arrays:
    """All that a run does for one arm: rounds, release, personal phase."""
    local = arm.removesuffix("_dp") == "local"
    shared = initial_shared(nodes[0].config, arm) if local else train_rounds(nodes, arm, rounds)
    if not local:
        folder = nodes[0].out / "arms" / arm
        folder.mkdir(parents=True, exist_ok=True)
        save_file(shared, folder / "shared.safetensors")
    if arm.removesuffix("_dp") != "shared":
        for node in nodes:
            node.personalize(arm, 1 if local else rounds + 1, shared)
    return shared
