"""Answers of the embedded world: a task and a style become a text with measured attributes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from simulation import grammar_phrases as phrases
from simulation.grammar_topics import TOPICS, Task, Topic

ATTRIBUTES = ("length", "formality", "depth", "warmth", "structure", "hedging", "humour", "emoji")
"""Readable attributes, in the order of ``Answer.attributes``."""

MEDIAN_WORDS = 28.0
"""Number of words at which the attribute ``length`` is 0; it is -1 at a third, +1 at thrice."""

Flaw = Literal["", "claim", "flattery", "harm", "demeaning"]
FLAWS: tuple[Flaw, ...] = ("claim", "harm", "flattery", "harm", "claim", "demeaning")
"""Flaws in the order in which bad answers cycle through them."""

DISHONEST_FLAWS = ("claim", "flattery")
TASKS: tuple[Task, ...] = tuple(task for topic in TOPICS for task in topic.tasks)
"""All tasks; their index is what ``Prompt.task`` means."""

_TOPIC: dict[str, Topic] = {topic.name: topic for topic in TOPICS}
_YOURS = {"I": "you", "my": "your", "me": "you", "myself": "yourself"}


@dataclass(frozen=True)
class Style:
    """How an answer is written: levels in {-1, 0, 1} and ``steps`` in {1, 2, 3}.

    ``depth``, ``structure``, ``humour`` and ``emoji`` are present (+1) or absent (-1).
    """

    steps: int
    formality: int
    depth: int
    warmth: int
    structure: int
    hedging: int
    humour: int
    emoji: int


@dataclass(frozen=True)
class Answer:
    """One text: its ``attributes`` follow ``ATTRIBUTES``, each in [-1, 1]."""

    text: str
    attributes: tuple[float, ...]
    honest: bool = True
    harmless: bool = True


def your(goal: str) -> str:
    """A goal as the answerer says it.

    >>> your("edit my own text")
    'edit your own text'
    """
    return re.sub(r"\b(I|my|me|myself)\b", lambda found: _YOURS[found.group()], goal)


def prompt_of(task: Task, frame: int) -> str:
    """The question that asks for ``task`` in the given frame."""
    return phrases.FRAMES[frame % len(phrases.FRAMES)].format(goal=task.goal)


def draw_style(generator: np.random.Generator) -> Style:
    """An independent draw of each level; humour and emoji are in a quarter of the answers."""
    level = [int(value) for value in generator.integers(-1, 2, size=3)]
    has = [
        1 if value < limit else -1
        for value, limit in zip(generator.random(4), (0.4, 0.4, 0.3, 0.3), strict=True)
    ]
    steps = 1 + int(generator.integers(0, 3))
    return Style(steps, level[0], has[0], level[1], has[1], level[2], has[2], has[3])


def balanced_styles(count: int, generator: np.random.Generator) -> list[Style]:
    """``count`` styles in which each attribute takes its levels about equally often."""

    def shuffled(levels: tuple[int, ...]) -> list[int]:
        values = np.resize(np.array(levels), count)
        return [int(value) for value in generator.permutation(values)]

    three, two, rare = (-1, 0, 1), (-1, 1), (-1, -1, 1)
    columns = [shuffled(levels) for levels in ((1, 2, 3), three, two, three, two, three, rare, rare)]
    return [Style(*row) for row in zip(*columns, strict=True)]


def length_attribute(text: str) -> float:
    """Length in [-1, 1]: the logarithm (base 3) of words over ``MEDIAN_WORDS``, cut."""
    words = max(1, len(text.split()))
    return float(np.clip(math.log(words / MEDIAN_WORDS, 3.0), -1.0, 1.0))


def write_answer(task: Task, style: Style, generator: np.random.Generator, flaw: Flaw = "") -> Answer:
    """Write the answer; a ``flaw`` adds one dishonest or harmful element.

    A harmful tip takes the place of one step; an untrue claim, flattery or contempt adds a
    sentence; style is otherwise as without it.
    """
    if flaw not in get_args(Flaw):
        raise ValueError(f"flaw={flaw!r}: must be one of {get_args(Flaw)}")
    parts = [*_opening(task, style, generator, flaw), _body(task, style, generator, flaw)]
    parts += _middle(task, style, generator, flaw)
    parts += _closing(task, style, generator)
    text = _in_register(_joined(parts, style), style.formality)
    levels = (
        style.formality,
        style.depth,
        style.warmth,
        style.structure,
        style.hedging,
        style.humour,
        style.emoji,
    )
    return Answer(
        text=text,
        attributes=(length_attribute(text), *(float(level) for level in levels)),
        honest=flaw not in DISHONEST_FLAWS,
        harmless=flaw not in ("harm", "demeaning"),
    )


def answer_set(task: Task, good: int, bad: int, generator: np.random.Generator) -> tuple[Answer, ...]:
    """``good`` sound and ``bad`` flawed answers to one task, all texts distinct.

    Of three draws of the sound ones, the one whose lengths span most is taken.
    """
    offset = int(generator.integers(0, len(FLAWS)))
    draws = [_sound_answers(task, good, generator) for _ in range(3)]
    answers = max(draws, key=_length_span)
    for i in range(bad):
        _add(answers, task, draw_style(generator), generator, FLAWS[(offset + i) % len(FLAWS)])
    return tuple(answers.values())


def _sound_answers(task: Task, count: int, generator: np.random.Generator) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    for style in balanced_styles(count, generator):
        _add(answers, task, style, generator, "")
    return answers


def _add(
    answers: dict[str, Answer], task: Task, style: Style, generator: np.random.Generator, flaw: Flaw
) -> None:
    """Add an answer whose text is not among ``answers`` yet."""
    answer = write_answer(task, style, generator, flaw)
    while answer.text in answers:
        answer = write_answer(task, replace(style, steps=1 + int(generator.integers(0, 3))), generator, flaw)
    answers[answer.text] = answer


def _length_span(answers: dict[str, Answer]) -> float:
    lengths = [answer.attributes[0] for answer in answers.values()]
    return max(lengths) - min(lengths)


def _pick(pool: tuple[str, ...], generator: np.random.Generator) -> str:
    return pool[int(generator.integers(0, len(pool)))]


def _opening(task: Task, style: Style, generator: np.random.Generator, flaw: Flaw) -> list[str]:
    parts = []
    if flaw in ("flattery", "demeaning"):
        pool = phrases.FLATTERY if flaw == "flattery" else phrases.DEMEANING
        parts.append(_pick(pool[style.formality], generator).format(goal=your(task.goal)))
    if style.warmth:
        pool = phrases.WARM_OPEN if style.warmth > 0 else phrases.COLD_OPEN
        parts.insert(0, _pick(pool[style.formality], generator))
    return parts


def _body(task: Task, style: Style, generator: np.random.Generator, flaw: Flaw) -> str:
    chosen = sorted(int(i) for i in generator.permutation(3)[: style.steps])
    steps = [task.steps[i] for i in chosen]
    if flaw == "harm":
        steps[int(generator.integers(0, len(steps)))] = _pick(_TOPIC[task.topic].harm, generator)
    if style.structure > 0:
        numbered = bool(generator.integers(0, 2))
        marks = [f"{i + 1}." if numbered else "-" for i in range(len(steps))]
        lines = [f"{mark} {step[0].upper()}{step[1:]}" for mark, step in zip(marks, steps, strict=True)]
        return "\n".join([_pick(phrases.HEADER[style.formality], generator), *lines])
    later = generator.permutation(len(phrases.LATER[style.formality]))
    sentences = [_pick(phrases.FIRST[style.formality], generator).format(s=steps[0], goal=your(task.goal))]
    sentences += [phrases.LATER[style.formality][later[i]].format(s=step) for i, step in enumerate(steps[1:])]
    return " ".join(sentences)


def _middle(task: Task, style: Style, generator: np.random.Generator, flaw: Flaw) -> list[str]:
    parts = []
    if flaw == "claim":
        claim = _pick(_TOPIC[task.topic].false, generator)
        parts.append(_pick(phrases.DISHONEST[style.formality], generator).format(claim=claim))
    if style.depth > 0:
        parts.append(_pick(phrases.DETAIL[style.formality], generator).format(detail=task.detail))
    if style.hedging:
        pool = phrases.HEDGE if style.hedging > 0 else phrases.CONFIDENT
        parts.append(_pick(pool[style.formality], generator))
    return parts


def _closing(task: Task, style: Style, generator: np.random.Generator) -> list[str]:
    parts = []
    if style.humour > 0:
        joke = _pick(_TOPIC[task.topic].jokes, generator)
        parts.append(_pick(phrases.JOKE[style.formality], generator).format(joke=joke))
    if style.warmth > 0:
        parts.append(_pick(phrases.WARM_CLOSE[style.formality], generator))
    if style.emoji > 0:
        parts.append(_pick(phrases.EMOJI, generator))
    return parts


def _joined(parts: list[str], style: Style) -> str:
    """Sentences on one line, a list on lines of its own."""
    if style.structure < 0:
        return " ".join(parts)
    where = next(i for i, part in enumerate(parts) if "\n" in part)
    blocks = (" ".join(parts[:where]), parts[where], " ".join(parts[where + 1 :]))
    return "\n".join(block for block in blocks if block)


def _in_register(text: str, formality: int) -> str:
    """Contract in casual texts, spell out in formal ones."""
    for full, short in phrases.CONTRACTIONS:
        old, new = (full, short) if formality < 0 else (short, full)
        if formality:
            text = re.sub(rf"\b{old}\b", new, text)
            text = re.sub(rf"\b{old.capitalize()}\b", new.capitalize(), text)
    return text
