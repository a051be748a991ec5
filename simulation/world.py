"""The embedded world: simulated people choosing among the grammar's answers.

No download and no real person: a population of any size whose true preferences are known, so
that a report can be checked against an oracle.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from fl_core.records import Population, Text
from simulation.choices import Catalogue, Truth, draw_records, unseen_prompts
from simulation.grammar import ATTRIBUTES, values_pairs, world_texts
from simulation.grammar_answers import TASKS
from simulation.people import CONTEXTS, PeopleConfig, draw_people

_PEOPLE, _PROMPTS, _RECORDS = 10, 11, 12  # stream tags


class WorldConfig(PeopleConfig):
    """``PeopleConfig`` and the world's texts.

    ``prompts``: how many of the grammar's tasks are asked.  ``answers``: candidates a prompt,
    of which ``flawed_answers`` are dishonest or harmful.
    """

    prompts: int = Field(default=len(TASKS), ge=2, le=len(TASKS))
    answers: int = Field(default=13, ge=3, le=100)
    flawed_answers: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _sound_answers_remain(self) -> WorldConfig:
        if self.answers - self.flawed_answers < 2:
            raise ValueError(
                f"flawed_answers={self.flawed_answers} of answers={self.answers} leaves fewer "
                "than two sound ones"
            )
        return self


def build_world(config: WorldConfig) -> Population:
    """The world's population; the same config always gives the same one."""
    truth = world_truth(config)
    return Population(
        name="world",
        texts=truth.catalogue.texts,
        users=truth.people.users,
        records=draw_records(config, truth.people, truth.catalogue, (config.seed, _RECORDS)),
        values=values_pairs(config.seed),
        contexts=CONTEXTS,
        about=(
            f"Simulated: {config.users} users in {config.groups} groups choose between answers that a "
            f"grammar wrote ({config.prompts} prompts, {config.answers} answers each, "
            f"{config.flawed_answers} of them dishonest or harmful). Not real people."
        ),
    )


def world_truth(config: WorldConfig) -> Truth:
    """The preference vectors and attributes behind ``build_world(config)``."""
    people = draw_people(config, ATTRIBUTES, np.random.default_rng([config.seed, _PEOPLE]))
    return Truth(config, people, _catalogue(config))


def _catalogue(config: WorldConfig) -> Catalogue:
    """Unseen prompts are drawn from the grammar's reserved tasks as far as these reach."""
    prompts = world_texts(config.seed, config.prompts, config.answers, config.flawed_answers)
    answers = [(index, answer) for index, prompt in enumerate(prompts) for answer in prompt.answers]
    reserved = np.array([prompt.reserved for prompt in prompts])
    generator = np.random.default_rng([config.seed, _PROMPTS])
    return Catalogue(
        names=ATTRIBUTES,
        texts=tuple(
            Text(f"world-{number:05d}", prompts[index].prompt, answer.text)
            for number, (index, answer) in enumerate(answers)
        ),
        attributes=np.array([answer.attributes for _, answer in answers]),
        flaws=np.array([2 - answer.honest - answer.harmless for _, answer in answers], dtype=np.int64),
        prompt=np.array([index for index, _ in answers], dtype=np.int64),
        unseen=unseen_prompts(len(prompts), config.unseen_prompt_share, reserved, generator),
    )
