"""Simulated people: preference vectors, contexts, drift, how much they say and on what device.

A person's taste at time t in [0, 1] and in a context is a vector over readable attributes:
common taste + group + individual + context shift + drift * (t - 1/2).  Honesty and
harmlessness have one common weight, negative for adversarial people.  Choices follow
Bradley and Terry (1952): P(a over b) = sigmoid((utility(a) - utility(b)) / choice noise).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from fl_core.config import FROZEN
from fl_core.records import User

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.integer[Any]]

CONTEXTS = ("private", "work")

COMMON_TASTE = {
    "length": 0.2,
    "formality": 0.0,
    "depth": 0.5,
    "warmth": 0.6,
    "structure": 0.6,
    "hedging": -0.5,
    "humour": 0.3,
    "emoji": -0.3,
}
"""What most people like, by attribute; attributes not named have 0."""

WORK_TASTE = {"formality": 0.9, "structure": 0.4, "humour": -0.8, "emoji": -0.8, "warmth": -0.3}
"""How taste at work differs from private taste, on average."""


class PeopleConfig(BaseModel):
    """Who the simulated users are; every knob of a simulated population but its texts.

    ``users``: how many; ``seed``: of every draw.  ``records_mean``, ``records_min``,
    ``records_max``: a user's feedback records (train, holdback, validation) follow a bounded
    power law with this mean.  ``cold_start_share`` of the users have 1 to
    ``cold_start_records_max`` records instead.  Test records come on top of these:
    ``test_share`` times as many, at least ``test_minimum``, in each test set; they exist to
    measure and the simulated device never sees them.  ``holdback_share``,
    ``validation_share``: parts of a user's feedback.  ``unseen_prompt_share``: prompts that
    occur in test set UNSEEN only.

    ``groups``, ``group_spread``, ``individual_spread``: standard deviation, per attribute, of
    group centres and of people around them, in utility.  ``common_taste``: factor on
    ``COMMON_TASTE``.  ``context_shift``: factor on the difference between work and private.
    ``drift``: standard deviation, per attribute, of the change from the first to the last day.
    ``choice_noise``: the logistic temperature; 0: people never waver.  ``values_weight``:
    utility lost by a dishonest or a harmful answer.  ``adversarial_share`` of the users gain
    it instead.  ``flawed_pair_share``: records that set a sound against a flawed answer.

    ``unfederated_share``: users never in federation, who only personalise.
    ``availability_mean``: mean of the (Beta) probabilities to be online in a round.
    ``speed_spread``: standard deviation of the logarithm of device speed.
    ``span_days``: time from first to last record.
    """

    model_config = FROZEN

    users: int = Field(default=500, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0)
    records_mean: float = Field(default=40.0, gt=0)
    records_min: int = Field(default=10, ge=1)
    records_max: int = Field(default=400, ge=1, le=10_000)
    cold_start_share: float = Field(default=0.1, ge=0, le=1)
    cold_start_records_max: int = Field(default=4, ge=1)
    test_share: float = Field(default=0.25, ge=0, le=2)
    test_minimum: int = Field(default=12, ge=1)
    holdback_share: float = Field(default=0.1, ge=0, lt=1)
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    unseen_prompt_share: float = Field(default=0.25, gt=0, lt=1)
    groups: int = Field(default=5, ge=1)
    group_spread: float = Field(default=1.1, ge=0)
    individual_spread: float = Field(default=0.6, ge=0)
    common_taste: float = Field(default=1.5, ge=0)
    context_shift: float = Field(default=0.5, ge=0)
    drift: float = Field(default=0.3, ge=0)
    choice_noise: float = Field(default=0.5, ge=0)
    values_weight: float = Field(default=8.0, ge=0)
    adversarial_share: float = Field(default=0.05, ge=0, le=1)
    flawed_pair_share: float = Field(default=0.12, ge=0, le=1)
    unfederated_share: float = Field(default=0.1, ge=0, lt=1)
    availability_mean: float = Field(default=0.8, gt=0, lt=1)
    speed_spread: float = Field(default=0.5, ge=0)
    span_days: float = Field(default=180.0, gt=0)

    @model_validator(mode="after")
    def _numbers_of_records_fit(self) -> PeopleConfig:
        low, high = self.records_min, (self.records_min + self.records_max) / 2
        if not low <= self.records_mean <= high:
            raise ValueError(
                f"records_mean={self.records_mean} must lie between records_min={low} and {high}, the mean "
                "of records_min and records_max, for a falling power law to have it"
            )
        if self.holdback_share + self.validation_share >= 1:
            raise ValueError(
                f"holdback_share={self.holdback_share} + validation_share={self.validation_share} "
                "must stay below 1, or nothing is left to train on"
            )
        return self


@dataclass(frozen=True)
class People:
    """Users and what they like; arrays over U users, C contexts and D attributes.

    ``base`` [U, D] taste in private at mid-time; ``shift`` [U, C, D] added by context;
    ``course`` [U, D] added times (t - 1/2); ``values`` [U] weight of honesty and
    harmlessness; ``work_share`` [U] share of records made at work; ``records`` [U] numbers
    of feedback records.
    """

    users: tuple[User, ...]
    base: Floats
    shift: Floats
    course: Floats
    values: Floats
    work_share: Floats
    records: npt.NDArray[np.int64]

    def taste(self, user: Indices, context: Indices, time: Floats) -> Floats:
        """[N, D] preference vectors of ``user`` [N] in ``context`` [N] at ``time`` [N] in [0, 1]."""
        return self.base[user] + self.shift[user, context] + self.course[user] * (time - 0.5)[:, None]


def draw_people(config: PeopleConfig, attributes: tuple[str, ...], generator: np.random.Generator) -> People:
    """Draw everybody.  Shares are met exactly up to rounding, by a random choice of users."""
    users, size = config.users, len(attributes)
    group = generator.permutation(np.arange(users) % config.groups)
    centres = generator.normal(size=(config.groups, size)) * config.group_spread
    centres -= centres.mean(axis=0) if config.groups > 1 else 0.0
    common = config.common_taste * np.array([COMMON_TASTE.get(name, 0.0) for name in attributes])
    base = common + centres[group] + config.individual_spread * generator.normal(size=(users, size))
    adversarial = _share_of(users, config.adversarial_share, generator)
    federated = ~_share_of(users, config.unfederated_share, generator)
    online = generator.beta(10 * config.availability_mean, 10 * (1 - config.availability_mean), size=users)
    speed = np.exp(config.speed_spread * generator.normal(size=users))
    return People(
        users=tuple(
            User(
                user_id=f"user-{i:06d}",
                group=f"group-{group[i]}",
                federated=bool(federated[i]),
                adversarial=bool(adversarial[i]),
                availability=round(float(online[i]), 4),
                speed=round(float(speed[i]), 4),
            )
            for i in range(users)
        ),
        base=base,
        shift=_context_shift(config, attributes, generator),
        course=config.drift * generator.normal(size=(users, size)),
        values=np.where(adversarial, -config.values_weight, config.values_weight),
        work_share=generator.beta(2.0, 2.0, size=users),
        records=_numbers_of_records(config, generator),
    )


def power_law_exponent(mean: float, low: int, high: int) -> float:
    """The exponent e >= 0 at which P(n) ~ n^-e on low..high has the given mean, by bisection."""
    values = np.arange(low, high + 1, dtype=np.float64)

    def mean_at(exponent: float) -> float:
        weights = (values / low) ** -exponent
        return float((values * weights).sum() / weights.sum())

    left, right = 0.0, 60.0
    for _ in range(80):
        middle = (left + right) / 2
        left, right = (middle, right) if mean_at(middle) > mean else (left, middle)
    return right


def _numbers_of_records(config: PeopleConfig, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    values = np.arange(config.records_min, config.records_max + 1)
    exponent = power_law_exponent(config.records_mean, config.records_min, config.records_max)
    weights = (values / config.records_min) ** -exponent
    numbers = generator.choice(values, size=config.users, p=weights / weights.sum())
    cold = _share_of(config.users, config.cold_start_share, generator)
    few = generator.integers(1, config.cold_start_records_max + 1, size=config.users)
    return np.where(cold, few, numbers).astype(np.int64)


def _context_shift(
    config: PeopleConfig, attributes: tuple[str, ...], generator: np.random.Generator
) -> Floats:
    shift = np.zeros((config.users, len(CONTEXTS), len(attributes)))
    common = np.array([WORK_TASTE.get(name, 0.0) for name in attributes])
    individual = 0.5 * generator.normal(size=(config.users, len(attributes)))
    shift[:, CONTEXTS.index("work")] = config.context_shift * (common + individual)
    return shift


def _share_of(count: int, share: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """[count] with ``round(count * share)`` True, at random places."""
    return np.asarray(generator.permutation(count) < round(count * share))
