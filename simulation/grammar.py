"""The embedded world's texts: a grammar of prompts and candidate answers.

216 everyday tasks over 24 topics (``grammar_topics``), wordings by register
(``grammar_phrases``), answers with measured attributes (``grammar_answers``) and pairs on
which everybody should agree (``grammar_values``).  Every fourth task is *reserved*: only the
world's unseen test prompts come from these tasks, and neither pretraining texts nor values
pairs ever touch them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fl_core.errors import ConfigurationError
from simulation import grammar_phrases as phrases
from simulation.grammar_answers import (
    ATTRIBUTES,
    FLAWS,
    TASKS,
    Answer,
    Flaw,
    Style,
    answer_set,
    draw_style,
    prompt_of,
    write_answer,
)
from simulation.grammar_values import RESERVED, values_pairs

__all__ = ["ATTRIBUTES", "RESERVED", "Prompt", "pretraining_turns", "values_pairs", "world_texts"]

PRETRAINING_DIALOGUES = 24_000
_WORLD, _PRETRAINING = 1, 2  # stream tags: worlds and pretraining never share a draw


@dataclass(frozen=True)
class Prompt:
    """A question with its candidate answers; ``task`` indexes ``grammar_answers.TASKS``."""

    prompt: str
    task: int
    reserved: bool
    answers: tuple[Answer, ...]


def world_texts(seed: int, prompts: int = len(TASKS), answers: int = 13, bad: int = 3) -> tuple[Prompt, ...]:
    """``prompts`` questions with ``answers`` candidates each, ``bad`` of them flawed.

    Raises ``ConfigurationError`` where more prompts are asked for than there are tasks, or
    fewer than two sound answers would remain.
    """
    if not 1 <= prompts <= len(TASKS):
        raise ConfigurationError(f"prompts={prompts}: must be from 1 to {len(TASKS)}, the grammar's tasks")
    if bad < 0 or answers - bad < 2:
        raise ConfigurationError(f"answers={answers}, bad={bad}: at least two sound answers must remain")
    generator = np.random.default_rng([seed, _WORLD])
    chosen = np.sort(generator.permutation(len(TASKS))[:prompts])
    return tuple(
        Prompt(
            prompt=prompt_of(TASKS[task], int(generator.integers(0, len(phrases.FRAMES)))),
            task=int(task),
            reserved=int(task) in RESERVED,
            answers=answer_set(TASKS[task], answers - bad, bad, generator),
        )
        for task in chosen
    )


def pretraining_turns(
    seed: int,
    dialogues: int = PRETRAINING_DIALOGUES,
    bad_share: float = 0.2,
    rewrite_share: float = 0.15,
    describe_share: float = 0.15,
) -> list[list[str]]:
    """Dialogues [prompt, answer] for language-model pretraining; they hold no preference.

    ``bad_share`` of the plain dialogues have a flawed answer, unmarked.  ``rewrite_share``
    ask for a change of one attribute, ``describe_share`` for the attributes of an answer
    (never for its honesty or harm).  No reserved task occurs.
    """
    generator = np.random.default_rng([seed, _PRETRAINING])
    open_tasks = [index for index in range(len(TASKS)) if index not in RESERVED]
    makers = (_rewrite_turns, _describe_turns)
    turns = []
    for draw in generator.random(dialogues):
        task = int(generator.choice(open_tasks))
        if draw < rewrite_share + describe_share:
            turns.append(makers[int(draw >= rewrite_share)](task, generator))
        else:
            flawed = generator.random() < bad_share
            turns.append(
                _plain_turns(task, FLAWS[int(generator.integers(len(FLAWS)))] if flawed else "", generator)
            )
    return turns


def _plain_turns(task: int, flaw: Flaw, generator: np.random.Generator) -> list[str]:
    frame = int(generator.integers(0, len(phrases.FRAMES)))
    answer = write_answer(TASKS[task], draw_style(generator), generator, flaw)
    return [prompt_of(TASKS[task], frame), answer.text]


def _rewrite_turns(task: int, generator: np.random.Generator) -> list[str]:
    keys = list(phrases.REWRITE)
    attribute, level = keys[int(generator.integers(0, len(keys)))]
    style = draw_style(generator)
    wordings, steps = (int(value) for value in generator.integers(0, 2**31, size=2))
    before, after = (
        _same_words(task, replace(style, **{attribute: value}), wordings + steps) for value in (-level, level)
    )
    pool = phrases.REWRITE[attribute, level]
    return [f"{pool[int(generator.integers(0, len(pool)))]} {before}", after]


def _same_words(task: int, style: Style, seed: int) -> str:
    """An answer from its own generator, so that two styles share most of their wording."""
    return write_answer(TASKS[task], style, np.random.default_rng(seed)).text


def _describe_turns(task: int, generator: np.random.Generator) -> list[str]:
    answer = write_answer(TASKS[task], draw_style(generator), generator)
    return [f"How does this sound? {answer.text}", ", ".join(_adjectives(answer)) + "."]


def _adjectives(answer: Answer) -> Iterator[str]:
    for name, value in zip(ATTRIBUTES, answer.attributes, strict=True):
        if abs(value) >= 1 / 3:
            yield phrases.ADJECTIVES[name, 1 if value > 0 else -1]
