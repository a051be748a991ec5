"""Simulated people choosing among real answers of real models.

Input: JSON lines (``.jsonl`` or ``.jsonl.gz``), one prompt a line, as
``{"prompt": str, "responses": {model: answer}}``.  The people are those of the embedded world
(``simulation.people``); their tastes are about attributes measured from the text by simple
counts, as ranks over the file.  Nothing says which of these answers is dishonest or
harmful, so adversarial people differ from others in nothing here, and the universal values
are the grammar's pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field

from fl_core.errors import DataError
from fl_core.records import Population, Text
from simulation.choices import Catalogue, Truth, draw_records, unseen_prompts
from simulation.grammar import values_pairs
from simulation.jsonl import read_lines
from simulation.people import CONTEXTS, Floats, PeopleConfig, draw_people

_PEOPLE, _PROMPTS, _RECORDS = 20, 21, 22  # stream tags

ATTRIBUTES = ("length", "formality", "depth", "warmth", "structure", "hedging", "emoji", "directness")
"""Measured attributes, in the order of ``measure``; names shared with the world mean the same."""

_WARM = r"\b(great|glad|happy|love|lovely|thank|thanks|hope|enjoy|wonderful|welcome|feel free|please|sorry)\b"
_HEDGE = (
    r"\b(may|might|could|perhaps|possibly|probably|likely|depends?|seems?"
    r"|generally|usually|however|not sure)\b"
)
_CASUAL = r"(\b\w+'(s|t|re|ll|ve|d|m)\b|\b(okay|ok|yeah|hey|stuff|guys|kinda|gonna|pretty|really|just)\b)"
_LIST = r"(?m)^\s*(?:\d+[.)]|[-*\u2022#]|step \d+)\s?"
_EMOJI = "[\U0001f300-\U0001faff\u2600-\u27bf]"
_PREAMBLE = (
    r"^(as an ai|i'm sorry|i am sorry|sure|certainly|of course|i'd be happy|there are|thank you|hello|hi)\b"
)


class CandidatesConfig(PeopleConfig):
    """``PeopleConfig`` and which answers are used.

    Answers of more than ``max_answer_words`` and prompts of more than ``max_prompt_words``
    are skipped, never cut: a choice is about a whole answer.  Prompts keep at least
    ``min_answers`` and at most ``max_answers`` (drawn at random) different answers; at most
    ``prompts`` prompts are kept.
    """

    choice_noise: float = Field(default=0.3, ge=0)
    adversarial_share: float = Field(default=0.0, ge=0, le=1)
    prompts: int = Field(default=240, ge=2)
    min_answers: int = Field(default=6, ge=2)
    max_answers: int = Field(default=12, ge=2)
    max_answer_words: int = Field(default=80, ge=5)
    max_prompt_words: int = Field(default=40, ge=3)


def build_candidates(path: Path | str, config: CandidatesConfig) -> Population:
    """The population that chooses among the answers at ``path``; deterministic in the config.

    Raises ``DataError`` naming the file and the line where the input cannot be used.
    """
    truth = candidates_truth(path, config)
    catalogue = truth.catalogue
    return Population(
        name="candidates",
        texts=catalogue.texts,
        users=truth.people.users,
        records=draw_records(config, truth.people, catalogue, (config.seed, _RECORDS)),
        values=values_pairs(config.seed),
        contexts=CONTEXTS,
        about=(
            f"Simulated users choose among {len(catalogue.texts)} real answers to "
            f"{len(catalogue.unseen)} real prompts of {Path(path).name}; answers over "
            f"{config.max_answer_words} words and prompts over {config.max_prompt_words} words were "
            "skipped. Not real people."
        ),
    )


def candidates_truth(path: Path | str, config: CandidatesConfig) -> Truth:
    """The preference vectors and attributes behind ``build_candidates(path, config)``."""
    people = draw_people(config, ATTRIBUTES, np.random.default_rng([config.seed, _PEOPLE]))
    return Truth(config, people, _catalogue(Path(path), config))


def measure(text: str) -> tuple[float, ...]:
    """Raw attribute values of one answer, in the order of ``ATTRIBUTES``; any real numbers.

    Logarithm of words; mean word length less casual forms; share of long words and numbers;
    warm words and exclamations; list lines; hedging words; emoji and exclamations; no preamble.
    """
    words = text.split()
    count = max(1, len(words))
    letters = [len(re.sub(r"\W", "", word)) for word in words] or [0]
    exclaimed = text.count("!")
    return (
        float(np.log(count)),
        float(np.mean(letters)) - 20.0 * _hits(_CASUAL, text) / count - exclaimed / count,
        sum(size >= 9 for size in letters) / count + len(re.findall(r"\d", text)) / (4 * count),
        float(np.sqrt(_hits(_WARM, text) + exclaimed)),
        float(np.sqrt(_hits(_LIST, text) + 2 * text.count("```"))),
        float(np.sqrt(_hits(_HEDGE, text))),
        float(np.sqrt(exclaimed + 2 * len(re.findall(_EMOJI, text)))),
        -float(_hits(_PREAMBLE, text)),
    )


def standardised(raw: Floats) -> Floats:
    """Columns [T, D] as mean ranks in [-1, 1]: -1 the least, 0 the median, +1 the most.

    Ranks and not z-scores, because a few odd answers would flatten everybody else's values.

    >>> standardised(np.array([[5.0], [1.0], [100.0]])).ravel().tolist()
    [0.0, -1.0, 1.0]
    """
    ranks = np.empty(raw.shape)
    for column in range(raw.shape[1]):
        _, which, counts = np.unique(raw[:, column], return_inverse=True, return_counts=True)
        below = np.cumsum(counts) - counts
        ranks[:, column] = (below + (counts - 1) / 2)[which]
    return ranks * (2.0 / max(1, len(raw) - 1)) - 1.0


def read_candidates(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (prompt, distinct answers) of each line.

    Raises ``DataError`` where the file or a line cannot be read as the format above.
    """
    for line in read_lines(path):
        try:
            prompt, answers = line.values["prompt"], list(line.values["responses"].values())
        except (KeyError, AttributeError) as error:
            raise line.error(f'expected {{"prompt": str, "responses": {{name: str}}}} ({error!r})') from error
        if not isinstance(prompt, str) or not all(isinstance(answer, str) for answer in answers):
            raise line.error("prompt and responses must be texts")
        yield _unquoted(prompt), tuple(dict.fromkeys(filter(None, map(_unquoted, answers))))


def _unquoted(text: str) -> str:
    return text.strip().strip('"').strip()


def _hits(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, flags=re.IGNORECASE))


def _usable(path: Path, config: CandidatesConfig, generator: np.random.Generator) -> dict[str, list[str]]:
    """Prompts with their answers, after the limits of the config; no answer occurs twice."""
    usable: dict[str, list[str]] = {}
    known: set[str] = set()
    for prompt, answers in read_candidates(path):
        short = [
            text for text in answers if len(text.split()) <= config.max_answer_words and text not in known
        ]
        if not prompt or len(prompt.split()) > config.max_prompt_words or len(short) < config.min_answers:
            continue
        kept = np.sort(generator.permutation(len(short))[: max(config.min_answers, config.max_answers)])
        if prompt not in usable:
            usable[prompt] = [short[i] for i in kept]
            known.update(usable[prompt])
    chosen = np.sort(generator.permutation(len(usable))[: config.prompts])
    items = list(usable.items())
    return dict(items[i] for i in chosen)


def _catalogue(path: Path, config: CandidatesConfig) -> Catalogue:
    generator = np.random.default_rng([config.seed, _PROMPTS])
    usable = _usable(path, config, generator)
    if len(usable) < 2:
        raise DataError(
            f"candidates file {str(path)!r}: only {len(usable)} prompts of at most "
            f"{config.max_prompt_words} words have {config.min_answers} different answers of at most "
            f"{config.max_answer_words} words, at least 2 are needed; "
            "raise max_answer_words or lower min_answers"
        )
    rows = [
        (index, prompt, answer)
        for index, (prompt, answers) in enumerate(usable.items())
        for answer in answers
    ]
    return Catalogue(
        names=ATTRIBUTES,
        texts=tuple(
            Text(f"candidates-{n:05d}", prompt, answer) for n, (_, prompt, answer) in enumerate(rows)
        ),
        attributes=standardised(np.array([measure(answer) for _, _, answer in rows])),
        flaws=np.zeros(len(rows), dtype=np.int64),
        prompt=np.array([index for index, _, _ in rows], dtype=np.int64),
        unseen=unseen_prompts(
            len(usable), config.unseen_prompt_share, np.zeros(len(usable), dtype=np.bool_), generator
        ),
    )
