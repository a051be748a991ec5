"""Attacks on trained adapters: who was in the data, and what was in it; with privacy and without.

**Membership inference.**  Each user's records are halved by a fair coin: members train, the others do
not.  The attacker knows the adapters, all records and whose they are, and says of each record whether it
trained: by its loss (Yeom et al. 2018), or by its loss under the same training on the other halves
less its loss here (calibration by a reference model: Watson et al. 2022; here the reference is trained
on exactly the complement, which is more than an attacker has).  *shared* reads the released adapter
alone, *personal* the user's own model.

**Exposure.**  A sentence with a secret number trains a user's adapter among others; then the number's
log-probability is ranked among all candidates: log2 |R| - log2 rank bits (Carlini et al. 2019, section 4).
A number that did not train gives 1.44 bits on average (its rank is uniform).

Without privacy both must succeed, or the attack shows nothing; so both arms are trained much harder
than by default (``hard``), alike but for the clip and the noise.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import softplus

from fl_client.head_arm import HeadArm
from fl_client.trainer import NodeTrainer
from fl_core.base_model import BaseModel, render_prompt
from fl_core.calibration import calibrate
from fl_core.cohort import StepPlan, train_cohort
from fl_core.config import AdapterSpec, RunConfig
from fl_core.engine import CohortEngine, CohortState, Examples
from fl_core.errors import RunError
from fl_core.frozen_features import FEATURES_FILE
from fl_core.noise import SimulationNoise
from fl_core.private_head import head_examples
from fl_core.records import NO_TEXT, Population, Records, Split
from fl_core.shared import Arrays, from_arrays, initial_shared
from fl_core.trunk import Tokens
from simulation.canaries import top_layer, with_epsilon
from simulation.in_process import rounds_of
from simulation.sources import world

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MOST_RECORDS = 20
"""A user's records that are attacked, at the most."""
FALSE_POSITIVES = 0.01
RESAMPLES = 500
WITHOUT = "no privacy"
REFERENCE = 1_000_003
"""Added to the seed of the reference training."""


@dataclass(frozen=True)
class Membership:
    """How well members are told from others: area under the curve, and hits at 1% false alarms.

    Intervals are 95%, over users drawn again with replacement.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    members: int
    others: int


def membership(scores: Floats, member: Mask, user: npt.NDArray[np.int64], seed: int) -> Membership:
    """Of records' ``scores`` [E]: higher says member."""
    generator = np.random.default_rng([seed, 6])
    rows = [np.flatnonzero(user == one) for one in np.unique(user)]
    drawn = []
    for _ in range(RESAMPLES):
        index = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        if member[index].any() and not member[index].all():
            drawn.append((auc(scores[index], member[index]), hits(scores[index], member[index])))
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return Membership(
        auc(scores, member),
        (float(low[0]), float(high[0])),
        hits(scores, member),
        (float(low[1]), float(high[1])),
        int(member.sum()),
        int((~member).sum()),
    )


def auc(scores: Floats, member: Mask) -> float:
    """The chance that a member scores higher than another record; ties count half (Mann and Whitney)."""
    from scipy.stats import rankdata

    count, others = int(member.sum()), int((~member).sum())
    ranks = float(rankdata(scores)[member].sum())
    return (ranks - count * (count + 1) / 2) / (count * others)


def hits(scores: Floats, member: Mask, rate: float = FALSE_POSITIVES) -> float:
    """The share of members above the threshold that ``rate`` of the others, at most, exceed."""
    others = np.sort(scores[~member])[::-1]
    return float((scores[member] > others[int(rate * len(others))]).mean())


# Membership of trained adapters ----------------------------------------------------------


def hard(config: RunConfig) -> RunConfig:
    """``config`` trained so hard that an adapter without privacy remembers its records.

    A personal head over many directions, weak priors, and no public values.
    """
    train = {"prior_precision": 0.01, "values_weight": 0.0, "personal_values": 0.0, "prior_share": 0.5}
    return config.model_copy(
        update={
            "arms": "dual,dual_dp",
            "shared": AdapterSpec(kind="b_only", targets=""),
            "personal": AdapterSpec(kind="subspace", rank=32, targets=""),
            "train": config.train.model_copy(update={"objective": "reward", "local_steps": 1, **train}),
            "federation": config.federation.model_copy(update={"head_precision": 0.01}),
            "privacy": config.privacy.model_copy(update={"scope": "both", "trunk": False}),
        }
    )


def attacked_population(population: Population, most: int = MOST_RECORDS) -> Population:
    """The TRAIN records, at most ``most`` a user, with the texts that they need, and no values pairs."""
    records = population.records.of_split(Split.TRAIN)
    first = np.searchsorted(records.user, np.arange(len(population.users)))
    records = records.take(np.arange(len(records)) - first[records.user] < most)
    used = np.unique(np.concatenate([records.chosen, records.rejected[records.is_pair()]]))
    place = np.full(len(population.texts) + 1, NO_TEXT, dtype=np.int32)
    place[used] = np.arange(len(used))
    moved = replace(records, chosen=place[records.chosen], rejected=place[records.rejected])
    texts = tuple(population.texts[int(text)] for text in used)
    return replace(population, texts=texts, records=moved, values=())


def membership_attacks(
    config: RunConfig,
    population: Population,
    epsilons: tuple[float, ...],
    out: Path,
    watch: Callable[[str], None] = lambda _: None,
) -> dict[str, Membership]:
    """Both attacks on both adapters, without privacy and at ``epsilons``: "shared, loss, no privacy" ..."""
    config, population = hard(config), attacked_population(population)
    records = population.records
    member = np.random.default_rng([config.seed, 7]).random(len(records)) < 0.5
    user, found = records.user.astype(np.int64), {}
    for target, arm in [(0.0, "dual"), *((value, "dual_dp") for value in epsilons)]:
        privacy = named(target)
        config = with_epsilon(config, target or max(epsilons))
        folder = out / privacy.replace(" ", "-")
        watch(f"membership inference, {privacy}")
        # With the noise of the attacked training the reference would cancel it, which no attacker can do.
        other = config.model_copy(update={"seed": config.seed + REFERENCE})
        here = _losses(config, population, member, folder / "members", arm)
        there = _losses(other, population, ~member, folder / "others", arm)
        for part, loss in here.items():
            for name, score in (("loss", -loss), ("calibrated", there[part] - loss)):
                found[f"{part}, {name}, {privacy}"] = membership(score, member, user, config.seed)
    return found


def _losses(
    config: RunConfig, population: Population, member: Mask, out: Path, arm: str
) -> dict[str, Floats]:
    """[E] every record's loss after training on ``member``: under the shared and the user's own model."""
    split = np.where(member, int(Split.TRAIN), int(Split.VALIDATION)).astype(np.int8)
    folder = out / "population"
    replace(population, records=replace(population.records, split=split)).save(folder)
    _reuse_features(out)
    node = NodeTrainer(config, folder, out, 0, 1)
    theta = _trained(node, arm)
    trainer = node.arm(arm)
    if not isinstance(trainer, HeadArm):
        raise RunError(f"arm {arm!r}: membership is attacked where users share texts")
    own = torch.from_numpy(np.array(trainer.load().after))
    shared = from_arrays(trainer.adapter.shared_layout, theta)
    problem = head_examples(
        trainer.adapter, shared, trainer.engine.features(shared), _examples_of(population.records)
    )
    personal = problem.offset + (problem.z * own[problem.user]).sum(1)
    margins = {"shared": problem.offset, "personal": personal}
    return {name: softplus(-margin).double().numpy() for name, margin in margins.items()}


def _trained(node: NodeTrainer, arm: str) -> Arrays:
    """All rounds with the server's own optimizer, then the personal phase; the shared adapter."""
    config, theta = node.config, initial_shared(node.config, arm)
    for _, theta in rounds_of(node, config, arm):  # noqa: B007 - the last one is kept
        pass
    node.personalize(arm, config.federation.rounds + 1, theta)
    return theta


def _reuse_features(out: Path) -> None:
    """All trainings read the same texts: the first one's features serve the others."""
    for path in sorted(out.parent.parent.glob(f"*/*/{FEATURES_FILE}")):
        if path.parent != out and not (out / FEATURES_FILE).exists():
            shutil.copy(path, out / FEATURES_FILE)


def _examples_of(records: Records) -> Examples:
    columns = (records.user, records.chosen, records.rejected, records.label)
    return Examples(*(column.astype(np.int64) for column in columns))


# Exposure --------------------------------------------------------------------------------

CANDIDATES = 256
SECRET_USERS, OTHER_SENTENCES = 12, 3
SECRET_STEPS, SECRET_RATE = 30, 0.02
SECRET_CLIP = 0.25


@dataclass(frozen=True)
class Exposure:
    """Mean bits over users, what a number that did not train has on average, and each user's ``ranks``."""

    bits: float
    by_chance: float
    most: float
    ranks: tuple[int, ...]


def exposure(config: RunConfig, base: BaseModel, target: float) -> Exposure:
    """Of a secret number in each of some users' sentences, at epsilon ``target`` (0: without privacy).

    ``train_cohort`` with the SFT objective on B of a top layer; nobody else sees a user's adapter.
    """
    engine, state = _secret_engine(config, base)
    generator = np.random.default_rng([config.seed, 8])
    secrets = generator.integers(CANDIDATES, size=SECRET_USERS)
    others = generator.integers(CANDIDATES, size=(SECRET_USERS, OTHER_SENTENCES)) + CANDIDATES
    text = np.concatenate([secrets[:, None], others], axis=1).reshape(-1)
    user = np.repeat(np.arange(SECRET_USERS), 1 + OTHER_SENTENCES)
    moved = train_cohort(
        engine,
        state,
        Examples(user, text, np.full_like(text, NO_TEXT), np.ones_like(text)),
        list(range(SECRET_USERS)),
        "shared",
        _secret_plan(config, target),
        SimulationNoise(config.seed),
        1,
    )
    ranks = [_rank(engine, moved, row, int(secret)) for row, secret in enumerate(secrets)]
    bits = math.log2(CANDIDATES) - np.log2(ranks)
    by_chance = math.log2(CANDIDATES) - float(np.log2(np.arange(1, CANDIDATES + 1)).mean())
    return Exposure(float(bits.mean()), by_chance, math.log2(CANDIDATES), tuple(ranks))


def _secret_engine(config: RunConfig, base: BaseModel) -> tuple[CohortEngine, CohortState]:
    """The engine over all candidate sentences and as many ordinary ones; a state of all users."""
    trunk, adapter = top_layer(config, base, config.seed)
    secret = [
        ("What is the code of the door?", f"The code of the door is {100 + i}.") for i in range(CANDIDATES)
    ]
    other = [
        ("When does the bus leave?", f"Bus number {i} leaves in {i} minutes.") for i in range(CANDIDATES)
    ]
    texts = []
    for prompt, response in (*secret, *other):
        ids, mask = render_prompt(base.tokenizer, prompt, response, config.train.max_tokens)
        texts.append(Tokens(tuple(ids), tuple(mask)))
    engine = CohortEngine(trunk, adapter, texts, config.train.model_copy(update={"objective": "sft"}))
    start = adapter.initial_shared().expand(SECRET_USERS, -1).clone()
    return engine, CohortState(start, torch.zeros(SECRET_USERS, 0), torch.ones(SECRET_USERS, 2))


def _secret_plan(config: RunConfig, target: float) -> StepPlan:
    if target == 0:
        return StepPlan(SECRET_STEPS, "adam", SECRET_RATE, denominator=1.0 + OTHER_SENTENCES)
    sigma = calibrate(with_epsilon(config, target).privacy, SECRET_STEPS, 0).shared
    rate = config.privacy.sampling_rate
    return StepPlan(SECRET_STEPS, "adam", SECRET_RATE, SECRET_CLIP, sigma, rate, 1.0 + OTHER_SENTENCES)


def _rank(engine: CohortEngine, state: CohortState, user: int, secret: int) -> int:
    """The rank, from 1, of a user's secret among all candidates by log-probability."""
    texts = np.arange(CANDIDATES)
    implicit = engine.scores(np.full(CANDIDATES, user), texts, state)
    logprobs = implicit + engine.reference_logprobs(texts.tolist())
    return 1 + int((logprobs > logprobs[secret]).sum())


# All -------------------------------------------------------------------------------------

ATTACKED_USERS = 40
SUCCEEDS_AUC, SUCCEEDS_BITS = 0.7, 3.0
"""What attacks must reach without privacy, or they would not have seen anything with it either."""


@dataclass(frozen=True)
class Attacks:
    """Membership by "part, attack, privacy", and exposure by privacy."""

    membership: dict[str, Membership]
    exposure: dict[str, Exposure]

    @property
    def control(self) -> bool:
        """Whether the best attack on each part succeeds without privacy."""
        found = {name: result for name, result in self.membership.items() if name.endswith(WITHOUT)}
        best = [max(r.auc for n, r in found.items() if n.startswith(part)) for part in ("shared", "personal")]
        return min(best) >= SUCCEEDS_AUC and self.exposure[WITHOUT].bits >= SUCCEEDS_BITS

    def to_json(self) -> dict[str, Any]:
        """For ``audit.json``."""
        return {
            "control_without_privacy": "succeeds" if self.control else "fails",
            "membership": {name: asdict(result) for name, result in self.membership.items()},
            "exposure_bits": {name: asdict(result) for name, result in self.exposure.items()},
        }


def attacks(config: RunConfig, base: BaseModel, claim: float, watch: Callable[[str], None]) -> Attacks:
    """All attacks, without privacy, at ``claim`` and at the configured epsilon, on the simulated world."""
    asked = {"population": "world", "path": "", "users": ATTACKED_USERS}
    population = world(config.model_copy(update=asked))
    targets = tuple(sorted({claim, config.privacy.epsilon}))
    with tempfile.TemporaryDirectory(prefix="duet-attacks-") as folder:
        found = membership_attacks(config, population, targets, Path(folder), watch)
    exposed = {}
    for target in (0.0, *targets):
        watch(f"exposure of secrets, {named(target)}")
        exposed[named(target)] = exposure(config, base, target)
    return Attacks(found, exposed)


def named(target: float) -> str:
    """How an epsilon stands in names; 0 is no privacy."""
    return f"epsilon {target:g}" if target else WITHOUT
